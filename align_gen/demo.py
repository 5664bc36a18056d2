"""The whole loop on a bundled model: sample, fine-tune, sample again, score, compare, report."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import bundled
from .files import whole_file
from .galleries.comparison import compare
from .galleries.diversity import diversity, embeddings
from .galleries.gallery import Gallery
from .galleries.intervals import Change
from .galleries.prompts import load_prompts
from .galleries.table import ScoresTable
from .progress import ProgressCallback, silent
from .report.runs import report_run, verdict_line
from .run_folder import RunFolder
from .training.engine import Run, finetune
from .training.journal import read_lines
from .training.recipe import Recipe

RECIPES = {"emoji-sd": "emoji-sd-prdp", "emoji-flow": "emoji-flow-prdp"}
COLUMNS = {"reward": "clip", "heldout": "heldout", "alignment": "alignment"}
FIGURES = ("before", "after", "std", "ci_low", "ci_high", "p")  # of a Change


def demo(
    model: str = "emoji-sd",
    *,
    out: str | Path,
    seed: int = 0,
    placebo: bool = False,
    overrides: tuple[str, ...] = (),
    progress: ProgressCallback = silent,
) -> dict[str, Any]:
    """Run the loop into ``out`` and return what ``summary.json`` there holds.

    Started again, an unfinished run resumes where it stopped. Each of ``reward`` (optimised),
    ``heldout`` (the same goal by another model) and ``alignment`` (that model's cosine to the bare
    prompt) has the means before and after, the standard deviation over pictures before, and the
    95 % interval and p of the paired change, clustered by prompt.
    """
    started = time.monotonic()
    folder = RunFolder(Path(out))
    # Read before the run goes on and adds lines of its own.
    earlier, finished = _seconds_before(folder)
    settings = (f"run.seed={seed}", f"run.placebo={str(placebo).lower()}", *overrides)
    recipe = Recipe.load(RECIPES[model], settings)
    run = finetune(recipe, out, progress=progress)

    summary = summarise(run)
    spent = 0.0 if finished else time.monotonic() - started
    summary["seconds"] = round(earlier + spent, 1)
    report_run(run.folder, summary=summary)
    with whole_file(folder.summary) as file:
        file.write(json.dumps(summary, indent=1).encode())
    return summary


def _seconds_before(run: RunFolder) -> tuple[float, bool]:
    """The seconds that earlier calls spent on this run, and whether they finished it.

    Of an interrupted run, its training steps count.
    """
    # Where no run of ours is, finetune refuses the folder with its own message.
    if not run.exists():
        return 0.0, False
    if run.summary.is_file():
        # One that is no summary is written anew at the end.
        with suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return float(json.loads(run.summary.read_text())["seconds"]), True
    return sum(line.get("seconds", 0.0) for line in read_lines(run.metrics)), False


def summarise(run: Run) -> dict[str, Any]:
    """The figures of a demo run."""
    comparison = compare(run.before, run.after)
    changes = comparison.columns
    model = bundled.model_path(run.recipe.eval_rewards["heldout"]["path"])
    before = HeldOutFigures.of(run.before, model)
    after = HeldOutFigures.of(run.after, model)
    fractions = [line["clip_fraction"] for line in run.metrics if "clip_fraction" in line]
    ratio = after.diversity / before.diversity if before.diversity else float("nan")
    return {
        "method": run.recipe.method.name,
        "model": run.recipe.model.path,
        "placebo": run.recipe.run.placebo,
        "seed": run.recipe.run.seed,
        "steps": run.metrics[-1]["step"],
        "images": len(run.after.rows),
        "prompts": changes[COLUMNS["reward"]].prompts,
        "clip_fraction": sum(fractions) / max(len(fractions), 1),
        "denoiser_calls": run.denoiser_calls,
        "verdict": verdict_line(run, comparison),
        **{name: _figures(changes[column]) for name, column in COLUMNS.items()},
        "recall_at_5": {"before": before.recall_at_5, "after": after.recall_at_5},
        "diversity": {"before": before.diversity, "after": after.diversity, "ratio": ratio},
    }


def _figures(change: Change) -> dict[str, float]:
    return {name: getattr(change, name) for name in FIGURES}


@dataclass(frozen=True)
class HeldOutFigures:
    """Figures of a gallery by the held-out model, besides its scores.

    ``recall_at_5`` is the share of pictures whose thing is among the five nearest of all things'
    names; ``diversity`` the mean of 1 - cosine between pictures of one prompt.
    """

    recall_at_5: float
    diversity: float

    @classmethod
    def of(cls, table: ScoresTable, model: str) -> "HeldOutFigures":
        """Measure a scored gallery of emoji by the CLIP in the folder ``model``."""
        from .reward_heads.heads.clip import ClipHead

        assert table.folder is not None
        gallery = Gallery.load(table.folder)
        head = ClipHead(model)
        vectors = embeddings(gallery, head)
        images = torch.stack([vectors[i] for i in range(len(gallery))])  # (B, D)

        # Every picture against the name of every thing, its own among them.
        things = [row["prompt"] for row in load_prompts("emoji-things")]
        names = head.embed_texts([f"an emoji of {thing}" for thing in things]).cpu()  # (T, D)
        similarity = images @ names.T
        shown = [things.index(row["thing"]) for row in gallery.rows]
        to_shown = similarity[torch.arange(len(images)), shown]
        rank = (similarity > to_shown[:, None]).sum(1)
        recall = (rank < 5).float().mean().item()
        return cls(recall, diversity(gallery.rows, vectors) or 0.0)
