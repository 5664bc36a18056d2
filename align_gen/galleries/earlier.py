"""What earlier calls of a scoring left: scores that are known, and columns of other rewards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.errors import UserError
from align_gen.galleries.columns import COMBINED, CONTENT, UNCERTAINTY
from align_gen.galleries.scored import ScoredPicture
from align_gen.galleries.table import ScoresTable, differing_keys

if TYPE_CHECKING:
    from align_gen.galleries.chunks import Tables

Key = tuple[str | None, str]  # ScoredPicture.key
Values = dict[Key, dict[str, float]]


@dataclass
class Earlier:
    """What may be taken from earlier calls.

    Attributes:
        known: scores of the heads of this call, which are not computed again.
        kept: scores of other heads, whose columns stay in the file.
        origins: of each kept head: its provenance, and the versions it was scored under.
        unsigned: kept heads of a file that was not written here.
        notes: what the user is told.
    """

    known: Values = field(default_factory=dict)
    kept: Values = field(default_factory=dict)
    origins: dict[str, tuple[dict[str, Any], dict[str, str]]] = field(default_factory=dict)
    unsigned: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, out: Path, chunks: Iterable[Path], tables: Tables, trust: bool) -> Earlier:
        """Read the file and the chunks of killed calls.

        Args:
            out: the file of scores; there may be none.
            chunks: of killed calls.
            tables: of this call.
            trust: whether to take scores from files that this user's own align-gen did not write.

        Raises:
            UserError: the file is there and cannot be read, or keeps another gallery's scores.
        """
        earlier = cls()
        if out.exists():
            table, signed = ScoresTable.load_signed(out)
            _require_same_gallery(table, tables, out)
            earlier._add(table, tables, signed or trust, trust)
            earlier._keep(table, tables, signed or trust, trust)
            if _fits(table, tables) and not (signed or trust):
                earlier.notes.append(
                    f"{out} was not written here: scored anew; --trust-scores takes its scores"
                )
        # Chunks of a killed call come after the file, and are as good as it.
        for chunk in chunks:
            try:
                table, signed = ScoresTable.load_signed(chunk)
            except UserError:
                continue
            earlier._add(table, tables, signed or trust, trust)
        return earlier

    def count(self, table: ScoresTable) -> dict[str, int]:
        """How many pictures of a table have a kept score, by head."""
        columns = {name: self._column(table, name) for name in self.origins}
        return {
            name: sum(value is not None for value in values) for name, values in columns.items()
        }

    def without(self, heads: Iterable[str]) -> Earlier:
        """A copy that does not keep some heads."""
        left = set(heads)
        origins = {name: origin for name, origin in self.origins.items() if name not in left}
        return replace(self, origins=origins)

    def added_to(self, table: ScoresTable) -> ScoresTable:
        """The table with the kept columns, after its own."""
        columns = {name: self._column(table, name) for name in self.origins}
        provenance = {name: origin[0] for name, origin in self.origins.items()}
        return replace(
            table,
            heads={**table.heads, **columns},
            provenance={**table.provenance, **provenance},
            kept={name: origin[1] for name, origin in self.origins.items()},
            unsigned=[name for name in self.unsigned if name in self.origins],
        )

    def _column(self, table: ScoresTable, head: str) -> list[float | None]:
        """The kept scores of a head, of the same pictures and prompts; None of all others."""
        return [
            None if error is not None else self.kept.get(key, {}).get(head)
            for key, error in zip(_keys(table), table.errors, strict=True)
        ]

    def _add(self, table: ScoresTable, tables: Tables, taken: bool, trust: bool) -> None:
        """Know the scores of a table, if they would come out the same today."""
        foreign = not trust and set(table.unsigned) & set(tables.heads)
        if not taken or foreign or not _fits(table, tables):
            return
        if _same_combination(table, tables):
            extra = [name for name in (COMBINED, UNCERTAINTY) if name in table.extra]
            self.known |= _values(table, [*tables.heads, *extra])
            return
        for key, scores in _values(table, tables.heads).items():
            if len(scores) == len(tables.heads):
                self.known[key] = {**scores, COMBINED: _sum(tables, scores)}

    def _keep(self, table: ScoresTable, tables: Tables, taken: bool, trust: bool) -> None:
        """Keep the columns of other rewards, and say which of this call's are replaced."""
        others = [name for name in table.heads if name not in tables.heads]
        if others and CONTENT not in table.extra:
            self.notes.append(f"{_named(others)}: of unknown pictures; not kept")
            others = []
        self.kept = _values(table, others)
        for name in others:
            self.origins[name] = (table.provenance.get(name, {}), table.versions_of(name))
        self.unsigned = [] if trust else table.unsigned if taken else list(table.heads)
        for name in tables.heads:
            if name in table.heads:
                different = differing_keys(table.provenance.get(name, {}), tables.provenance[name])
                if different:
                    reason = f"was scored with another {different[0]}"
                    self.notes.append(f"{_named([name])}: {reason}; it is replaced")


def _require_same_gallery(table: ScoresTable, tables: Tables, out: Path) -> None:
    """UserError where a file says that its scores are of another gallery than this call's."""
    if table.folder is None or tables.folder is None:
        return
    theirs = Path(table.folder).resolve()
    if theirs != Path(tables.folder).resolve():
        raise UserError(f"{out}: holds the scores of {theirs}; want another --out")


def _fits(table: ScoresTable, tables: Tables) -> bool:
    """Whether a table's scores of this call's heads would come out the same today."""
    return (
        CONTENT in table.extra
        and all(name in table.heads for name in tables.heads)
        and all(table.provenance.get(name) == tables.provenance[name] for name in tables.heads)
        and all(table.versions_of(name) == tables.versions for name in tables.heads)
        and (_same_combination(table, tables) or tables.is_plain_sum)
    )


def _same_combination(table: ScoresTable, tables: Tables) -> bool:
    """Whether a table's combined rewards are of this call's heads, by its rule."""
    combined = set(table.heads) - set(table.kept)
    return table.combination == tables.combination and combined == set(tables.heads)


def _sum(tables: Tables, scores: Mapping[str, float]) -> float:
    """The combined reward of one picture, as the rule gives it in a batch."""
    import torch

    combined = tables.rule({name: torch.tensor([scores[name]]) for name in tables.heads}, [""])
    return float(combined.item())


def _values(table: ScoresTable, names: Iterable[str]) -> Values:
    """The values of some columns by picture and prompt, of pictures that could be read."""
    columns: Mapping[str, list[float | None]] = {**table.heads, **table.extra}
    found: Values = {}
    for index, key in enumerate(_keys(table)):
        if table.errors[index] is None:
            values = {name: columns[name][index] for name in names}
            found[key] = {name: value for name, value in values.items() if value is not None}
    return found


def _keys(table: ScoresTable) -> Iterable[Key]:
    """What each row's scores depend on, besides the heads."""
    contents = table.extra.get(CONTENT, [None] * len(table.rows))
    return (
        ScoredPicture(row, content).key for row, content in zip(table.rows, contents, strict=True)
    )


def _named(columns: list[str]) -> str:
    """Columns in words: column 'clip', columns 'clip', 'sharpness'."""
    return f"column{'' if len(columns) == 1 else 's'} {', '.join(map(repr, columns))}"
