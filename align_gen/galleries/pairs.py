"""Preference pairs: mined from scores, kept as Parquet that the datasets library reads too."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import UserError, one_line
from ..files import lines_of, whole_file
from ..pipelines.seeding import generator
from .gallery import METADATA, VIDEOS, UnreadablePicture, as_media, inside, read_pixels, suffix_of

if TYPE_CHECKING:
    from torch import Tensor

    from .table import ScoresTable

Row = dict[str, Any]
Index = tuple[int, int]  # rows of the chosen and of the rejected
SIDES = ("chosen", "rejected")
FIRST_COLUMNS = ("prompt", *SIDES)
BATCH = 64  # pairs that are written at a time
By = Literal["margin", "best_worst", "bradley_terry"]
BY: tuple[By, ...] = get_args(By)


class Pairs(list[Row]):
    """Rows of pairs, and how many could not become any.

    Attributes:
        unreadable: pictures without a score.
        ties: pairs that were looked at and left out because nothing, or too little, is between
            them.
    """

    def __init__(self, rows: Iterable[Row] = (), unreadable: int = 0, ties: int = 0):
        super().__init__(rows)
        self.unreadable, self.ties = unreadable, ties


@dataclass(frozen=True)
class Media:
    """A picture or video of a pair, not yet decoded: the bytes of a file, or where it lies."""

    name: str
    data: bytes | None = field(default=None, repr=False)
    path: Path | None = None

    def read(self) -> Tensor:
        """(3,H,W) or (F,3,H,W), float32, RGB, [0,1].

        Raises UnreadablePicture when it is missing, broken, of another kind or too large.
        """
        source = self.path or self.data
        if source is None:
            raise UnreadablePicture("no bytes and no file")
        return as_media(read_pixels(source, Path(self.name).suffix.lower()))


# --- mining ---------------------------------------------------------------------------------------


def pairs(
    scores: ScoresTable,
    *,
    by: By = "margin",
    column: str | None = None,
    min_margin: float = 0.0,
    per_prompt: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> Pairs:
    """Pairs of pictures of one prompt, the better one chosen.

    A row has "prompt", "chosen" and "rejected" (media, relative to the gallery), "margin" (above
    zero), "agreement" (the share of heads that would choose alike, ties half) and "margin/HEAD" for
    every head.

    Args:
        scores: of a gallery with prompts.
        by: "margin": all pairs, the widest first. "best_worst": the best with the worst, then the
            second best with the second worst. "bradley_terry": the chosen drawn by
            ``choice_probabilities`` of those that are not worst, the rejected likewise by the
            negated scores of those below it; temperature 0 is in the limit the best and the worst,
            infinity any pair.
        column: the head to choose by, its margins in its own units. None: all heads, each in units
            of its standard deviation over the gallery, averaged.
        min_margin: pairs that are not wider are left out, as ties are.
        per_prompt: at most so many pairs of a prompt. None: all by "margin", else one.
        temperature: of "bradley_terry", in units of the margin.
        seed: of "bradley_terry".

    Raises:
        UserError: an option that is none, a row without a prompt, or no pair at all.
    """
    _check(scores, by, column, min_margin, per_prompt, temperature)
    heads = {name: [_number(value) for value in values] for name, values in scores.heads.items()}
    judged = (
        {column: heads[column]}
        if column is not None
        else {n: _in_deviations(v) for n, v in heads.items()}
    )
    value = [
        _mean(each) for each in zip(*judged.values(), strict=True)
    ]  # None where any head has none
    found = Pairs(unreadable=sum(each is None for each in value))
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(scores.rows):
        if value[index] is not None:
            groups.setdefault(_prompt(row, index), []).append(index)
    for prompt, members in groups.items():
        level = {index: each for index in members if (each := value[index]) is not None}
        if by == "bradley_terry":
            chosen, ties = _drawn(level, min_margin, per_prompt or 1, temperature, seed, prompt)
        else:
            candidates = _all_pairs(level) if by == "margin" else _opposites(level)
            limit = 1 if by == "best_worst" and per_prompt is None else per_prompt
            wide = [pair for pair in candidates if level[pair[0]] - level[pair[1]] > min_margin]
            chosen = list(islice(wide, limit))
            ties = len(candidates) - len(wide)
        found.ties += ties
        found += [_row(scores, heads, prompt, level, pair) for pair in chosen]
    if not found:
        told = (
            f"{len(groups)} prompts, {found.unreadable} pictures without a score, {found.ties} ties"
        )
        raise UserError(
            f"no pairs: {told}; want two pictures of one prompt that differ by more than {min_margin}"
        )
    return found


def choice_probabilities(scores: Sequence[float], temperature: float = 1.0) -> list[float]:
    """softmax(r / temperature): who is chosen from a pool, K-way Bradley-Terry (Ferbach et al.,
    arXiv 2407.09499).
    """
    top = max(scores)
    weights = [math.exp((score - top) / temperature) for score in scores]
    return [weight / sum(weights) for weight in weights]


def _check(
    scores: ScoresTable,
    by: str,
    column: str | None,
    min_margin: float,
    per_prompt: int | None,
    temperature: float,
) -> None:
    if by not in BY:
        raise UserError(f"by: {by!r}, want one of {', '.join(BY)}")
    if not scores.heads or (column is not None and column not in scores.heads):
        raise UserError(
            f"column: {column!r} was not scored; want one of {', '.join(scores.heads) or 'none'}"
        )
    if not 0 <= min_margin < math.inf:
        raise UserError(f"min_margin: {min_margin}, want a number from 0")
    if per_prompt is not None and per_prompt < 1:
        raise UserError(f"per_prompt: {per_prompt}, want 1 or more")
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature: {temperature}, want a number above 0")


def _prompt(row: Mapping[str, Any], index: int) -> str:
    prompt = row.get("prompt")
    if not isinstance(prompt, str):
        raise UserError(
            f"row {index} ({row.get('file_name')}): has no prompt; pairs are of pictures of one prompt"
        )
    return prompt


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if len(present) == len(values) else None


def _in_deviations(values: Sequence[float | None]) -> list[float | None]:
    """In units of their own standard deviation; a head that never differs says nothing."""
    present = [value for value in values if value is not None]
    spread = statistics.pstdev(present) if present else 0.0
    return [None if value is None else value / spread if spread > 0 else 0.0 for value in values]


def _all_pairs(level: Mapping[int, float]) -> list[Index]:
    """Every pair, better first, the widest first."""
    ordered = [(i, j) if level[i] >= level[j] else (j, i) for i, j in combinations(level, 2)]
    return sorted(ordered, key=lambda pair: level[pair[1]] - level[pair[0]])


def _opposites(level: Mapping[int, float]) -> list[Index]:
    """The best with the worst, the second best with the second worst, and so on."""
    ranked = sorted(level, key=lambda index: -level[index])
    return list(zip(ranked[: len(ranked) // 2], ranked[::-1], strict=False))


def _drawn(
    level: Mapping[int, float],
    min_margin: float,
    count: int,
    temperature: float,
    seed: int,
    prompt: str,
) -> tuple[list[Index], int]:
    """(Up to ``count`` different pairs, ties): the chosen by Bradley-Terry, then one that lies far
    enough below it.
    """
    g = generator(seed, "pairs", 0, prompt)
    possible = [pair for pair in _all_pairs(level) if level[pair[0]] - level[pair[1]] > min_margin]
    ties = len(level) * (len(level) - 1) // 2 - len(possible)
    drawn = list[Index]()
    while possible and len(drawn) < count:
        better = list(dict.fromkeys(pair[0] for pair in possible))
        chosen = _draw(better, [level[index] for index in better], temperature, g)
        worse = [pair[1] for pair in possible if pair[0] == chosen]
        rejected = _draw(worse, [-level[index] for index in worse], temperature, g)
        drawn.append((chosen, rejected))
        possible.remove((chosen, rejected))
    return drawn, ties


def _draw(items: Sequence[int], scores: Sequence[float], temperature: float, g: Any) -> int:
    import torch

    weights = torch.tensor(choice_probabilities(scores, temperature), dtype=torch.float64)
    return items[int(torch.multinomial(weights, 1, generator=g))]


def _row(
    scores: ScoresTable,
    heads: Mapping[str, Sequence[float | None]],
    prompt: str,
    level: Mapping[int, float],
    pair: Index,
) -> Row:
    chosen, rejected = pair
    margins = {
        name: _difference(values[chosen], values[rejected]) for name, values in heads.items()
    }
    known = [margin for margin in margins.values() if margin is not None]
    return {
        "prompt": prompt,
        "chosen": scores.rows[chosen]["file_name"],
        "rejected": scores.rows[rejected]["file_name"],
        "margin": level[chosen] - level[rejected],
        "agreement": sum((margin > 0) + (margin == 0) / 2 for margin in known) / len(known),
        **{f"margin/{name}": margin for name, margin in margins.items()},
    }


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


# --- keeping --------------------------------------------------------------------------------------


def write_pairs(path: str | Path, pairs: Sequence[Mapping[str, Any]], folder: str | Path) -> None:
    """Write pairs and their media as one Parquet file, whole or not at all.

    "chosen" and "rejected" become the datasets library's own struct of bytes and path, and the
    schema names them Image or Video, so that ``load_dataset("parquet", data_files=path)`` decodes
    them. "label" is 1, the first is better, where a row brings none; every other column is kept,
    numbers and text as they are.

    Raises:
        UserError: no pairs, pictures among videos, a file that lies outside ``folder`` or cannot be
            read, or no place.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not pairs:
        raise UserError("pairs: none to write")
    folder = Path(folder)
    rows = [{"label": 1, **row} for row in pairs]
    kinds = {Path(str(row[side])).suffix.lower() in VIDEOS for row in rows for side in SIDES}
    if len(kinds) > 1:
        raise UserError(f"{folder}: pictures and videos in one file of pairs; want one kind")
    names = [
        "prompt",
        *SIDES,
        *(n for n in dict.fromkeys(key for row in rows for key in row) if n not in FIRST_COLUMNS),
    ]
    kept = {name: _kind([row.get(name) for row in rows]) for name in names if name not in SIDES}
    media = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {name: media if name in SIDES else pa.type_for_alias(kept[name]) for name in names}
    decoded = {"_type": "Video" if kinds.pop() else "Image"}
    features = {n: decoded if n in SIDES else {"dtype": kept[n], "_type": "Value"} for n in names}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([pa.field(name, types[name]) for name in names], metadata=about)
    checked: dict[str, bytes] = {}
    try:
        with whole_file(Path(path)) as file, pq.ParquetWriter(file, schema) as writer:
            for start in range(0, len(rows), BATCH):
                batch = [
                    row | {s: _embedded(folder, row[s], checked) for s in SIDES}
                    for row in rows[start : start + BATCH]
                ]
                columns = [
                    pa.array([_cell(row.get(n), kept.get(n)) for row in batch], types[n])
                    for n in names
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
                checked.clear()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); want a file that can"
        ) from error
    except OverflowError as error:
        raise UserError(f"{path}: a whole number is beyond 64 bits ({error})") from error


def read_pairs(path: str | Path) -> Pairs:
    """What ``write_pairs`` wrote, or any Parquet file like it; or a folder with metadata.jsonl that
    names media files.

    A row has "prompt", ``Media`` for "chosen" and "rejected", and what else stands in it. In a
    folder, the keys may be called "chosen_file_name" and "rejected_file_name", as the datasets
    library has them.

    Raises:
        UserError: nothing there, broken, or a row without a prompt or without one of the two; names
            the row.
    """
    path = Path(path)
    if path.is_dir():
        found = _read_folder(path)
    elif path.is_file():
        found = _read_parquet(path)
    else:
        raise UserError(f"{path}: no such file; want pairs as Parquet, or a folder with {METADATA}")
    if not found:
        raise UserError(f"{path}: no pairs in it")
    return found


def _kind(values: Sequence[Any]) -> str:
    """The type of a column, by Arrow's and the datasets library's common name; what mixes becomes
    JSON text.
    """
    present = frozenset(type(value) for value in values if value is not None)
    numbers = {
        frozenset({float}): "float64",
        frozenset({int, float}): "float64",
        frozenset({int}): "int64",
    }
    return {**numbers, frozenset({bool}): "bool"}.get(present, "string")


def _cell(value: Any, kind: str | None) -> Any:
    return (
        json.dumps(value)
        if kind == "string" and value is not None and not isinstance(value, str)
        else value
    )


def _embedded(folder: Path, name: object, checked: dict[str, bytes]) -> dict[str, Any]:
    """The struct of one media file, once it is known to be one."""
    file = _media_name(folder, name, str(folder))
    if file not in checked:
        try:
            Media(file, path=folder / file).read()
        except UnreadablePicture as error:
            raise UserError(
                f"{folder / file}: {error}; want every picture of a pair readable"
            ) from error
        checked[file] = (folder / file).read_bytes()
    return {"bytes": checked[file], "path": file}


def _read_parquet(path: Path) -> Pairs:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows: list[Row] = file.read().to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a Parquet file of pairs ({one_line(error, 120)})") from error

    def media(value: Any, where: str) -> Media:
        return _from_struct(path.parent, value, where)

    return Pairs(_checked(row, f"{path} row {number}", media) for number, row in enumerate(rows))


def _read_folder(folder: Path) -> Pairs:
    metadata = folder / METADATA
    if not metadata.is_file():
        raise UserError(f"{folder}: no {METADATA} in it; want one, or a Parquet file of pairs")

    def media(value: Any, where: str) -> Media:
        return _from_name(folder, value, where)

    found = Pairs()
    for number, line in lines_of(metadata):
        where = f"{metadata} line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not a line of JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(
                f'{where}: want an object like {{"prompt": "…", "chosen": "0.png", "rejected": "1.png"}}'
            )
        for side in SIDES:
            if f"{side}_file_name" in row:
                row.setdefault(side, row.pop(f"{side}_file_name"))
        found.append(_checked(row, where, media))
    return found


def _checked(row: Row, where: str, media: Callable[[Any, str], Media]) -> Row:
    if not isinstance(row.get("prompt"), str):
        raise UserError(f"{where}: prompt is {row.get('prompt')!r}, want text")
    return {**row, **{side: media(row.get(side), f"{where}, {side}") for side in SIDES}}


def _from_struct(folder: Path, value: Any, where: str) -> Media:
    if not isinstance(value, dict) or not {"bytes", "path"} <= value.keys():
        raise UserError(f"{where}: want bytes and path, as the datasets library keeps pictures")
    data = value["bytes"]
    name = value["path"]
    if data is None:
        return _from_name(folder, name, where)
    if not isinstance(data, bytes):
        raise UserError(f"{where}: bytes are {type(data).__name__}, want bytes")
    return Media(
        name if isinstance(name, str) and Path(name).suffix else f"unnamed{suffix_of(data)}", data
    )


def _from_name(folder: Path, value: Any, where: str) -> Media:
    name = _media_name(folder, value, where)
    return Media(name, path=folder / name)


def _media_name(folder: Path, value: object, where: str) -> str:
    """The name of a file that lies in the folder, links followed; UserError otherwise."""
    if not isinstance(value, str) or not value:
        raise UserError(
            f"{where}: file_name is {value!r}, want the name of a picture in the folder"
        )
    return inside(folder, value, where)
