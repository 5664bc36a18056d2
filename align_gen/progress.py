"""Progress of long work: a bar on a terminal, plain lines elsewhere; always on stderr."""

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from .errors import printable

# phase, done, total, and numbers to show beside them
ProgressCallback = Callable[[str, int, int, Mapping[str, Any]], None]
PLAIN_SECONDS = 30.0  # between lines where there is no terminal
BAR_WIDTH = 8  # characters, so that a line of training fits 80 columns
HEAD = "reward/"  # of a reward's mean among the numbers of a step
COMBINED = "reward/combined"
DEVIATION = "reward/std"


def silent(phase: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
    """A progress callback that shows nothing."""


class ProgressBar:
    """A progress callback: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.screen: Any = None
        self.tasks: dict[str, Any] = {}
        self.phase = ""
        self.began = 0.0  # when this phase was first heard of, and how much was done by then
        self.first = 0
        self.printed = 0.0  # when the last plain line was

    def __enter__(self) -> "ProgressBar":
        if sys.stderr.isatty():
            self.screen = _screen()
            self.screen.start()
        return self

    def __call__(self, phase: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        # Each phase has its own pace: pictures, steps, and batches take different times.
        now = time.monotonic()
        is_new = phase != self.phase
        if is_new:
            self.phase = phase
            self.began = now
            self.first = done
        left = self._left(now, done, total)
        seconds = numbers.get("seconds")
        pace = "" if seconds is None else f"{seconds:.3g} s/step"
        if self.screen is not None:
            self._draw(phase, done, total, left=left, pace=pace, note=short_note(numbers))
        elif is_new or done == total or now - self.printed >= PLAIN_SECONDS:
            self.printed = now
            words = [f"{phase} {done}/{total}", note(numbers), pace, left]
            print("  ".join(filter(None, words)), file=sys.stderr, flush=True)

    def _left(self, now: float, done: int, total: int) -> str:
        """How long the rest of the phase will take at its pace so far; empty while it is unknown.

        What was done before the phase was first heard of, by an earlier run, does not count.
        """
        if not self.first < done < total:
            return ""
        pace = (now - self.began) / (done - self.first)
        return f"{duration(pace * (total - done))} left"

    def _draw(self, phase: str, done: int, total: int, **fields: str) -> None:
        if phase not in self.tasks:
            self.tasks[phase] = self.screen.add_task(phase, total=total, **fields)
        self.screen.update(self.tasks[phase], completed=done, total=total, **fields)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.screen is not None:
            self.screen.stop()


def _screen() -> Any:
    """Rich's live display: phase, bar, count, time left, pace, and a note in the rest."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    # The note alone gives way where the terminal is narrow.
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=BAR_WIDTH),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[pace]}"),
        TextColumn("{task.fields[note]}", table_column=rest),
        console=Console(stderr=True),
        expand=True,
    )


def note(numbers: Mapping[str, Any]) -> str:
    """Rewards and loss of a step; what the rewards combine to, where there are several."""
    heads = _heads(numbers)
    words = []
    for key, value in numbers.items():
        shown = key == "loss" or (
            key.startswith(HEAD) and not (key == COMBINED and len(heads) == 1)
        )
        if shown and isinstance(value, float):
            words.append(f"{printable(key)} {value:.4g}")
    return "  ".join(words)


def short_note(numbers: Mapping[str, Any]) -> str:
    """The reward that is optimised, and the loss."""
    heads = _heads(numbers)
    reward = numbers.get(COMBINED, numbers[heads[0]] if heads else None)
    words = {"reward": reward, "loss": numbers.get("loss")}
    return "  ".join(f"{name} {value:.3g}" for name, value in words.items() if value is not None)


def _heads(numbers: Mapping[str, Any]) -> list[str]:
    """The keys of single rewards."""
    return [key for key in numbers if key.startswith(HEAD) and key not in (COMBINED, DEVIATION)]


def duration(seconds: float) -> str:
    """To the unit that matters: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
