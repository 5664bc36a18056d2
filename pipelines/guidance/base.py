"""The contract of a guide: an object that samples instead of plain sampling."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Generator, Tensor

from ..base import Condition, Model


class Guide(Protocol):
    """Draws media in the place of ``pipelines.sample``."""

    def sample(
        self, model: Model, condition: Condition, *, generator: Sequence[Generator], **options: Any
    ) -> Tensor: ...


def require_guide(guide: Any) -> None:
    """Refuse what cannot sample, as a bare reward function.

    Raises:
        ValueError: it has no method ``sample``.
    """
    if not callable(getattr(guide, "sample", None)):
        got = "a function" if hasattr(guide, "__code__") else repr(guide)
        raise ValueError(f"guide: want a guide such as guidance.BestOf(reward, n), got {got}")
