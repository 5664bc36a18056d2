"""A scores file in short."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from align_gen.galleries.table import ScoresTable

if TYPE_CHECKING:
    from align_gen.galleries.earlier import Earlier


@dataclass
class Summary:
    """A scores file in short: counts, means and failures, without the columns.

    Attributes:
        means: of each head of this call; NaN where no picture could be read.
        pictures: how many there are.
        failed: file and reason of those that could not be read.
        skipped: files of the folder that are no pictures, counted by suffix; see
            ``gallery.skipped_files``.
        known: pictures whose scores an earlier call had computed.
        kept: pictures with a score of each head of earlier calls whose column is in the file.
        notes: what else the user should know, a line each.
    """

    means: dict[str, float]
    pictures: int
    failed: list[tuple[str, str]]
    skipped: dict[str, int] = field(default_factory=dict)
    known: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        tables: Iterable[ScoresTable],
        earlier: Earlier,
        skipped: Mapping[str, int] | None = None,
    ) -> Summary:
        """Sum up the parts of one gallery."""
        sums: dict[str, float] = {}
        kept: dict[str, int] = {}
        pictures = 0
        failed = []
        for table in tables:
            pictures += len(table.rows)
            for row, reason in zip(table.rows, table.errors, strict=True):
                if reason is not None:
                    failed.append((str(row["file_name"]), reason))
            for name in table.heads:
                sums[name] = sums.get(name, 0.0) + math.fsum(table.known(name))
            for name, count in earlier.count(table).items():
                kept[name] = kept.get(name, 0) + count
        # NaN, and not 0, where nothing could be read.
        read = pictures - len(failed)
        means = {name: total / read if read else math.nan for name, total in sums.items()}
        return cls(means, pictures, failed, dict(skipped or {}), kept=kept)

    def skipped_text(self) -> str:
        """The skipped files in words, as "1 .gif, 2 folders"; empty where there are none."""
        plural = {"folder": "folders", "file": "files"}
        named = [
            f"{count} {kind if count == 1 else plural.get(kind, kind)}"
            for kind, count in self.skipped.items()
        ]
        return ", ".join(named)

    def lines(self) -> list[str]:
        """What the user should know besides the means: a line each."""
        lines = list(self.notes)
        if self.known:
            lines.append(
                f"{self.known:,} of {self.pictures:,} scores are known from an earlier call"
            )
        if self.kept:
            named = [
                name if count == self.pictures else f"{name} ({count:,} of {self.pictures:,})"
                for name, count in self.kept.items()
            ]
            lines.append(f"kept from earlier calls: {', '.join(named)}")
        if self.skipped:
            lines.append(f"skipped: {self.skipped_text()}")
        return lines
