"""Threads that read pictures and score them, in chunks and in order."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from align_gen.errors import UserError
from align_gen.galleries.items import Item
from align_gen.galleries.media import VIDEOS, UnreadablePicture, as_media, read_pixels
from align_gen.galleries.sources import Source
from align_gen.galleries.table import (
    COMBINED,
    UNCERTAINTY,
)
from align_gen.progress import ProgressCallback

if TYPE_CHECKING:
    from align_gen.reward_heads import RewardSet

CHUNK = 1024  # pictures that are kept at once

READ_AT_ONCE = 16  # by one call of a worker


@dataclass
class ScoredPicture:
    """What became of one picture."""

    row: Mapping[str, Any]
    content: str | None = None  # SHA-256 of its file
    pixels: Any = None  # uint8 (H,W,3) or (F,H,W,3), until it is scored
    values: dict[str, float] | None = None  # of the heads, and COMBINED and UNCERTAINTY
    error: str | None = None

    @property
    def prompt(self) -> str:
        return str(self.row.get("prompt", ""))

    @property
    def key(self) -> tuple[str | None, str]:
        """What its scores depend on, besides the heads."""
        return self.content, self.prompt


Known = Mapping[tuple[str | None, str], dict[str, float]]  # by ScoredPicture.key


def scored_chunks(
    source: Source,
    judges: RewardSet,
    *,
    batch_size: int = 64,
    progress: ProgressCallback | None = None,
    known: Known | None = None,
    place: int = 0,
    ranks: int = 1,
) -> Iterator[tuple[int, list[ScoredPicture]]]:
    """Numbered chunks of scored pictures, in order; of several processes, every ``ranks``-th
    chunk.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size}, want 1 or more")
    size = CHUNK if source.total is None else max(1, min(CHUNK, -(-source.total // ranks)))
    mine = (item for number, item in enumerate(source) if number // size % ranks == place)
    tell = _Told(progress, None if source.total is None or ranks > 1 else source.total)
    with _workers(judges) as workers:
        waiting = _read_ahead(mine, workers.pool, known or {}, max(2 * batch_size, READ_AT_ONCE))
        number = place
        batch_size = workers.batch_size(batch_size, source.total)
        while chunk := _scored(islice(waiting, size), workers.ask, batch_size, tell):
            yield number, chunk
            number += ranks
    tell.end()


@dataclass
class _Workers:
    """Threads to read with, and to score with where heads allow it."""

    pool: ThreadPoolExecutor
    judges: RewardSet
    count: int
    score_too: bool

    def batch_size(self, asked: int, total: int | None) -> int:
        """Of few pictures, so small that every worker has some batches, and none waits long for
        another's last.
        """
        return (
            asked
            if not self.score_too or total is None
            else min(asked, max(8, total // (4 * self.count)))
        )

    def ask(self, batch: list[ScoredPicture]) -> Future[None]:
        """Score a batch: in a worker, or here and now."""
        if self.score_too:
            return self.pool.submit(_ask, self.judges, batch)
        done: Future[None] = Future()
        _ask(self.judges, batch)
        done.set_result(None)
        return done


@contextmanager
def _workers(judges: RewardSet) -> Iterator[_Workers]:
    import torch

    cores = torch.get_num_threads()
    alone = judges.device.type == "cpu" and judges.parallel and cores > 1

    def begin() -> None:
        if alone:
            torch.set_num_threads(1)  # of this thread

    count = cores if alone else min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(count, "worker", begin)
    try:
        yield _Workers(pool, judges, count, alone)
    finally:  # also when a head raises
        pool.shutdown(cancel_futures=True)
        if alone:
            torch.set_num_threads(cores)  # what a thread sets is where threads to come begin


def _ask(judges: RewardSet, batch: list[ScoredPicture]) -> None:
    """Score pictures of one shape."""
    import numpy as np
    import torch

    with torch.no_grad():
        media = as_media(np.stack([each.pixels for each in batch])).to(judges.device)
        scores = judges(media, [each.prompt for each in batch])
    columns = {**scores.heads, COMBINED: scores.combined}
    columns |= {} if scores.uncertainty is None else {UNCERTAINTY: scores.uncertainty}
    lists = {name: column.tolist() for name, column in columns.items()}
    for place, each in enumerate(batch):
        each.values = {name: column[place] for name, column in lists.items()}
        each.pixels = None


def _scored(
    pictures: Iterable[ScoredPicture],
    ask: Callable[[list[ScoredPicture]], Future[None]],
    batch_size: int,
    tell: _Told,
) -> list[ScoredPicture]:
    """A chunk, once every batch of it is scored."""
    chunk: list[ScoredPicture] = []
    running: deque[tuple[Future[None], int]] = deque()

    def noted() -> Iterator[ScoredPicture]:
        for each in pictures:
            chunk.append(each)
            if each.pixels is not None:
                yield each
            elif each.values is not None:
                tell(1)

    def finish(most: int) -> None:
        while len(running) > most:
            future, count = running.popleft()
            future.result()
            tell(count)

    for batch in _by_shape(noted(), batch_size):
        running.append((ask(batch), len(batch)))
        finish(4)
    finish(0)
    return chunk


def _read_ahead(
    items: Iterable[Item], pool: ThreadPoolExecutor, known: Known, ahead: int
) -> Iterator[ScoredPicture]:
    """Every picture read, or why not, in order; at most `ahead` wait in memory, and one video a
    worker.
    """
    waiting: deque[Future[list[ScoredPicture]]] = deque()
    stream = iter(items)
    while True:
        while len(waiting) * READ_AT_ONCE < ahead and (part := _some(stream)):
            waiting.append(pool.submit(lambda part=part: [_read(item, known) for item in part]))  # type: ignore[misc]
        if not waiting:
            return
        yield from waiting.popleft().result()


def _some(items: Iterator[Item]) -> list[Item]:
    """The next few pictures, or one video."""
    part: list[Item] = []
    for item in items:
        part.append(item)
        if item.suffix in VIDEOS or len(part) == READ_AT_ONCE:
            break
    return part


def _read(item: Item, known: Known) -> ScoredPicture:
    found = ScoredPicture(item.row)
    try:
        content = item.read()
        found.content = hashlib.sha256(content).hexdigest()
        if (values := known.get(found.key)) is not None:
            found.values = values
        else:
            found.pixels = read_pixels(content, item.suffix)
    except UnreadablePicture as error:
        found.error = str(error)
    return found


def _by_shape(pictures: Iterable[ScoredPicture], batch_size: int) -> Iterator[list[ScoredPicture]]:
    """Batches of one shape each; a video is a batch. When many shapes fill the memory, the fullest
    batch goes early.
    """
    open_batches: dict[tuple[int, ...], list[ScoredPicture]] = {}
    for each in pictures:
        shape = each.pixels.shape
        batch = open_batches.setdefault(shape, [])
        batch.append(each)
        full = 1 if len(shape) == 4 else batch_size
        if len(batch) == full or sum(map(len, open_batches.values())) >= 4 * batch_size:
            yield open_batches.pop(max(open_batches, key=lambda shape: len(open_batches[shape])))
    yield from open_batches.values()


class _Told:
    """Progress by counts; a stream of unknown length is as long as what is done."""

    def __init__(self, progress: ProgressCallback | None, total: int | None):
        self.progress = progress
        self.total = total
        self.done = 0

    def __call__(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress("score", self.done, self.done if self.total is None else self.total, {})

    def end(self) -> None:
        """Pictures that could not be read count too."""
        if self.progress is not None and self.total is not None and self.done < self.total:
            self.progress("score", self.total, self.total, {})
