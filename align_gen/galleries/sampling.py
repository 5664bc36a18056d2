"""Sampling into galleries."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..distributed import rank_slice
from ..errors import UserError
from ..pipelines.seeding import seed_of
from ..precision import exact_float32
from ..progress import ProgressCallback
from .gallery import Gallery, require_gallery, write_gallery

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from ..pipelines import Model
    from ..pipelines.guidance.base import Guide


@exact_float32()
def sample(
    model: "Model | Any",
    prompts: Sequence[str | Mapping[str, Any]],
    *,
    out: str | Path,
    seeds: Sequence[int] = (0,),
    seed: int | None = None,
    num_inference_steps: int = 30,
    guidance_scale: float = 5.0,
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    negative: str | None = None,
    guide: "Guide | None" = None,
    batch_size: int = 16,
    note: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    progress: ProgressCallback | None = None,
    crew: "Accelerator | None" = None,
) -> Gallery:
    """One picture or video for every prompt and seed, as a gallery at ``out``, batch by batch.

    A picture's own seed is a hash of (seed, prompt), written in its row:
    ``torch.Generator().manual_seed(row["seed"])`` given to the diffusers pipeline makes the same
    picture again, where it draws its noise in the shape of our latents and steps as DDIM or Euler
    do. It depends on no other row, batch or process.

    Args:
        model: a Model, a diffusers pipeline, or what ``pipelines.load`` takes.
        prompts: texts, or rows with "prompt" and further columns, which the gallery keeps. A row
            with its own "seed", as in a gallery's metadata, is made again exactly.
        seeds: one picture of each prompt for every number; ``seed=3`` is short for ``seeds=[3]``.
        guide: steers sampling by a reward, see ``pipelines.guidance``.
        note: columns added to every row.
        origin: what this function cannot know of the pictures' making, by the names of `align-gen
            sample`: model, adapter, dtype … Kept with the settings in the column "made", so that a
            row alone makes its picture again.
        crew: the processes that draw it together, a share each; they must all call this, and see
            the same disk.
    """
    import torch

    from .. import pipelines

    require_gallery(out)
    model = pipelines.load(model)
    if model.required_inputs:
        raise UserError(
            f"{type(model).__name__} wants {model.required_inputs} beside each prompt, which no gallery has"
        )
    seeds = seeds if seed is None else (seed,)
    described = [{"prompt": row} if isinstance(row, str) else dict(row) for row in prompts]
    made = {**(origin or {}), "steps": num_inference_steps, "guidance": guidance_scale, "eta": eta}
    made |= ({"size": f"{height}x{width}"} if height and width else {}) | (
        {"frames": num_frames} if num_frames else {}
    )
    rows = []
    for row in described:
        own = (
            [row["seed"]]
            if "seed" in row
            else [seed_of(number, "sample", 0, row["prompt"]) for number in seeds]
        )
        rows += [{**row, "seed": number, **(note or {}), "made": made} for number in own]
    options: dict[str, Any] = {"height": height, "width": width, "num_frames": num_frames}
    size = (
        height or model.default_size[0],
        width or model.default_size[1],
        num_frames or model.default_frames,
    )
    model.latent_shape(*size)  # a size it has not is refused before anything is written
    draw = guide.sample if guide is not None else pipelines.sample

    def batches() -> "Iterator[Tensor]":
        mine = rank_slice(len(rows), crew)
        for start in range(mine.start, mine.stop, batch_size):
            part = rows[start : min(start + batch_size, mine.stop)]
            yield draw(
                model,
                model.encode_prompts([row["prompt"] for row in part], negative, **options),
                num_inference_steps=num_inference_steps,
                eta=eta,
                guidance_scale=guidance_scale,
                generator=[torch.Generator().manual_seed(row["seed"]) for row in part],
                batch_size=batch_size,
            )
            if progress is not None:
                progress("sample", start - mine.start + len(part), len(mine), {})

    return write_gallery(out, batches(), rows, fps=model.frame_rate, crew=crew)
