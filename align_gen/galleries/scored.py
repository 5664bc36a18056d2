"""One picture on its way through scoring, from its row to its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align_gen.galleries.items import Item


@dataclass
class ScoredPicture:
    """One picture on its way through scoring.

    Attributes:
        row: of the gallery.
        content: SHA-256 of the file.
        pixels: uint8 (H,W,3) or (F,H,W,3), until it is scored.
        values: scores by head, and COMBINED and UNCERTAINTY.
        error: why the picture could not be read.
        later: the item, where it is still to be decoded.
        size: pixels that decoding it will give.
    """

    row: Mapping[str, Any]
    content: str | None = None
    pixels: Any = None
    values: dict[str, float] | None = None
    error: str | None = None
    later: Item | None = field(default=None, repr=False)
    size: int = 0

    @property
    def prompt(self) -> str:
        return str(self.row.get("prompt", ""))

    @property
    def key(self) -> tuple[str | None, str]:
        """What the scores depend on, besides the heads: the file's content and the prompt."""
        return self.content, self.prompt


Known = Mapping[tuple[str | None, str], dict[str, float]]  # scores by ScoredPicture.key
