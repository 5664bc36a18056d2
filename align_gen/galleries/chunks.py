"""The chunks of a scoring as tables: made, saved beside the file, and known to the next call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.errors import UserError, writing_to
from align_gen.galleries.reading import ScoredPicture
from align_gen.galleries.table import (
    COMBINED,
    CONTENT,
    UNCERTAINTY,
    ScoresTable,
    plain,
    versions,
)

if TYPE_CHECKING:
    from align_gen.reward_heads import RewardSet

PART = "[0-9]*.parquet"  # names of chunks beside the file that is being written


class Tables:
    """Makes the tables of one scoring. What all of them share is computed once."""

    def __init__(self, rewards: RewardSet, folder: Path | None):
        self.heads = list(rewards.heads)
        self.provenance = {name: plain(head.provenance()) for name, head in rewards.heads.items()}
        self.combination = rewards.rule.provenance()
        self.versions = versions()
        self.folder = None if folder is None else str(folder)

    def of(self, chunk: Sequence[ScoredPicture]) -> ScoresTable:
        """The table of a chunk, a row per picture."""
        # A picture that could not be read has no values: nulls in every column.
        values = [each.values or {} for each in chunk]
        extra: dict[str, list[Any]] = {COMBINED: [each.get(COMBINED) for each in values]}
        if any(UNCERTAINTY in each for each in values):
            extra[UNCERTAINTY] = [each.get(UNCERTAINTY) for each in values]
        extra[CONTENT] = [each.content for each in chunk]
        return ScoresTable(
            [dict(each.row) for each in chunk],
            {name: [each.get(name) for each in values] for name in self.heads},
            [each.error for each in chunk],
            self.provenance,
            self.versions,
            self.folder,
            extra,
            self.combination,
        )

    def load(self, file: Path) -> ScoresTable:
        """A saved chunk, with the gallery's folder as the caller named it."""
        table = ScoresTable.load(file)
        return table if self.folder is None else table.at(self.folder)

    def fits(self, table: ScoresTable) -> bool:
        """Whether the scores of ``table`` would come out the same today."""
        saved = (table.provenance, table.combination, table.versions)
        today = (self.provenance, self.combination, self.versions)
        return saved == today and CONTENT in table.extra


def known_scores(
    out: Path, parts: Path, tables: Tables
) -> dict[tuple[str | None, str], dict[str, float]]:
    """Scores that earlier calls saved, by the same heads in the same versions.

    A file that cannot be read counts as absent.
    """
    known: dict[tuple[str | None, str], dict[str, float]] = {}
    # Chunks of a killed call come after the file, and are as good as it.
    for file in (out, *sorted(parts.glob("*.parquet"))):
        try:
            table = ScoresTable.load(file)
        except UserError:
            continue
        if tables.fits(table):
            known |= _scores_in(table)
    return known


def _scores_in(table: ScoresTable) -> dict[tuple[str | None, str], dict[str, float]]:
    """The scores of a table by ``ScoredPicture.key``."""
    extra = {name: table.extra[name] for name in (COMBINED, UNCERTAINTY) if name in table.extra}
    columns = {**table.heads, **extra}
    known = {}
    for index, row in enumerate(table.rows):
        if table.errors[index] is None:
            picture = ScoredPicture(row, table.extra[CONTENT][index])
            values = {name: column[index] for name, column in columns.items()}
            known[picture.key] = {
                name: value for name, value in values.items() if value is not None
            }
    return known


def begin(out: Path, parts: Path) -> None:
    """Rename an earlier call's chunks, so that they are not taken for this one's.

    The next call knows both.
    """
    with writing_to(out):
        parts.mkdir(parents=True, exist_ok=True)
        for file in sorted(parts.glob(PART)):
            file.rename(parts / f"known-{sum(1 for _ in parts.iterdir())}-{file.name}")
