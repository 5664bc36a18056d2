"""Names in the folder of a run. Nothing is written here, and no file is read."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

RECIPE = "recipe.yaml"
CHECKPOINT = re.compile("step-([0-9]{6,18})")


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files below ``path``."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def recipe(self) -> Path:
        return self.path / RECIPE

    @property
    def inputs(self) -> Path:
        """Sums of the files and the code that the recipe names."""
        return self.path / "inputs.json"

    @property
    def lock(self) -> Path:
        """Held by the process that writes here."""
        return self.path / ".lock"

    @property
    def state(self) -> Path:
        """Which checkpoint is the newest, for whoever looks."""
        return self.path / "state.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def before(self) -> Path:
        """The gallery drawn before training."""
        return self.path / "before"

    @property
    def final(self) -> Path:
        """The gallery drawn after training."""
        return self.samples("final")

    def samples(self, name: str) -> Path:
        """A gallery drawn on the way: ``step-000010``, ``final``."""
        return self.path / "samples" / name

    def galleries(self) -> list[Path]:
        """The galleries that are there: the one before training, and those drawn on the way."""
        found = [self.before, *sorted(self.final.parent.glob("*"))]
        return [folder for folder in found if folder.is_dir()]

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def saved_steps(self) -> list[int]:
        """The steps that have a folder of a checkpoint's very name, from the first to the last."""
        try:
            entries = list(os.scandir(self.checkpoints))
        except OSError:
            return []
        steps = (_step(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False))
        return sorted(step for step in steps if step is not None)

    @property
    def best(self) -> Path:
        """The export at the best held-out measurement."""
        return self.path / "best"

    @property
    def export(self) -> Path:
        """The export at the end."""
        return self.path / "export"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def summary(self) -> Path:
        """The figures of a demo."""
        return self.path / "summary.json"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.recipe.is_file()


def _step(name: str) -> int | None:
    """The step in a checkpoint's name: step-000010; None for any other, a copy's among them."""
    match = CHECKPOINT.fullmatch(name)
    step = int(match[1]) if match else None
    return step if step is not None and name == f"step-{step:06d}" else None
