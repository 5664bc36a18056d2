"""Names in the folder of a run. Nothing is read or written here."""

from dataclasses import dataclass
from pathlib import Path

RECIPE = "recipe.yaml"


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

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

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
