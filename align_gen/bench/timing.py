"""Clocks: works take turns, so that what slows the machine slows all, and medians are compared."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..precision import exact_float32


@dataclass(frozen=True)
class Row:
    """One line of `align-gen bench`.

    ``ratio`` is the median of seconds ÷ floor, taken round by round.
    """

    name: str
    model: str
    seconds: float  # median
    floor_seconds: float | None  # median; None where no floor is defined
    ratio: float | None
    iqr: float  # of the seconds
    images_per_second: float
    calls: dict[str, float] | None = None  # what the floor is made of

    def json(self) -> dict[str, Any]:
        return asdict(self)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of the work, what it started on an accelerator included."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


@exact_float32()
def in_turns(
    works: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every work in every round, in the precision that everything runs in."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(seconds_of(work, device))
    return found


def row(
    name: str,
    model: str,
    images: int,
    seconds: Sequence[float],
    floors: Sequence[float] | None = None,
    calls: dict[str, float] | None = None,
) -> Row:
    """Medians of what was measured."""
    middle = statistics.median(seconds)
    ratio = (
        None
        if floors is None
        else statistics.median(a / b for a, b in zip(seconds, floors, strict=True))
    )
    floor = None if floors is None else statistics.median(floors)
    return Row(name, model, middle, floor, ratio, spread(seconds), images / middle, calls)


def spread(values: Sequence[float]) -> float:
    """Interquartile range."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
