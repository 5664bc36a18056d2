"""Early stopping: held-out rewards that fall, and the best measurement so far."""

import logging
from dataclasses import dataclass, field
from typing import Any

from ..galleries.table import ScoresTable
from ..reward_heads.base import label
from .recipe import Recipe

log = logging.getLogger("align_gen")
FALLEN = 0.25  # standard deviations over pictures, before


@dataclass
class EarlyStopping:
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
    last_step: int | None = field(default=None, compare=False)

    @classmethod
    def of(cls, recipe: Recipe, before: ScoresTable, progress: dict[str, Any]) -> "EarlyStopping":
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

    def update(self, step: int, table: ScoresTable) -> dict[str, float]:
        """Take in a measurement and return its metrics; warns when a held-out reward has fallen.

        A step counts once: where a run stops, its end is measured again.
        """
        if step == self.last_step:
            return {}
        self.last_step = step
        rises = {name: self.change_in_std(name, table) for name in self.held_out}
        fallen = {name: rise for name, rise in rises.items() if rise < -FALLEN}
        self.worse = self.worse + 1 if fallen else 0
        average = sum(rises.values()) / max(len(rises), 1)
        if average > self.best_rise:
            self.best_step, self.best_rise = step, average
        if fallen:
            heads = ", ".join(f"{name} by {-rise:.2f}" for name, rise in fallen.items())
            then = f"; the run stops here (stop.patience: {self.patience})" if self.stop else ""
            log.warning(
                "step %d: held out and fallen, in standard deviations: %s: reward hacking?%s",
                step,
                heads,
                then,
            )
        return {"eval/fallen": float(len(fallen))} if self.held_out else {}

    def change_in_std(self, head: str, table: ScoresTable) -> float:
        """Change of a head's mean, in standard deviations before.

        0 where the head had no deviation and has not moved.
        """
        change = table.mean(head) - self.before.mean(head)
        return change / max(self.before.std(head), 1e-12) if change else 0.0
