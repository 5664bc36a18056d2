"""Training steps at the real size of published models, of random weights, on an accelerator.

What a step costs, and what memory it takes beside the estimate of ``finetune --dry-run``, does not
depend on what the weights are, so none are downloaded.
"""

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator

from .. import pipelines
from ..errors import one_line
from ..pipelines.skeleton import describe_source, skeleton
from ..training.dry_run import estimate, outline
from ..training.recipe import Recipe
from ..training.setup import Session
from .timing import seconds_of

SIZES: dict[str, tuple[str, ...]] = {  # hub name -> what differs from its defaults
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (),
    "stabilityai/stable-diffusion-xl-base-1.0": (),
    "stabilityai/stable-diffusion-3.5-medium": (),
    "stabilityai/stable-diffusion-3.5-large": (),
    "black-forest-labs/FLUX.1-dev": (
        "model.attention=flash",
    ),  # cuDNN's, torch's own choice on an H200, failed there
    "Qwen/Qwen-Image": (),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("sampling.num_frames=33", "optim.micro_batch=1"),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": ("sampling.num_frames=33", "optim.micro_batch=1"),
}
STEP = (  # PRDP with LoRA in bfloat16, four pictures at once
    "model.dtype=bf16",
    "method={name: prdp, images_per_prompt: 4, prompts_per_step: 1, gradient_steps: 1, "
    "beta: 3.0e-5, clip: 1.0e-4}",
    "sampling={num_inference_steps: 4, guidance_scale: 5.0, eta: 1.0}",
    "rewards={sharpness: {}}",
    "memory={checkpointing: true, free_text_encoders: true}",
    "optim.micro_batch=4",
    "evaluate.batch_size=1",
)


@dataclass(frozen=True)
class SizeRow:
    """One model's figures.

    ``why_not``: the error of a step for which memory was too small; the figures are None then.
    """

    model: str
    parameters: int  # of the denoiser
    images: int  # of a step
    seconds: float | None  # of the second step
    peak: int | None  # bytes, of making ready and two steps
    estimate: int  # bytes
    why_not: str | None = None

    def json(self) -> dict[str, Any]:
        return asdict(self)


def recipe_of(model: str) -> Recipe:
    """The step that is taken of a model."""
    return Recipe.load("sd15-prdp", [f"model.path={model}", *STEP, *SIZES[model]])


def bench_sizes(
    accelerator: Accelerator, models: tuple[str, ...] = tuple(SIZES)
) -> Iterator[SizeRow]:
    """One row a model, each built, trained for two steps and dropped."""
    device = accelerator.device
    for name in models:
        recipe = recipe_of(name)
        shapes = outline(recipe)
        expected = estimate(shapes, recipe).peak
        parameters = sum(
            part.numel() for module in shapes.trainable.values() for part in module.parameters()
        )
        images = recipe.method.images
        del shapes

        # The peak covers loading too, as the estimate does.
        torch.cuda.reset_peak_memory_stats(device)
        try:
            seconds = _second_step(recipe, accelerator)
        except torch.OutOfMemoryError as error:
            reason = one_line(error, 120)
            yield SizeRow(name, parameters, images, None, None, expected, reason)
        else:
            peak = torch.cuda.max_memory_allocated(device)
            yield SizeRow(name, parameters, images, seconds, peak, expected)
        accelerator.free_memory()  # which it holds on to
        gc.collect()
        torch.cuda.empty_cache()


def _second_step(recipe: Recipe, accelerator: Accelerator) -> float:
    """Seconds of the step after the one that chooses kernels; everything is let go at the end."""
    model: Any = pipelines.load(
        skeleton(describe_source(recipe.model.path), torch.bfloat16, accelerator.device)
    )
    model.prompt_cache = None  # real texts are kept there
    session = Session.of(recipe, accelerator, model)
    session.step()
    return seconds_of(session.step, accelerator.device)
