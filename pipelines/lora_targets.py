"""Which layers get a LoRA: their names, or their last parts, in which ``*`` stands for any letters.

No regular expressions: a recipe is someone else's, and some take longer than anyone waits.
"""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adaptation of every trainable component (Hu et al. 2021), by peft.

    Attributes:
        rank: of the update B A, from 1.
        alpha: the update is alpha / rank B A x; None: the rank, so that it is B A x.
        target_modules: names of layers, or their last parts; "*" stands for any letters; None: the
            family's default.
    """

    rank: int
    alpha: float | None = None
    target_modules: str | Sequence[str] | None = None


def require_names(names: Sequence[str]) -> None:
    """Refuse a regular expression: some take longer than anyone waits, on names of any model."""
    for name in names:
        if not re.fullmatch(r"[\w.*\-]+", name):
            raise ValueError(
                f"lora target_modules: {name!r}: want names of layers, as to_q, where * stands "
                "for any letters; regular expressions are not taken"
            )


def layers_named(module: nn.Module, names: Sequence[str]) -> list[str]:
    """Names for peft: as they are, or, of one with ``*``, every layer's whole name that it fits."""
    layers = [name for name, layer in module.named_modules() if not [*layer.children()]]
    found: list[str] = []
    for name in names:
        found += fnmatch.filter(layers, name) or [name] if "*" in name else [name]
    return found
