"""Recipes that no machine can run: refused by arithmetic, before anything large is made."""

import math
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UserError
from ..pipelines import Model
from ..pipelines.lora_targets import layers_named
from .recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

FLOAT = 4  # bytes
LARGEST = torch.finfo(torch.float32).max
CGROUP = Path("/sys/fs/cgroup/memory.max")
# What is ordinary: of several numbers that multiply, the one furthest above is named.
ORDINARY = {
    "method.images_per_prompt": 8,
    "method.prompts_per_step": 8,
    "sampling.num_inference_steps": 50,
    "evaluate.num_inference_steps": 50,
    "evaluate.batch_size": 32,
    "sampling.height": 1024,
    "sampling.width": 1024,
    "sampling.num_frames": 16,
}


def require_single_precision(recipe: Recipe) -> None:
    """Check that each number of a recipe is one to networks, too.

    Raises:
        UserError: names the key.
    """
    for key, value in _numbers(recipe.model_dump()):
        if abs(value) > LARGEST:
            raise UserError(f"{key}: {value:g} is infinite in single precision; want a smaller one")


def require_memory(recipe: Recipe, model: Model, held_out: int, accelerator: "Accelerator") -> None:
    """Check the least memory that a recipe's numbers ask for against what the device has.

    It is a part of the dry run's estimate: what grows with the numbers alone, and no activations.

    Args:
        held_out: prompts of the galleries.

    Raises:
        UserError: names the key, the least that is wanted, and what there is.
    """
    there = memory_of(accelerator.device)
    for keys, size in _least(recipe, model, held_out, accelerator.num_processes):
        if size > there:
            key = max(keys, key=lambda each: keys[each] * 1000 // ORDINARY.get(each, 1))
            raise UserError(
                f"{key}: {_short(keys[key])} takes {_gib(size)} of memory at least, and there are "
                f"{_gib(there)}; want a smaller one"
            )


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a process can have there."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        sizes.append(limit)
    # Of a container; the file holds a number or a word.
    text = CGROUP.read_text().strip() if CGROUP.is_file() else ""
    return min([*sizes, *([int(text)] if text.isdigit() else [])])


def _least(
    recipe: Recipe, model: Model, held_out: int, ranks: int
) -> Iterator[tuple[dict[str, int], int]]:
    """The numbers that multiply, by their keys, and the bytes that they come to; by process."""
    sampling = recipe.sampling
    size = {
        "sampling.height": sampling.height or model.default_size[0],
        "sampling.width": sampling.width or model.default_size[1],
        "sampling.num_frames": sampling.num_frames or model.default_frames,
    }
    picture = FLOAT * 3 * math.prod(size.values())
    latent = FLOAT * math.prod(model.latent_shape(*size.values()))

    for key in ("sampling.num_inference_steps", "evaluate.num_inference_steps"):
        section, name = key.split(".")
        steps = getattr(getattr(recipe, section), name)
        yield {key: steps}, 2 * FLOAT * steps

    # A step's pictures, and in methods that draw, the latents on their way.
    method = recipe.method
    drawn = {
        "method.images_per_prompt": method.images_per_prompt,
        "method.prompts_per_step": method.prompts_per_step,
        **size,
    }
    each = picture + latent
    if method.batch_kind() == "prompts":
        drawn["sampling.num_inference_steps"] = sampling.num_inference_steps
        each = picture + latent * (sampling.num_inference_steps + 1)
    yield drawn, method.images * each // ranks

    pictures = held_out * len(recipe.evaluate.seeds)
    batch = min(recipe.evaluate.batch_size, pictures)
    yield {"evaluate.batch_size": batch, **size}, batch * (picture + latent)

    if recipe.model.lora is not None:
        lora = recipe.model.lora
        # Weights, gradients and two moments; an average and its spare.
        kept = 4 if recipe.optim.ema is None else 6
        widths = _adapted_widths(model, lora.target_modules or model.default_lora_targets)
        yield {"model.lora.rank": lora.rank}, FLOAT * kept * lora.rank * widths


def _adapted_widths(model: Model, targets: str | Sequence[str]) -> int:
    """Inputs and outputs of the layers that a LoRA adapts, added up."""
    total = 0
    for network in model.trainable.values():
        names = layers_named(network, [targets] if isinstance(targets, str) else targets)
        ends = tuple(f".{name}" for name in names)
        for name, module in network.named_modules():
            is_layer = isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
            if is_layer and f".{name}".endswith(ends):
                total += sum(module.weight.shape[:2])
    return total


def _numbers(data: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every fraction of plain data, by its dotted path."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _numbers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(data, float):
        yield path, data


def _short(number: int) -> str:
    return f"{number:,}" if number < 10**15 else f"{str(number)[0]}e{len(str(number)) - 1}"


def _gib(size: int) -> str:
    return f"{_short(-(-size // 2**30))} GiB"
