"""The whole loop on a model that ships with the package: sample, fine-tune, sample again, score,
compare, report.
"""

import json
import time
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
from .report.runs import report_run
from .training.engine import Run, finetune
from .training.journal import read_lines
from .training.recipe import Recipe

RECIPES = {"emoji-sd": "emoji-sd-prdp", "emoji-flow": "emoji-flow-prdp"}
COLUMNS = {"reward": "clip", "heldout": "heldout", "alignment": "alignment"}


def demo(
    model: str = "emoji-sd",
    *,
    out: str | Path,
    seed: int = 0,
    placebo: bool = False,
    overrides: tuple[str, ...] = (),
    progress: ProgressCallback = silent,
) -> dict[str, Any]:
    """Run it all into ``out``; returns what ``summary.json`` there holds. Started again, it goes on
    where it stopped.

    Each of ``reward`` (optimised), ``heldout`` (the same goal by another model) and ``alignment``
    (that model's cosine to the bare prompt) has the means before and after, the standard deviation
    over pictures before, and the 95 % interval and p of the paired change, clustered by prompt.
    """
    started, earlier, finished = time.monotonic(), *_seconds_before(Path(out))
    settings = (f"run.seed={seed}", f"run.placebo={str(placebo).lower()}", *overrides)
    recipe = Recipe.load(RECIPES[model], settings)
    run = finetune(recipe, out, progress=progress)
    summary = summarise(run)
    summary["seconds"] = round(earlier + (0 if finished else time.monotonic() - started), 1)
    report_run(run.folder, summary=summary)
    with whole_file(run.folder / "summary.json") as file:
        file.write(json.dumps(summary, indent=1).encode())
    return summary


def _seconds_before(run: Path) -> tuple[float, bool]:
    """What earlier calls spent on this run, and whether they finished it; of an interrupted one,
    its training steps.
    """
    if not (run / "recipe.yaml").is_file():  # no run of ours; finetune says so
        return 0.0, False
    if (run / "summary.json").is_file():
        return float(json.loads((run / "summary.json").read_text())["seconds"]), True
    return sum(line.get("seconds", 0.0) for line in read_lines(run / "metrics.jsonl")), False


def summarise(run: Run) -> dict[str, Any]:
    """The figures of a demo run."""
    change = compare(run.before, run.after).columns
    judge = bundled.model_path(run.recipe.eval_rewards["heldout"]["path"])
    before, after = (Judged.of(table, judge) for table in (run.before, run.after))
    fractions = [line["clip_fraction"] for line in run.metrics if "clip_fraction" in line]
    return {
        "method": run.recipe.method.name,
        "model": run.recipe.model.path,
        "placebo": run.recipe.run.placebo,
        "seed": run.recipe.run.seed,
        "steps": run.metrics[-1]["step"],
        "images": len(run.after.rows),
        "prompts": change[COLUMNS["reward"]].prompts,
        "clip_fraction": sum(fractions) / max(len(fractions), 1),
        "denoiser_calls": run.denoiser_calls,
        **{name: _figures(change[column]) for name, column in COLUMNS.items()},
        "recall_at_5": {"before": before.recall_at_5, "after": after.recall_at_5},
        "diversity": {
            "before": before.diversity,
            "after": after.diversity,
            "ratio": after.diversity / before.diversity if before.diversity else float("nan"),
        },
    }


def _figures(change: Change) -> dict[str, float]:
    return {
        name: getattr(change, name) for name in ("before", "after", "std", "ci_low", "ci_high", "p")
    }


class Judged:
    """What the held-out model says of a gallery besides its scores."""

    def __init__(self, recall_at_5: float, diversity: float):
        self.recall_at_5 = recall_at_5
        self.diversity = diversity

    @classmethod
    def of(cls, table: ScoresTable, judge: str) -> "Judged":
        """recall@5: the share of pictures whose thing is among the five nearest of all things'
        names.
        """
        from .reward_heads.heads.clip import ClipHead

        assert table.folder is not None
        gallery = Gallery.load(table.folder)
        head = ClipHead(judge)
        vectors = embeddings(gallery, head)
        images = torch.stack([vectors[i] for i in range(len(gallery))])
        things = [row["prompt"] for row in load_prompts("emoji-things")]
        names = head.embed_texts([f"an emoji of {thing}" for thing in things]).cpu()
        similarity = images @ names.T
        own = similarity[
            torch.arange(len(images)), [things.index(row["thing"]) for row in gallery.rows]
        ]
        rank = (similarity > own[:, None]).sum(1)
        return cls((rank < 5).float().mean().item(), diversity(gallery.rows, vectors) or 0.0)
