"""One measurement of a law, and the ways to make one."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Direction = Literal["at_most", "above", ""]


@dataclass(frozen=True)
class Finding:
    """One measurement: a figure, and the limit that it must keep.

    Both are numbers where they can be, else words. ``direction``: a passing figure is at most the
    limit, or above it; "" where the limit is words. ``law``: the key of the law in ``LAWS``.
    """

    name: str
    passed: bool
    figure: float | str
    limit: float | str
    direction: Direction = ""
    law: str = ""

    @property
    def bound(self) -> str:
        """The limit as a table shows it: "≤ 3e-05", "> 0", or its words."""
        if isinstance(self.limit, str):
            return self.limit
        sign = {"at_most": "≤ ", "above": "> ", "": ""}[self.direction]
        return f"{sign}{self.limit:.3g}"


def below(name: str, figure: float, limit: float) -> Finding:
    """Passed when the figure is no larger than the limit."""
    return Finding(name, figure <= limit, figure, limit, "at_most")


def above(name: str, figure: float, limit: float) -> Finding:
    """Passed when the figure is larger than the limit."""
    return Finding(name, figure > limit, figure, limit, "above")


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors' elements; infinite where their shapes differ."""
    if a.shape != b.shape:
        return math.inf
    return (a.float() - b.float()).abs().max().item()
