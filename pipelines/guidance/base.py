"""What a guide is: something that samples in place of plain sampling."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Generator, Tensor

from ..base import Condition, Model


class Guide(Protocol):
    """Draws media in place of ``pipelines.sample``."""

    def sample(
        self, model: Model, condition: Condition, *, generator: Sequence[Generator], **options: Any
    ) -> Tensor: ...
