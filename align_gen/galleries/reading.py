"""Read and decode pictures ahead of their scoring, in worker threads and in order.

Memory is bounded by pixels and bytes, not by the number of pictures: what a small file claims to
hold may be large. A worker decodes its pictures up to a limit and leaves the rest to be decoded as
there is room for them.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from align_gen.galleries.formats import VIDEOS, OutOfMemory, UnreadablePicture
from align_gen.galleries.items import Item
from align_gen.galleries.media import MAX_PIXELS, pixels_of, read_pixels
from align_gen.galleries.scored import Known, ScoredPicture

READ_AT_ONCE = 16  # pictures, by one call of a worker
PIXELS_AT_ONCE = 2**23  # of all pictures that one call decodes
WAITING_BYTES = 2**26  # of pictures that wait to be decoded, where their bytes are in memory
LARGE_PIXELS = MAX_PIXELS  # of pictures left over by the calls, which are decoded at the same time


def read_ahead(
    items: Iterable[Item], pool: ThreadPoolExecutor, known: Known, ahead: int
) -> Iterator[ScoredPicture]:
    """Every picture read, or the reason why not, in order.

    At most ``ahead`` pictures wait in memory, of PIXELS_AT_ONCE in each call of a worker, beside
    LARGE_PIXELS of larger ones, or one that is larger still.
    """
    # Futures stay in the order of the items, whichever worker is done first.
    waiting: deque[tuple[Future[list[ScoredPicture]], int]] = deque()
    stream = iter(items)
    waiting_bytes = 0
    while True:
        while (
            len(waiting) * READ_AT_ONCE < ahead
            and waiting_bytes < WAITING_BYTES
            and (part := _next_items(stream))
        ):
            size = sum(len(item.content) for item in part if isinstance(item.content, bytes))
            waiting_bytes += size
            waiting.append((pool.submit(_read_all, part, known), size))
        if not waiting:
            return
        future, size = waiting.popleft()
        yield from _with_large(future.result(), pool)
        waiting_bytes -= size


def _next_items(items: Iterator[Item]) -> list[Item]:
    """The next few pictures, or one video; fewer where their bytes are many."""
    part: list[Item] = []
    size = 0
    for item in items:
        part.append(item)
        size += len(item.content) if isinstance(item.content, bytes) else 0
        if item.suffix in VIDEOS or len(part) == READ_AT_ONCE or size > WAITING_BYTES // 8:
            break
    return part


def _read_all(items: list[Item], known: Known) -> list[ScoredPicture]:
    """Pictures, decoded as far as PIXELS_AT_ONCE go."""
    room = PIXELS_AT_ONCE
    pictures = []
    for item in items:
        picture = _read(item, known, room)
        if picture.pixels is not None:
            # What was decoded, whatever the header had said.
            room -= picture.pixels.size // 3
        pictures.append(picture)
    return pictures


def _read(item: Item, known: Known, room: int) -> ScoredPicture:
    """Read a picture, and decode one of up to ``room`` pixels.

    One whose scores are known is hashed and not decoded.
    """
    picture = ScoredPicture(item.row)
    try:
        content = item.read()
        # The content and the prompt decide whether the scores are known; names may change.
        picture.content = hashlib.sha256(content).hexdigest()
        picture.values = known.get(picture.key)
        if picture.values is not None:
            return picture
        picture.size = pixels_of(content, item.suffix)
        if picture.size <= room:
            picture.pixels = read_pixels(content, item.suffix)
        else:
            picture.later = item
    except OutOfMemory:
        # Perhaps for the pictures beside it: it is tried once more, alone.
        picture.later = item
    except UnreadablePicture as error:
        picture.error = str(error)
    return picture


def _with_large(pictures: list[ScoredPicture], pool: ThreadPoolExecutor) -> Iterator[ScoredPicture]:
    """All pictures in order; those that were left over are decoded as there is room for them."""
    left_over = deque(each for each in pictures if each.later is not None)
    running: deque[Future[None]] = deque()
    used = 0
    for picture in pictures:
        if picture.later is not None:
            while left_over and (not running or used + left_over[0].size <= LARGE_PIXELS):
                used += left_over[0].size
                running.append(pool.submit(_decode, left_over.popleft()))
            running.popleft().result()
            used -= picture.size
            if picture.pixels is None and picture.error is None:
                _decode_alone(picture, running)
            picture.later = None
        yield picture


def _decode(picture: ScoredPicture) -> None:
    """Decode a picture that was left over; for want of memory, it stays as it is."""
    assert picture.later is not None
    try:
        picture.pixels = read_pixels(picture.later.read(), picture.later.suffix)
    except OutOfMemory:
        pass
    except UnreadablePicture as error:
        picture.error = str(error)


def _decode_alone(picture: ScoredPicture, running: Iterable[Future[None]]) -> None:
    """Decode a picture for which there was no memory, once the others are done."""
    for future in running:
        future.result()
    _decode(picture)
    if picture.pixels is None and picture.error is None:
        picture.error = str(OutOfMemory())
