"""What watches a run: held-out rewards that fall, the best measurement so far, and settings that
invite surprises.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..galleries.table import ScoresTable
from ..pipelines import Model
from ..reward_heads.base import label
from .recipe import Recipe

log = logging.getLogger("align_gen")
FALLEN = 0.25  # standard deviations over pictures, before


@dataclass
class Guard:
    """Compares each measurement of the held-out rewards with the one before training.

    ``worse`` counts measurements in a row in which some held-out mean lies 0.25 standard deviations
    below its start. ``best_rise`` is the largest mean change of the held-out rewards, in such
    deviations, and ``best_step`` where it was; 0 and 0 while nothing was better than the untouched
    model.
    """

    before: ScoresTable
    held_out: tuple[str, ...]
    patience: int | None = None  # measurements in a row that stop the run; None never does
    worse: int = 0
    best_step: int = 0
    best_rise: float = 0.0
    seen: int | None = field(default=None, compare=False)  # the last step that was

    @classmethod
    def of(cls, recipe: Recipe, before: ScoresTable, progress: dict[str, Any]) -> "Guard":
        """For a recipe's run, from where a checkpoint left it."""
        patience = recipe.stop.patience if recipe.stop.when == "eval_rewards_fall" else None
        known = {
            key: progress[key] for key in ("worse", "best_step", "best_rise") if key in progress
        }
        return cls(before, tuple(map(label, recipe.eval_rewards)), patience, **known)

    @property
    def stop(self) -> bool:
        return self.patience is not None and self.worse >= self.patience

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"worse": self.worse, "best_step": self.best_step, "best_rise": self.best_rise}

    def see(self, step: int, table: ScoresTable) -> dict[str, float]:
        """Take in a measurement; what to write down of it. Warns when a held-out reward has fallen.

        A step that was seen counts once: where a run stops, its end is measured again.
        """
        if step == self.seen:
            return {}
        self.seen = step
        rises = {name: self.rise(name, table) for name in self.held_out}
        fallen = {name: rise for name, rise in rises.items() if rise < -FALLEN}
        self.worse = self.worse + 1 if fallen else 0
        average = sum(rises.values()) / max(len(rises), 1)
        if average > self.best_rise:
            self.best_step, self.best_rise = step, average
        if fallen:
            told = ", ".join(f"{name} by {-rise:.2f}" for name, rise in fallen.items())
            then = f"; the run stops here (stop.patience: {self.patience})" if self.stop else ""
            log.warning(
                "step %d: held out and fallen, in standard deviations: %s: reward hacking?%s",
                step,
                told,
                then,
            )
        return {"eval/fallen": float(len(fallen))} if self.held_out else {}

    def rise(self, head: str, table: ScoresTable) -> float:
        """Change of a head's mean in standard deviations before; 0 where it had none and has not
        moved.
        """
        change = table.mean(head) - self.before.mean(head)
        return change / max(self.before.std(head), 1e-12) if change else 0.0


def surprises(recipe: Recipe, model: Model) -> Iterable[str]:
    """Where training differs from how pictures will be made: what is learned there may not hold."""
    sampling = recipe.sampling
    steps = recipe.evaluate.num_inference_steps
    size = (sampling.height or model.default_size[0], sampling.width or model.default_size[1])
    if size != model.default_size:
        own, ours = ("x".join(map(str, each)) for each in (model.default_size, size))
        yield f"sampling: trains at {ours}, and the model's own size is {own}; look at pictures of both"
    if sampling.num_inference_steps != steps:
        trained = sampling.num_inference_steps
        yield f"sampling: trains on {trained} denoising steps, and galleries are drawn with {steps}"
