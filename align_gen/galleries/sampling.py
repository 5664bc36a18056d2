"""Sample pictures or videos into a gallery."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..distributed import rank_slice
from ..errors import UserError
from ..opening import open_guide, open_model
from ..pipelines.seeding import seed_of
from ..precision import exact_float32
from ..progress import ProgressCallback
from .gallery import Gallery, require_gallery, write_gallery

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from ..pipelines import Model
    from ..pipelines.guidance.base import Guide

Row = dict[str, Any]
GUIDE_SCORE = "guide_score"  # column: the score of the candidate that a guide chose


@exact_float32()
def sample(
    model: "Model | Any",
    prompts: str | Sequence[str | Mapping[str, Any]],
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
    progress: ProgressCallback | None = None,
    accelerator: "Accelerator | None" = None,
) -> Gallery:
    """Sample one picture or video for every prompt and seed, batch by batch, into a gallery.

    A picture's own seed is a hash of (seed, prompt), written in its row. Without a guide,
    ``torch.Generator().manual_seed(row["seed"])`` given to the diffusers pipeline makes the same
    picture again, where the pipeline draws its noise in the shape of our latents and steps as DDIM
    or Euler do. The seed depends on no other row, batch or process.

    A row's column "made" holds the settings. With a ``BestOf`` guide it also names n ("best-of")
    and the rewards, and the row has the winning candidate's score as "guide_score".

    Args:
        model: a bundled name, a pipeline folder, a hub name, a diffusers pipeline, or a Model.
        prompts: texts, or rows with "prompt" and further columns, which the gallery keeps. A row
            with its own "seed", as in a gallery's metadata, is made again exactly. One str is one
            prompt.
        out: folder of the gallery; a gallery that is there is replaced.
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
            sample`: model, adapter, dtype … Kept in the column "made", so that a row alone makes
            its picture again.
        progress: called after each batch.
        accelerator: of several processes that sample together, a share each; all must call this,
            and see the same disk.

    Raises:
        UserError: the folder holds anything else, or the model needs more than a prompt.
        ValueError: no such model, or a size that the model does not have.
    """
    require_gallery(out)
    model = open_model(model)
    if model.required_inputs:
        raise UserError(
            f"{type(model).__name__} wants {model.required_inputs} beside each prompt, "
            "which no gallery has"
        )

    settings: dict[str, Any] = {
        "num_inference_steps": num_inference_steps,
        "eta": eta,
        "guidance_scale": guidance_scale,
        "batch_size": batch_size,
    }
    size: dict[str, Any] = {"height": height, "width": width, "num_frames": num_frames}
    guide = open_guide(guide, model.device)
    recorder = _Recorder.of(guide)
    made = _made(origin or {}, settings, size, recorder)
    rows = _rows(prompts, seeds if seed is None else (seed,), {**(note or {}), "made": made})

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

    return write_gallery(out, batches(), rows, fps=model.frame_rate, accelerator=accelerator)


def _made(
    origin: Mapping[str, Any],
    settings: Mapping[str, Any],
    size: Mapping[str, Any],
    recorder: "_Recorder | None",
) -> Row:
    """The column "made": how pictures are drawn, by the names of `align-gen sample`'s options."""
    made = {
        **origin,
        "steps": settings["num_inference_steps"],
        "guidance": settings["guidance_scale"],
        "eta": settings["eta"],
    }
    if size["height"] and size["width"]:
        made["size"] = f"{size['height']}x{size['width']}"
    if size["num_frames"]:
        made["frames"] = size["num_frames"]
    return made if recorder is None else {**made, **recorder.made(made)}


def _rows(
    prompts: str | Sequence[str | Mapping[str, Any]], seeds: Sequence[int], columns: Row
) -> list[Row]:
    """A row per prompt and seed; a prompt's own seed comes before ``seeds``."""
    rows = []
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        row = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
        # Another gallery's: it says nothing of the picture that is to be made.
        row.pop(GUIDE_SCORE, None)
        # Hashed with the prompt: equal numbers of two prompts must not start from equal noise.
        hashed = [seed_of(number, "sample", 0, row["prompt"]) for number in seeds]
        exact = [row["seed"]] if "seed" in row else hashed
        rows += [{**row, "seed": number, **columns} for number in exact]
    return rows


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
