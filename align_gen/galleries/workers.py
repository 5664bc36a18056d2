"""Worker threads of scoring: batch pictures by shape as they are read, and score them in order.

On a CPU every core has one worker, a thread that both reads pictures and runs heads: two heads at
once on one core each are faster than one head on two cores, which wait for each other after every
layer. Heads that do not allow threads, and heads on an accelerator, run one after the other in the
caller's thread, while the workers read.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from align_gen.errors import UserError
from align_gen.galleries.columns import COMBINED, UNCERTAINTY
from align_gen.galleries.formats import OutOfMemory, UnreadablePicture
from align_gen.galleries.media import as_media
from align_gen.galleries.reading import READ_AT_ONCE, read_ahead
from align_gen.galleries.scored import Known, ScoredPicture
from align_gen.progress import ProgressCallback

if TYPE_CHECKING:
    from align_gen.galleries.sources import Source
    from align_gen.reward_heads import RewardSet

CHUNK = 1024  # pictures that are saved at once
RUNNING = 4  # batches that may wait for their scores at once
BATCH_PIXELS = 2**24  # of a batch, or of one picture: 192 MB as float32


def scored_chunks(
    source: Source,
    rewards: RewardSet,
    *,
    batch_size: int = 64,
    progress: ProgressCallback | None = None,
    known: Known | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[tuple[int, list[ScoredPicture]]]:
    """Numbered chunks of scored pictures, in order.

    Args:
        source: of the pictures.
        rewards: give the scores.
        batch_size: pictures that a head is given at once, of one shape.
        progress: called as scores arrive.
        known: scores that are not computed again.
        rank: of this process, which scores every ``ranks``-th chunk.
        ranks: the number of processes.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size}, want 1 or more")
    # Few pictures are cut so that every process has a chunk.
    size = CHUNK if source.total is None else max(1, min(CHUNK, -(-source.total // ranks)))
    # Whole chunks go to a process, so that their numbers alone give the order of the file. Columns
    # that are only known as they come may have the name of a reward.
    mine = (
        item.renamed(rewards.heads)
        for number, item in enumerate(source)
        if number // size % ranks == rank
    )
    # With several processes, this one's share is not worked out: progress counts without an end.
    total = None if source.total is None or ranks > 1 else source.total
    count = _Counter(progress, total)
    with _workers(rewards) as workers:
        # Two batches ahead: one is being scored while the next one is read.
        ahead = max(2 * batch_size, READ_AT_ONCE)
        waiting = read_ahead(mine, workers.pool, known or {}, ahead)
        number = rank
        batch_size = workers.batch_size(batch_size, source.total)
        while chunk := _score_chunk(islice(waiting, size), workers.score, batch_size, count):
            yield number, chunk
            number += ranks
    count.end()


# --- the threads ----------------------------------------------------------------------------------


@dataclass
class _Workers:
    """Threads that read pictures and, where the heads allow it, score them too."""

    pool: ThreadPoolExecutor
    rewards: RewardSet
    count: int
    score_too: bool

    def batch_size(self, requested: int, total: int | None) -> int:
        """A batch size at which every worker has some batches.

        Of few pictures the batches are so small that no worker waits long for another's last one.
        """
        if not self.score_too or total is None:
            return requested
        return min(requested, max(8, total // (4 * self.count)))

    def score(self, batch: list[ScoredPicture]) -> Future[None]:
        """Score a batch, in a worker or in the caller's thread."""
        if self.score_too:
            return self.pool.submit(_score_batch, self.rewards, batch)
        done: Future[None] = Future()
        _score_batch(self.rewards, batch)
        done.set_result(None)
        return done


@contextmanager
def _workers(rewards: RewardSet) -> Iterator[_Workers]:
    import torch

    cores = torch.get_num_threads()
    score_too = rewards.device.type == "cpu" and rewards.parallel and cores > 1

    def begin() -> None:
        # torch's setting is the thread's own: each worker computes on one core.
        if score_too:
            torch.set_num_threads(1)

    count = cores if score_too else min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(count, "worker", begin)
    try:
        yield _Workers(pool, rewards, count, score_too)
    finally:
        # Also when a head raises. What a thread sets is where threads to come begin.
        pool.shutdown(cancel_futures=True)
        if score_too:
            torch.set_num_threads(cores)


# --- scoring --------------------------------------------------------------------------------------


def _score_batch(rewards: RewardSet, batch: list[ScoredPicture]) -> None:
    """Score pictures of one shape; their pixels are dropped."""
    import numpy as np
    import torch

    with torch.no_grad():
        pixels = batch[0].pixels[None] if len(batch) == 1 else np.stack([p.pixels for p in batch])
        try:
            scores = rewards(as_media(pixels).to(rewards.device), [each.prompt for each in batch])
        except (MemoryError, RuntimeError) as error:
            if not (_is_large(batch) and _wants_memory(error)):
                raise
            # Such a picture fills a batch, and was scored alone: its row is lost, and no other.
            _give_up(batch, OutOfMemory())
            return
    columns = {**scores.heads, COMBINED: scores.combined}
    if scores.uncertainty is not None:
        columns[UNCERTAINTY] = scores.uncertainty
    lists = {name: column.tolist() for name, column in columns.items()}
    for number, each in enumerate(batch):
        each.values = {name: column[number] for name, column in lists.items()}
        each.pixels = None


def _is_large(batch: list[ScoredPicture]) -> bool:
    """Whether a batch is one picture or video that is more than a batch by itself."""
    return len(batch) == 1 and _pixels_in(batch[0]) > BATCH_PIXELS


def _pixels_in(picture: ScoredPicture) -> int:
    return int(picture.pixels.size) // 3


def _wants_memory(error: BaseException) -> bool:
    # torch has a class of its own for a GPU alone.
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said


def _give_up(batch: list[ScoredPicture], reason: UnreadablePicture) -> None:
    for each in batch:
        each.error = str(reason)
        each.pixels = None


def _score_chunk(
    pictures: Iterable[ScoredPicture],
    score: Callable[[list[ScoredPicture]], Future[None]],
    batch_size: int,
    count: _Counter,
) -> list[ScoredPicture]:
    """A chunk in the order of ``pictures``, once every batch of it is scored."""
    chunk: list[ScoredPicture] = []
    running: deque[tuple[Future[None], int]] = deque()

    def unscored() -> Iterator[ScoredPicture]:
        for each in pictures:
            chunk.append(each)
            if each.pixels is not None:
                yield each
            elif each.values is not None:
                count.add(1)

    def finish(most: int) -> None:
        while len(running) > most:
            future, pictures_in_batch = running.popleft()
            future.result()
            count.add(pictures_in_batch)

    for batch in _by_shape(unscored(), batch_size):
        # Only so many batches wait at once, as each holds its pictures in memory; a large picture
        # is scored alone.
        alone = _is_large(batch)
        finish(0 if alone else RUNNING)
        running.append((score(batch), len(batch)))
        finish(0 if alone else RUNNING)
    finish(0)
    return chunk


def _by_shape(pictures: Iterable[ScoredPicture], batch_size: int) -> Iterator[list[ScoredPicture]]:
    """Batches of one shape each, of at most BATCH_PIXELS; a video is a batch of its own.

    When many shapes fill the memory, the fullest batch goes early.
    """
    open_batches: dict[tuple[int, ...], list[ScoredPicture]] = {}

    def limit(shape: tuple[int, ...]) -> int:
        if len(shape) == 4:
            return 1
        return max(1, min(batch_size, BATCH_PIXELS // (shape[0] * shape[1])))

    def fullness(shape: tuple[int, ...]) -> float:
        return len(open_batches[shape]) / limit(shape)

    waiting = 0
    pixels = 0
    for each in pictures:
        shape = each.pixels.shape
        open_batches.setdefault(shape, []).append(each)
        waiting += 1
        pixels += _pixels_in(each)
        if fullness(shape) < 1 and waiting < 4 * batch_size and pixels < 4 * BATCH_PIXELS:
            continue
        # A full batch, or the fullest where too much is waiting.
        batch = open_batches.pop(max(open_batches, key=fullness))
        waiting -= len(batch)
        pixels -= sum(map(_pixels_in, batch))
        yield batch
    yield from open_batches.values()


class _Counter:
    """Counts scored pictures for a progress callback.

    A stream of unknown length is said to be as long as what is done.
    """

    def __init__(self, progress: ProgressCallback | None, total: int | None):
        self.progress = progress
        self.total = total
        self.done = 0

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress("score", self.done, self.done if self.total is None else self.total, {})

    def end(self) -> None:
        """Report the whole: pictures that could not be read count too."""
        if self.progress is not None and self.total is not None and self.done < self.total:
            self.progress("score", self.total, self.total, {})
