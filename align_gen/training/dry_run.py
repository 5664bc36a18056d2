"""What a recipe would do, and what it costs, before it does it: no weights are read."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import bundled, methods, pipelines
from ..errors import UserError, user_mistakes
from ..methods.denoising import squared_errors
from ..peak_memory import PeakMemory, size_of
from ..pipelines import Condition, Model, Rollout
from ..pipelines.registry import TOYS
from ..pipelines.sampling import step_log_prob
from ..pipelines.skeleton import ShapesOnly, describe_source, make_fake, skeleton
from ..precision import dtype_of
from .engine import load_model, prepare_model
from .recipe import Recipe

FLOAT = 4  # bytes; trained tensors, gradients and latents are float32 in every precision
# of the trajectories that are measured: memory grows with their number by the stored latents alone
STEPS = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of tensors that a run keeps, and, on top of them, that each kind of work makes."""

    weights: int  # of every component, and of the frozen copy in full training
    freed: int  # of them, once the texts are encoded
    training: int  # gradients, two moments, average and its spare
    stored: int  # a step's latents and pictures
    encoding: int  # of texts
    sampling: int
    decoding: int
    learning: int  # one micro-batch forward and backward

    @property
    def peak(self) -> int:
        """Reward models and the libraries themselves come on top."""
        work = max(self.sampling, self.decoding, self.learning)
        return max(
            self.weights + self.encoding,
            self.weights - self.freed + self.training + self.stored + work,
        )


def describe(recipe: Recipe) -> str:
    """The resolved recipe, what is trained, and the calls and memory of one step."""
    options = recipe.method_options()
    with user_mistakes():
        if recipe.model.path in TOYS:
            model = load_model(recipe)
            prepare_model(recipe, model)
        else:
            model = outline(recipe)
        calls = methods.load(options.name).calls(
            options, recipe.sampling, model.rows_per_sample(recipe.sampling.guidance_scale)
        )
    lines = [
        recipe.to_yaml().rstrip(),
        "---",
        f"trained parameters    {sum(p.numel() for p in model.parameters()):,}",
        f"denoiser per step     {calls['forwards']:,} rows forward, {calls['backwards']:,} of them backward",
    ]
    if recipe.model.path not in TOYS:
        memory = estimate(model, recipe)
        parts = ", ".join(f"{name} {_mib(size)}" for name, size in asdict(memory).items())
        lines.append(
            f"memory                {_mib(memory.peak)} MiB at the peak, and reward models: {parts}"
        )
    return "\n".join(lines)


def outline(recipe: Recipe) -> Model:
    """The recipe's model made ready to train, of tensors without data."""
    section = recipe.model
    if section.adapter is not None and not Path(section.adapter).is_dir():
        raise UserError(f"model.adapter: {section.adapter}: no such folder; want an export")
    pipeline = skeleton(describe_source(bundled.model_path(section.path)), dtype_of(section.dtype))
    model = pipelines.load(pipeline)
    model.prompt_cache = None  # type: ignore[attr-defined]  # real texts are kept there
    prepare_model(recipe, model)
    return model


def estimate(model: Model, recipe: Recipe) -> MemoryEstimate:
    """Run one micro-batch of everything on shapes alone, and count. ``model`` comes from
    ``outline``.
    """
    options = recipe.method_options()
    calls = methods.load(options.name).calls(options, recipe.sampling, 1)
    modules = {
        **model.components(),
        **{f"copy of {name}": module for name, module in model.reference_copies.items()},
    }
    weights = size_of((model.components() if recipe.memory.offload_reference else modules).values())
    encoders = {name: part for name, part in modules.items() if name.startswith("text_encoder")}
    freed = size_of(encoders.values()) if recipe.memory.free_text_encoders else 0
    trained = sum(parameter.numel() for parameter in model.parameters())
    training = FLOAT * trained * (3 if recipe.optim.ema is None else 5)
    images = options.images_per_prompt * options.prompts_per_step
    with make_fake(modules) as shapes:
        encoding, condition = _encode(model, recipe)
        micro = recipe.optim.micro_batch
        drawn = condition.repeat(
            max(min(micro, images), recipe.evaluate.batch_size)
        )  # galleries are drawn too
        learned = condition.repeat(min(micro, calls["images"]))
        half = dtype_of(recipe.model.dtype)
        with nullcontext() if half == torch.float32 else torch.autocast("cpu", half):
            sampling, final = _draw(model, drawn, recipe)
            learning = _learn(model, learned, recipe)
        decoding, picture = _decode(model, final, shapes)
    latents = (
        FLOAT
        * (recipe.sampling.num_inference_steps + 1)
        * torch.Size(condition.latent_shape).numel()
    )
    stored = images * (latents + picture)
    return MemoryEstimate(weights, freed, training, stored, encoding, sampling, decoding, learning)


def _encode(model: Model, recipe: Recipe) -> tuple[int, Condition]:
    """Of a full batch of texts; and one condition."""
    height = recipe.sampling.height or model.default_size[0]
    width = recipe.sampling.width or model.default_size[1]
    texts = [str(number) for number in range(31)]  # and the negative one
    with PeakMemory() as memory:
        condition = model.encode_prompts(
            texts, height=height, width=width, num_frames=recipe.sampling.num_frames
        )
    return memory.peak, condition[:1]


def _draw(model: Model, rows: Condition, recipe: Recipe) -> tuple[int, Tensor]:
    with PeakMemory() as memory:
        final = _rollout(model, rows, recipe).final
    return memory.peak, final


def _learn(model: Model, rows: Condition, recipe: Recipe) -> int:
    """Besides the gradients that it leaves behind."""
    drawn = _rollout(model, rows, recipe)
    options: dict[str, Any] = {
        "eta": recipe.sampling.eta,
        "guidance_scale": recipe.sampling.guidance_scale,
    }
    with PeakMemory() as memory:
        if len(drawn.stochastic):
            step_log_prob(model, drawn, int(drawn.stochastic[0]), rows, **options).sum().backward()
        else:  # of methods that denoise, which need no noise in sampling
            t = drawn.times[:1, 0].expand(len(rows))
            noise = torch.zeros_like(drawn.final)
            squared_errors(model, drawn.final, noise, t, rows, recipe.sampling).sum().backward()
    return memory.peak - sum(
        parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None
    )


def _rollout(model: Model, rows: Condition, recipe: Recipe) -> Rollout:
    options: dict[str, Any] = {
        "eta": recipe.sampling.eta,
        "guidance_scale": recipe.sampling.guidance_scale,
    }
    return pipelines.rollout(model, rows, num_inference_steps=STEPS, **options)


def _decode(model: Model, latents: Tensor, shapes: ShapesOnly) -> tuple[int, int]:
    """Of a micro-batch; and the bytes of one picture or video."""
    with shapes.everything, torch.no_grad(), PeakMemory() as decoding:
        media = model.decode(latents).float()
    return decoding.peak, media.nbytes // len(media)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"
