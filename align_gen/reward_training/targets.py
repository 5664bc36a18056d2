"""What the pairs say: which side is better, how sure that is, and which pairs are held out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..galleries.formats import VIDEOS
from ..losses.preference import FIRST
from ..pipelines.seeding import generator

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Targets:
    """What is known of P pairs in K dimensions."""

    labels: Tensor  # (P, K): FIRST, TIE, SECOND, or NaN where nobody knows
    wrong: Tensor  # (P, 1): the chance that a label is wrong
    margin: Tensor  # (P, 1): the lead that the better side should have

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        dimensions: Sequence[str],
        smoothing: float | Literal["votes"],
        margin: str | None,
    ) -> "Targets":
        """Read targets from the rows' columns; UserError where a named column holds no number."""
        labels = [
            [_label(row.get(f"label/{name}", row.get("label", FIRST))) for name in dimensions]
            for row in rows
        ]
        # Votes are for the better side: what is missing to 1 was for the other.
        if smoothing == "votes":
            wrong = [1 - _column(row, "votes", i, 1.0) for i, row in enumerate(rows)]
        else:
            wrong = [smoothing] * len(rows)
        if margin is None:
            leads = [0.0] * len(rows)
        else:
            leads = [_column(row, margin, i, math.inf) for i, row in enumerate(rows)]
        return cls(
            torch.tensor(labels), torch.tensor(wrong).float()[:, None], torch.tensor(leads)[:, None]
        )

    def at(self, index: Tensor, device: torch.device) -> "Targets":
        """Targets of the pairs numbered in ``index`` (B,), on a device."""
        labels = self.labels[index].to(device)
        wrong = self.wrong[index].to(device)
        margin = self.margin[index].to(device)
        return Targets(labels, wrong, margin)


def kind_of(rows: Sequence[Row]) -> Literal["image", "video"]:
    """Whether the pairs are of pictures or of videos, judging by the first one."""
    if not rows:
        raise UserError("pairs: none to learn from")
    first = rows[0]["chosen"]
    if isinstance(first, Tensor):
        return "video" if first.ndim == 4 else "image"
    return "video" if Path(first.name).suffix.lower() in VIDEOS else "image"


def split(rows: Sequence[Row], held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the pairs to learn from and of the held-out ones; no prompt is on both sides.

    ``held_out``: share of the prompts. At least one prompt is held out, and one learned from.
    """
    # Sorted, so that the order of the rows does not decide which prompts are held out.
    prompts = sorted({row["prompt"] for row in rows})
    if len(prompts) < 2:
        raise UserError(f"pairs: all of the prompt {prompts[0]!r}; want several, to hold some out")
    count = min(max(1, round(held_out * len(prompts))), len(prompts) - 1)
    order = torch.randperm(len(prompts), generator=generator(seed, "held out")).tolist()
    held = {prompts[index] for index in order[:count]}
    inside = torch.tensor([row["prompt"] in held for row in rows])
    return torch.nonzero(~inside)[:, 0], torch.nonzero(inside)[:, 0]


def _label(value: object) -> float:
    """A row's label; NaN for anything that is no number: nobody knows."""
    return float(value) if isinstance(value, int | float) else math.nan


def _column(row: Row, name: str, index: int, highest: float) -> float:
    """A number from a named column, in [0, highest] and finite; UserError names the pair."""
    value = row.get(name)
    number = _label(value) if not isinstance(value, bool) else math.nan
    if 0 <= number <= highest and number != math.inf:
        return number
    bound = "" if highest > 1 else " to 1"
    raise UserError(f"pair {index}: {name} is {value!r}, want a number from 0{bound}")
