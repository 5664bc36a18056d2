"""Progress of long work: a bar on a terminal, plain lines elsewhere; always on stderr."""

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

# phase, done, total, and numbers to show beside them
ProgressCallback = Callable[[str, int, int, Mapping[str, Any]], None]
PLAIN_SECONDS = 30.0  # between lines where there is no terminal


def silent(phase: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
    """A progress callback that shows nothing."""


class ProgressBar:
    """A progress callback: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.tasks: dict[str, Any] = {}
        self.phase = ""
        self.began, self.spoken, self.first = 0.0, 0.0, 0

    def __enter__(self) -> "ProgressBar":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description:12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self.bar = Bar(
                *columns,
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self.bar.start()
        return self

    def __call__(self, phase: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        shown = {
            key: value
            for key, value in numbers.items()
            if key.startswith("reward/") or key == "loss"
        }
        note = "  ".join(
            f"{key} {value:.4g}" for key, value in shown.items() if isinstance(value, float)
        )
        if self.bar is not None:
            if phase not in self.tasks:
                self.tasks[phase] = self.bar.add_task(phase, total=total, note="")
            self.bar.update(self.tasks[phase], completed=done, total=total, note=note)
            return
        now = time.monotonic()
        new = phase != self.phase
        if new:
            self.phase = phase
            self.began = now
            self.first = done
        if new or done == total or now - self.spoken >= PLAIN_SECONDS:
            self.spoken = now
            left = (
                (now - self.began) / (done - self.first) * (total - done)
                if self.first < done < total
                else None
            )
            told = [
                f"{phase} {done}/{total}",
                note,
                "" if left is None else f"{duration(left)} left",
            ]
            print("  ".join(filter(None, told)), file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()


def duration(seconds: float) -> str:
    """To the unit that matters: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
