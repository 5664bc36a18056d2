"""Sample pictures or videos into a gallery."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..distributed import rank_slice
from ..errors import UserError
from ..opening import open_guide, open_model
from ..portable import portable_name
from ..precision import exact_float32
from ..progress import ProgressCallback
from .gallery import Gallery, write_gallery
from .layout import GUIDE_SCORE
from .planning import Prompts, Row, local_files, made_of, planned_rows, there_already

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from ..pipelines import Model
    from ..pipelines.guidance.base import Guide

log = logging.getLogger("align_gen")


@exact_float32()
def sample(
    model: "Model | Any",
    prompts: Prompts,
    *,
    out: str | Path = "gallery",
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
    files: Sequence[Path] = (),
    overwrite: bool = False,
    wait: bool = False,
    progress: ProgressCallback | None = None,
    accelerator: "Accelerator | None" = None,
) -> Gallery:
    """Sample one picture or video for every prompt and seed, batch by batch, into a gallery.

    A picture's own seed is a hash of (seed, prompt), written in its row. Without a guide,
    ``torch.Generator().manual_seed(row["seed"])`` given to the diffusers pipeline makes the same
    picture again, where the pipeline draws its noise in the shape of our latents and steps as DDIM
    or Euler do. The seed depends on no other row, batch or process.

    A gallery of ours that is there already is not drawn again if it is just what would be drawn:
    the model is a name, and prompts, seeds and settings are the same. Any other one is replaced
    with ``overwrite`` alone, and what is no gallery of ours never.

    A row's column "made" holds the settings. With a ``BestOf`` guide it also names n ("best-of")
    and the rewards, and the row has the winning candidate's score as "guide_score".

    Args:
        model: a bundled name, a pipeline folder, a hub name, a diffusers pipeline, or a Model.
        prompts: texts, or rows with "prompt" and further columns, which the gallery keeps. A row
            with its own "seed", as in a gallery's metadata, is made again exactly. One str is one
            prompt.
        out: folder of the gallery.
        seeds: one picture of each prompt for every number; ``seed=3`` is short for ``seeds=[3]``.
        num_inference_steps: denoising steps.
        guidance_scale: of classifier-free guidance.
        eta: 0 is the ODE (DDIM), 1 the DDPM posterior.
        height: of the pictures, in pixels; None is the model's own.
        width: likewise.
        num_frames: of a video; None is the model's own.
        negative: the negative prompt of classifier-free guidance; None is the family's default.
        guide: chooses among samples by a reward, see ``pipelines.guidance``.
        batch_size: pictures at a time.
        note: columns added to every row.
        origin: what this function cannot know of the pictures' making, by the names of `align-gen
            sample`: adapter, dtype, and the model where it is an object. Kept in the column "made",
            so that a row alone makes its picture again.
        files: what the pictures are drawn with besides; see ``planning.local_files``.
        overwrite: replace a gallery of ours.
        wait: for another process that writes the gallery, instead of raising.
        progress: called after each batch.
        accelerator: of several processes that sample together, a share each; all must call this,
            and see the same disk.

    Raises:
        UserError: the folder holds anything else or is being written; a number or row is out of
            range; or the model needs more than a prompt.
        ValueError: no such model, or a size that the model does not have.
    """
    settings: dict[str, Any] = {
        "num_inference_steps": num_inference_steps,
        "eta": eta,
        "guidance_scale": guidance_scale,
        "batch_size": batch_size,
    }
    size: dict[str, Any] = {"height": height, "width": width, "num_frames": num_frames}
    seeds = seeds if seed is None else (seed,)
    is_name = isinstance(model, (str, Path))
    if is_name:
        origin = {"model": portable_name(str(model)), **(origin or {})}
        files = [*local_files([str(model)]), *files]
    made = made_of(origin or {}, settings, size, negative, files)
    rows = planned_rows(prompts, seeds, {**(note or {}), "made": made})

    # Before the model is loaded. What an object or a guide would draw is known to nobody.
    there = there_already(out, rows, is_name and guide is None, overwrite)
    if there is not None:
        log.info("already there: %d pictures in %s", len(there), there.folder)
        return there
    model = open_model(model)
    guide = open_guide(guide, model.device)
    recorder = _Recorder.of(guide)
    if recorder is not None:
        rows = [{**row, "made": {**made, **recorder.made(made)}} for row in rows]
    if model.required_inputs:
        raise UserError(
            f"{type(model).__name__} wants {model.required_inputs} beside each prompt, "
            "which no gallery has"
        )

    # A size that the model does not have is refused before anything is written.
    model.latent_shape(
        height or model.default_size[0],
        width or model.default_size[1],
        num_frames or model.default_frames,
    )
    draw = _draw_function(guide, recorder)

    def batches() -> "Iterator[Tensor]":
        # Shares are consecutive, so that files of a process are numbered without a gap.
        mine = rank_slice(len(rows), accelerator)
        for start in range(mine.start, mine.stop, batch_size):
            part = rows[start : min(start + batch_size, mine.stop)]
            condition = model.encode_prompts([row["prompt"] for row in part], negative, **size)
            yield draw(model, condition, generator=_generators(part), **settings)
            if progress is not None:
                progress("sample", start - mine.start + len(part), len(mine), {})
        # The rows are written after the last batch, by the first process.
        if recorder is not None:
            recorder.write_into(rows, accelerator)

    options: dict[str, Any] = {"overwrite": overwrite, "wait": wait, "accelerator": accelerator}
    return write_gallery(out, batches(), rows, fps=model.frame_rate, **options)


def _generators(rows: Sequence[Row]) -> list[Any]:
    import torch

    return [torch.Generator().manual_seed(row["seed"]) for row in rows]


def _draw_function(guide: "Guide | None", recorder: "_Recorder | None") -> Any:
    from .. import pipelines

    if recorder is not None:
        return recorder.sample
    return pipelines.sample if guide is None else guide.sample


class _Recorder:
    """A ``BestOf`` guide that also notes the score of every chosen candidate."""

    def __init__(self, guide: Any) -> None:
        self.guide = guide
        self.scores: list[float] = []

    @classmethod
    def of(cls, guide: "Guide | None") -> "_Recorder | None":
        """A recorder of a BestOf guide; None for any other, of which nothing is known."""
        from ..pipelines.guidance.best_of import BestOf

        return cls(guide) if isinstance(guide, BestOf) else None

    def made(self, origin: Mapping[str, Any]) -> Row:
        """The guide in a row's words: n as the command line writes it, and the names of rewards."""
        from ..reward_heads.base import label

        best_of = {"best-of": str(self.guide.n)}
        # The command line's own "reward" says more: the options as well.
        if "reward" in origin:
            return best_of
        heads = getattr(self.guide.reward, "heads", None)
        return {**best_of, "rewards": [label(self.guide.reward)] if heads is None else list(heads)}

    def sample(self, model: Any, condition: Any, **options: Any) -> "Tensor":
        """Sample as ``BestOf.sample`` does, and note the best score of each sample."""
        import torch

        best: list[Tensor] = []

        def reward(media: "Tensor", prompts: Sequence[str]) -> Any:
            scores = self.guide.reward(media, prompts)
            # By the guide's own rule, so that the noted score is that of the chosen candidate.
            values = torch.as_tensor(getattr(scores, "combined", scores)).float().cpu()
            if values.shape != (len(media),):
                want = f"want a score for each of {len(media)} samples"
                raise ValueError(f"BestOf: {want}, (B,), got {tuple(values.shape)}")
            best[:] = [torch.where(values > best[0], values, best[0]) if best else values]
            return scores

        media: Tensor = replace(self.guide, reward=reward).sample(model, condition, **options)
        self.scores += best[0].tolist()
        return media

    def write_into(self, rows: list[Row], accelerator: "Accelerator | None") -> None:
        """Give each row its score; of several processes, all must call this."""
        scores = self.scores
        if accelerator is not None and accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            scores = gather_object(scores)
        for row, score in zip(rows, scores, strict=True):
            row[GUIDE_SCORE] = score
