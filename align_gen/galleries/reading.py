"""Read and decode pictures ahead of their scoring, in worker threads and in order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from align_gen.galleries.formats import VIDEOS, UnreadablePicture
from align_gen.galleries.items import Item
from align_gen.galleries.media import read_pixels

READ_AT_ONCE = 16  # pictures, by one call of a worker


@dataclass
class ScoredPicture:
    """One picture on its way through scoring.

    Attributes:
        row: of the gallery.
        content: SHA-256 of the file.
        pixels: uint8 (H,W,3) or (F,H,W,3), until it is scored.
        values: scores by head, and COMBINED and UNCERTAINTY.
        error: why the picture could not be read.
    """

    row: Mapping[str, Any]
    content: str | None = None
    pixels: Any = None
    values: dict[str, float] | None = None
    error: str | None = None

    @property
    def prompt(self) -> str:
        return str(self.row.get("prompt", ""))

    @property
    def key(self) -> tuple[str | None, str]:
        """What the scores depend on, besides the heads: the file's content and the prompt."""
        return self.content, self.prompt


Known = Mapping[tuple[str | None, str], dict[str, float]]  # scores by ScoredPicture.key


def read_ahead(
    items: Iterable[Item], pool: ThreadPoolExecutor, known: Known, ahead: int
) -> Iterator[ScoredPicture]:
    """Every picture read, or the reason why not, in order.

    At most ``ahead`` pictures wait in memory, and one video per worker.
    """
    # Futures stay in the order of the items, whichever worker is done first.
    waiting: deque[Future[list[ScoredPicture]]] = deque()
    stream = iter(items)
    while True:
        while len(waiting) * READ_AT_ONCE < ahead and (part := _next_items(stream)):
            waiting.append(pool.submit(_read_all, part, known))
        if not waiting:
            return
        yield from waiting.popleft().result()


def _next_items(items: Iterator[Item]) -> list[Item]:
    """The next few pictures, or one video."""
    part: list[Item] = []
    for item in items:
        part.append(item)
        if item.suffix in VIDEOS or len(part) == READ_AT_ONCE:
            break
    return part


def _read_all(items: list[Item], known: Known) -> list[ScoredPicture]:
    return [_read(item, known) for item in items]


def _read(item: Item, known: Known) -> ScoredPicture:
    """Read a picture; one whose scores are known is hashed and not decoded."""
    picture = ScoredPicture(item.row)
    try:
        content = item.read()
        # The content and the prompt decide whether the scores are known; names may change.
        picture.content = hashlib.sha256(content).hexdigest()
        picture.values = known.get(picture.key)
        if picture.values is None:
            picture.pixels = read_pixels(content, item.suffix)
    except UnreadablePicture as error:
        picture.error = str(error)
    return picture
