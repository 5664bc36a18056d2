"""Measure a model in training: draw held-out prompts, score the pictures, and show them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..distributed import rank_slice
from ..galleries.chunks import held
from ..galleries.diversity import diversity, embeddings
from ..galleries.gallery import Gallery
from ..galleries.parquet_files import SCORES
from ..galleries.sampling import sample
from ..galleries.scoring import score
from ..galleries.table import ScoresTable
from ..methods.state import TrainState
from ..portable import portable_name
from ..progress import ProgressCallback
from ..reward_heads import RewardSet
from .pieces import is_whole, remove_torn
from .recipe import Recipe
from .signals import Stopped, StopSignals

if TYPE_CHECKING:
    from .setup import Session

BEFORE = "before"
PICTURES_SHOWN = 16  # by trackers


def evaluate(
    session: "Session",
    folder: Path,
    phase: str,
    progress: ProgressCallback,
    signals: StopSignals,
) -> ScoresTable:
    """Draw held-out prompts with the averaged weights, and score them.

    What is in the folder already is not made again; a gallery that has lost a picture is.

    Raises:
        Stopped: a signal came while pictures were drawn; the last step is saved.
    """
    recipe = session.recipe
    state = session.state
    accelerator = session.accelerator

    def report(_: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        # Before the next batch: nothing that counts is lost.
        if signals.signum is not None:
            raise Stopped(
                f"stopped while drawing {phase}; step {state.step} is saved", signals.signum
            )
        progress(phase, done, total, numbers)

    # All decide alike, even where a network disk shows a file to one process later than to another.
    if not state.anywhere(is_whole(folder)):
        if accelerator.is_main_process:
            remove_torn(folder)
        accelerator.wait_for_everyone()
        # Of a run that has lost its first gallery since, what it began with is its reference.
        began = phase == BEFORE and state.step > 0
        with state.model.as_began() if began else state.averaged():
            sample(
                state.model,
                session.held_out,
                out=folder,
                note={"weights": "average" if state.ema is not None else "raw"},
                origin=origin(recipe),
                wait=True,
                progress=report,
                accelerator=accelerator,
                **drawing(recipe),
            )
    if not state.anywhere((folder / SCORES).is_file()):
        gallery = Gallery.load(folder)

        # Each process scores its share; the tables are joined in the order of ranks.
        rows = rank_slice(len(gallery), accelerator)
        part = Gallery(gallery.folder, gallery.rows[rows.start : rows.stop])
        batch_size = recipe.evaluate.batch_size
        scores = score(part, session.all_rewards, batch_size=batch_size)
        table = ScoresTable.join(state.gather_objects(scores))
        if accelerator.is_main_process:
            with held(folder / SCORES, folder, wait=True):
                table.save(folder / SCORES)
        accelerator.wait_for_everyone()
    return ScoresTable.load(folder / SCORES).at(folder)


def drawing(recipe: Recipe) -> dict[str, Any]:
    """How a recipe's galleries are drawn: keyword arguments of ``sample``."""
    settings = recipe.evaluate
    guidance = settings.guidance_scale
    return {
        "seeds": settings.seeds,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": recipe.sampling.guidance_scale if guidance is None else guidance,
        "eta": settings.eta,
        "height": recipe.sampling.height,
        "width": recipe.sampling.width,
        "num_frames": recipe.sampling.num_frames,
        "batch_size": settings.batch_size,
    }


def origin(recipe: Recipe) -> dict[str, str]:
    """Model, adapter and dtype that training started from, to be recorded in a gallery's rows.

    The adapter being trained is not among them.
    """
    section = recipe.model
    # Galleries are passed on: of a folder of this machine, its name.
    made = {"model": portable_name(section.path)}
    if section.adapter is not None:
        made["adapter"] = portable_name(section.adapter)
    if section.dtype != "fp32":
        made["dtype"] = section.dtype
    return made


def measurement(table: ScoresTable, all_rewards: RewardSet) -> dict[str, float]:
    """Metrics of a gallery: every head's mean, and how different the pictures of a prompt are."""
    numbers = {f"eval/{head}/mean": table.mean(head) for head in table.heads}
    # Held-out heads come last: diversity by a model that is not optimised is the honest one.
    heads = reversed(all_rewards.heads.values())
    embedder = next((head for head in heads if hasattr(head, "embed_images")), None)
    if embedder is not None and table.folder is not None:
        gallery = Gallery.load(table.folder)
        different = diversity(gallery.rows, embeddings(gallery, embedder))
        if different is not None:
            numbers["eval/diversity"] = different
    return numbers


def show_pictures(state: TrainState, table: ScoresTable) -> None:
    """Send the gallery's first pictures, or their first frames, to trackers that show some."""
    trackers = [each for each in state.accelerator.trackers if hasattr(each, "log_images")]
    if not trackers or table.folder is None:
        return
    gallery = Gallery.load(table.folder)
    media = [gallery.media(index) for index in range(min(PICTURES_SHOWN, len(gallery)))]
    # (N, 3, H, W)
    pictures = torch.stack([each[0] if each.ndim == 4 else each for each in media])
    for tracker in trackers:
        channels_first = tracker.name == "tensorboard"
        shown = pictures if channels_first else pictures.movedim(1, -1)
        tracker.log_images({"held-out": shown.numpy()}, step=state.step)
