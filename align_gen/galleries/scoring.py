"""Scoring: pictures are read ahead while heads run, batched by shape, and kept chunk by chunk, lest
a kill lose much.

On a CPU every core has a lane of its own, one thread that reads pictures and runs heads: two heads
at once on one core each are faster than one head on two, which wait for each other after every
layer. Heads that are not made for threads, and heads on an accelerator, run one after the other in
the caller's thread, while the lanes read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.errors import UserError, writing_to
from align_gen.galleries.gallery import VIDEOS, Gallery, UnreadablePicture, as_media, read_pixels
from align_gen.galleries.sources import Item, Source, open_source
from align_gen.galleries.table import (
    COMBINED,
    CONTENT,
    UNCERTAINTY,
    ScoresTable,
    check_names,
    save_parts,
    versions,
)
from align_gen.precision import exact_float32
from align_gen.progress import ProgressCallback

if TYPE_CHECKING:
    from accelerate import Accelerator

    from align_gen.reward_heads import RewardSet

CHUNK = 1024  # pictures that are kept at once
READ_AT_ONCE = 16  # by one call of a lane
PART = "[0-9]*.parquet"


@dataclass
class Summary:
    """What a scored file holds, without holding it."""

    means: dict[str, float]  # of each head; NaN where no picture could be read
    pictures: int
    failed: list[tuple[str, str]]  # file, reason

    @classmethod
    def of(cls, tables: Iterable[ScoresTable]) -> Summary:
        sums: dict[str, float] = {}
        pictures, failed = 0, []
        for table in tables:
            pictures += len(table.rows)
            rows = zip(table.rows, table.errors, strict=True)
            failed += [
                (str(row["file_name"]), reason) for row, reason in rows if reason is not None
            ]
            for name, column in table.heads.items():
                sums[name] = sums.get(name, 0.0) + math.fsum(
                    value for value in column if value is not None
                )
        read = pictures - len(failed)
        return cls(
            {name: total / read if read else math.nan for name, total in sums.items()},
            pictures,
            failed,
        )


@dataclass
class Judged:
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


Known = Mapping[tuple[str | None, str], dict[str, float]]  # by Judged.key


@exact_float32()
def score(
    source: str | Path | Gallery,
    rewards: RewardSet | Sequence[Any] | Mapping[str, Any],
    *,
    batch_size: int = 64,
    strict: bool = False,
    progress: ProgressCallback | None = None,
) -> ScoresTable:
    """Give every picture of a gallery, or of anything that ``open_source`` opens, to every head.

    Rows keep their order; one without a prompt is scored with "". An unreadable picture becomes a
    null row with the reason; with `strict` it is a UserError once all are scored, which names the
    first. `progress` after each batch.
    """
    opened, judges = _opened(source, rewards)
    make = _Tables(judges, opened.folder)
    parts = [
        make(chunk) for _, chunk in judged(opened, judges, batch_size=batch_size, progress=progress)
    ]
    table = ScoresTable.join(parts) if parts else make([])
    failed = [index for index, reason in enumerate(table.errors) if reason is not None]
    if failed and strict:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        name = table.rows[failed[0]]["file_name"]
        where = name if opened.folder is None else opened.folder / str(name)
        raise UserError(f"{where}: {table.errors[failed[0]]}{more}; want every picture readable")
    return table


@exact_float32()
def score_file(
    source: str | Path | Gallery,
    rewards: RewardSet | Sequence[Any] | Mapping[str, Any],
    out: Path,
    *,
    batch_size: int = 64,
    progress: ProgressCallback | None = None,
    crew: Accelerator | None = None,
) -> Summary | None:
    """Score into a file, in memory that does not grow with the number of pictures; None from all
    processes but one.

    Each chunk is kept beside ``out`` as soon as it is scored. What an earlier call kept, finished
    or killed, is not scored again where picture, prompt and heads are the same. A ``crew`` of
    processes shares the chunks.
    """
    opened, judges = _opened(source, rewards)
    parts = out.with_name(f".{out.name}.parts")
    make = _Tables(judges, opened.folder)
    place, ranks = (0, 1) if crew is None else (crew.process_index, crew.num_processes)
    wait = (lambda: None) if crew is None else crew.wait_for_everyone
    known = _known(out, parts, make)
    wait()  # all have read what there was
    if place == 0:
        _begin(out, parts)
    wait()
    for number, chunk in judged(
        opened,
        judges,
        batch_size=batch_size,
        progress=progress,
        known=known,
        place=place,
        ranks=ranks,
    ):
        make(chunk).save(parts / f"{number:06d}.parquet")
    wait()
    if place:
        return None
    files = sorted(parts.glob(PART))

    def tables() -> Iterator[ScoresTable]:
        return map(make.load, files) if files else iter([make([])])

    save_parts(tables, out)
    summary = Summary.of(tables())
    shutil.rmtree(parts, ignore_errors=True)
    return summary


def judged(
    source: Source,
    judges: RewardSet,
    *,
    batch_size: int = 64,
    progress: ProgressCallback | None = None,
    known: Known | None = None,
    place: int = 0,
    ranks: int = 1,
) -> Iterator[tuple[int, list[Judged]]]:
    """Numbered chunks of scored pictures, in order; of several processes, every ``ranks``-th
    chunk.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size}, want 1 or more")
    size = CHUNK if source.total is None else max(1, min(CHUNK, -(-source.total // ranks)))
    mine = (item for number, item in enumerate(source) if number // size % ranks == place)
    tell = _Told(progress, None if source.total is None or ranks > 1 else source.total)
    with _lanes(judges) as lanes:
        waiting = _read_ahead(mine, lanes.pool, known or {}, max(2 * batch_size, READ_AT_ONCE))
        number = place
        batch_size = lanes.batch_size(batch_size, source.total)
        while chunk := _scored(islice(waiting, size), lanes.ask, batch_size, tell):
            yield number, chunk
            number += ranks
    tell.end()


@dataclass
class _Lanes:
    """Threads to read with, and to score with where heads allow it."""

    pool: ThreadPoolExecutor
    judges: RewardSet
    count: int
    score_too: bool

    def batch_size(self, asked: int, total: int | None) -> int:
        """Of few pictures, so small that every lane has some batches, and none waits long for
        another's last.
        """
        return (
            asked
            if not self.score_too or total is None
            else min(asked, max(8, total // (4 * self.count)))
        )

    def ask(self, batch: list[Judged]) -> Future[None]:
        """Score a batch: in a lane, or here and now."""
        if self.score_too:
            return self.pool.submit(_ask, self.judges, batch)
        done: Future[None] = Future()
        _ask(self.judges, batch)
        done.set_result(None)
        return done


@contextmanager
def _lanes(judges: RewardSet) -> Iterator[_Lanes]:
    import torch

    cores = torch.get_num_threads()
    alone = judges.device.type == "cpu" and judges.parallel and cores > 1

    def begin() -> None:
        if alone:
            torch.set_num_threads(1)  # of this thread

    count = cores if alone else min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(count, "lane", begin)
    try:
        yield _Lanes(pool, judges, count, alone)
    finally:  # also when a head raises
        pool.shutdown(cancel_futures=True)
        if alone:
            torch.set_num_threads(cores)  # what a thread sets is where threads to come begin


def _ask(judges: RewardSet, batch: list[Judged]) -> None:
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
    pictures: Iterable[Judged],
    ask: Callable[[list[Judged]], Future[None]],
    batch_size: int,
    tell: _Told,
) -> list[Judged]:
    """A chunk, once every batch of it is scored."""
    chunk: list[Judged] = []
    running: deque[tuple[Future[None], int]] = deque()

    def noted() -> Iterator[Judged]:
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
) -> Iterator[Judged]:
    """Every picture read, or why not, in order; at most `ahead` wait in memory, and one video a
    lane.
    """
    waiting: deque[Future[list[Judged]]] = deque()
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


def _read(item: Item, known: Known) -> Judged:
    found = Judged(item.row)
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


def _by_shape(pictures: Iterable[Judged], batch_size: int) -> Iterator[list[Judged]]:
    """Batches of one shape each; a video is a batch. When many shapes fill the memory, the fullest
    batch goes early.
    """
    open_batches: dict[tuple[int, ...], list[Judged]] = {}
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


# --- tables ---------------------------------------------------------------------------------------


class _Tables:
    """Makes the tables of one scoring: what is the same in all of them is found out once."""

    def __init__(self, judges: RewardSet, folder: Path | None):
        self.heads = list(judges.heads)
        self.provenance = {name: plain(head.provenance()) for name, head in judges.heads.items()}
        self.combination = judges.rule.provenance()
        self.versions, self.folder = versions(), None if folder is None else str(folder)

    def __call__(self, chunk: Sequence[Judged]) -> ScoresTable:
        values = [each.values or {} for each in chunk]
        own: dict[str, list[Any]] = {COMBINED: [each.get(COMBINED) for each in values]}
        if any(UNCERTAINTY in each for each in values):
            own[UNCERTAINTY] = [each.get(UNCERTAINTY) for each in values]
        own[CONTENT] = [each.content for each in chunk]
        heads = {name: [each.get(name) for each in values] for name in self.heads}
        rows = [dict(each.row) for each in chunk]
        errors = [each.error for each in chunk]
        return ScoresTable(
            rows, heads, errors, self.provenance, self.versions, self.folder, own, self.combination
        )

    def load(self, file: Path) -> ScoresTable:
        """A part, with the gallery as it was named."""
        table = ScoresTable.load(file)
        table.folder = self.folder
        return table

    def fits(self, table: ScoresTable) -> bool:
        """Whether its scores would come out the same today."""
        theirs = (table.provenance, table.combination, table.versions)
        return theirs == (self.provenance, self.combination, self.versions) and CONTENT in table.own

    def values(self, table: ScoresTable) -> dict[tuple[str | None, str], dict[str, float]]:
        """Its scores by picture and prompt."""
        columns = {
            **table.heads,
            **{name: table.own[name] for name in (COMBINED, UNCERTAINTY) if name in table.own},
        }
        found = {}
        for place, row in enumerate(table.rows):
            if table.errors[place] is None:
                key = (table.own[CONTENT][place], str(row.get("prompt", "")))
                found[key] = {
                    name: column[place]
                    for name, column in columns.items()
                    if column[place] is not None
                }
        return found


def _known(out: Path, parts: Path, make: _Tables) -> dict[tuple[str | None, str], dict[str, float]]:
    """What earlier calls scored, by the same heads of the same versions; a file that cannot be read
    knows nothing.
    """
    found: dict[tuple[str | None, str], dict[str, float]] = {}
    for file in (out, *sorted(parts.glob("*.parquet"))):
        try:
            table = ScoresTable.load(file)
        except UserError:
            continue
        if make.fits(table):
            found |= make.values(table)
    return found


def _begin(out: Path, parts: Path) -> None:
    """Put an earlier call's parts aside, so that this one's are told from them; both are known to
    the next.
    """
    with writing_to(out):
        parts.mkdir(parents=True, exist_ok=True)
        for file in sorted(parts.glob(PART)):
            file.rename(parts / f"known-{sum(1 for _ in parts.iterdir())}-{file.name}")


def plain(value: Any) -> Any:
    """As a JSON file gives it back."""
    return json.loads(json.dumps(value, default=str))


def _opened(
    source: str | Path | Gallery, rewards: RewardSet | Sequence[Any] | Mapping[str, Any]
) -> tuple[Source, RewardSet]:
    """The source, and the rewards as a set that needs no more than pictures and prompts; UserError
    otherwise.
    """
    from align_gen.reward_heads import reward_set

    opened = open_source(source)
    try:
        judges = reward_set([rewards] if isinstance(rewards, str) else rewards)
        judges.require(())
    except ValueError as error:
        raise UserError(str(error)) from error
    check_names([dict.fromkeys(opened.columns)], judges.heads)
    return opened, judges
