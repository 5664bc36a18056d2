"""Scoring: pictures are read ahead while heads run, batched by shape, and kept chunk by chunk, lest
a kill lose much.

On a CPU every core has a lane of its own, one thread that reads pictures and runs heads: two heads
at once on one core each are faster than one head on two, which wait for each other after every
layer. Heads that are not made for threads, and heads on an accelerator, run one after the other in
the caller's thread, while the lanes read.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.errors import UserError, writing_to
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.sources import Source, open_source
from align_gen.galleries.table import (
    COMBINED,
    CONTENT,
    UNCERTAINTY,
    ScoresTable,
    check_names,
    plain,
    save_parts,
    versions,
)
from align_gen.precision import exact_float32
from align_gen.progress import ProgressCallback

from .workers import ScoredPicture, scored_chunks

if TYPE_CHECKING:
    from accelerate import Accelerator

    from align_gen.reward_heads import RewardSet

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
        make(chunk)
        for _, chunk in scored_chunks(opened, judges, batch_size=batch_size, progress=progress)
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
    for number, chunk in scored_chunks(
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


# --- tables ---------------------------------------------------------------------------------------


class _Tables:
    """Makes the tables of one scoring: what is the same in all of them is found out once."""

    def __init__(self, judges: RewardSet, folder: Path | None):
        self.heads = list(judges.heads)
        self.provenance = {name: plain(head.provenance()) for name, head in judges.heads.items()}
        self.combination = judges.rule.provenance()
        self.versions, self.folder = versions(), None if folder is None else str(folder)

    def __call__(self, chunk: Sequence[ScoredPicture]) -> ScoresTable:
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
