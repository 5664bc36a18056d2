"""The folder of a gallery that ``sample`` writes, by which it is told from anybody else's.

A gallery is ours where every row of its metadata says how the picture was made, and the folder
holds nothing but the rows' pictures and what ``score`` adds. Only such a folder is ever replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align_gen.errors import UserError
from align_gen.files import is_leftover, lines_of, require_folder
from align_gen.galleries.columns import plain
from align_gen.galleries.parquet_files import SCORES, SCORES_KIND, kind_of
from align_gen.locks import HOLDER, beside

METADATA = "metadata.jsonl"
GUIDE_SCORE = "guide_score"  # column: the score of the candidate that a guide chose
PICTURE = re.compile(r"\d{5,}\.(png|mp4)")
CHUNK = re.compile(r"(known-\d+-)?\d{6,}\.parquet")  # of a scoring that is not done
# What every "made" of ours has, besides the model where that was given by its name.
SETTINGS = frozenset({"steps", "guidance", "eta"})
OTHER = "want another --out, or --overwrite (overwrite=True) to replace it"

Row = dict[str, Any]


def require_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that ``sample`` may not write: before a model is loaded, or hours of drawing.

    Args:
        folder: new, empty, or a gallery of ours.
        overwrite: whether a gallery of ours may be replaced.

    Raises:
        UserError: names what is there.
    """
    require_folder(folder)
    entries = sorted(folder.iterdir()) if folder.exists() else []
    if not entries:
        return
    _require_known(folder, {str(row["file_name"]) for row in rows_of_ours(folder)})
    if not overwrite:
        raise UserError(f"{folder}: a gallery is there; {OTHER}")


def require_gallery(folder: Path) -> None:
    """Refuse a folder of a run that holds more than a gallery, whole or torn.

    Raises:
        UserError: names what is there.
    """
    require_folder(folder)
    if folder.exists() and not (folder / METADATA).exists():
        names = {path.name for path in folder.iterdir() if PICTURE.fullmatch(path.name)}
        _require_known(folder, names)
        return
    require_replaceable(folder, overwrite=True)


def rows_of_ours(folder: Path) -> list[Row]:
    """The rows of a gallery that ``sample`` wrote.

    Raises:
        UserError: there is no metadata, or a row that ``sample`` did not write.
    """
    metadata = folder / METADATA
    if metadata.is_symlink() or not metadata.is_file():
        first = min((path.name for path in folder.iterdir()), default="nothing")
        raise UserError(
            f"{folder}: holds {first!r} and no {METADATA}, so it is no gallery of ours; "
            "want a new folder"
        )
    rows = []
    for number, line in lines_of(metadata):
        row = _row_of_ours(line)
        if row is None:
            raise UserError(
                f"{metadata} line {number}: was not written by sample, so the gallery is not "
                "ours to replace; want a new folder"
            )
        rows.append(row)
    if not rows:
        raise UserError(f"{metadata}: has no rows, so it is no gallery of ours; want a new folder")
    return rows


def difference(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in which way a gallery of ours is not what would be drawn; empty where it is just that.

    Args:
        folder: of the gallery.
        rows: that would be written; names of files and scores of guides do not count.
    """
    there = rows_of_ours(folder)
    if len(there) != len(rows):
        return f"it has {len(there)} pictures and not {len(rows)}"
    for number, (old, new) in enumerate(zip(there, rows, strict=True)):
        keys = _differing(_compared(old), _compared(plain(new)))
        if keys:
            return f"row {number} differs in {', '.join(keys)}"
    gone = [row["file_name"] for row in there if not (folder / row["file_name"]).is_file()]
    return f"{gone[0]} is gone" if gone else ""


def _require_known(folder: Path, pictures: set[str]) -> None:
    """Refuse a folder that holds anything but these pictures and what belongs to a gallery."""
    entries = sorted(folder.iterdir())
    foreign = next((path for path in entries if not _is_ours(path, pictures)), None)
    if foreign is not None:
        raise UserError(
            f"{folder}: holds {foreign.name!r}, which no gallery of ours does; want a new folder"
        )


def _row_of_ours(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    made = row.get("made") if isinstance(row, dict) else None
    named = isinstance(row, dict) and PICTURE.fullmatch(str(row.get("file_name")))
    ours = isinstance(made, dict) and ("model" in made or made.keys() >= SETTINGS)
    return row if named and ours else None


def _is_ours(path: Path, pictures: set[str]) -> bool:
    """Whether an entry of a gallery is the rows' or of a scoring; a link never is."""
    if path.is_symlink():
        return False
    scores = path.with_name(SCORES)
    if path.name == f".{SCORES}.parts":
        return path.is_dir() and all(map(is_chunk, path.iterdir()))
    if not path.is_file():
        return False
    if path == scores:
        return kind_of(path) == SCORES_KIND
    if path == beside(scores):
        content = path.read_bytes()[:512]
        return not content or HOLDER.fullmatch(content) is not None
    part = is_leftover(path) and path.name.startswith(f".{SCORES}.")
    return part or path.name == METADATA or path.name in pictures


def is_chunk(path: Path) -> bool:
    """Whether an entry of the folder of chunks was written by a scoring, done or not."""
    if path.is_symlink() or not path.is_file():
        return False
    return is_leftover(path) or (
        CHUNK.fullmatch(path.name) is not None and kind_of(path) == SCORES_KIND
    )


def _compared(row: Mapping[str, Any]) -> Row:
    return {key: value for key, value in row.items() if key not in ("file_name", GUIDE_SCORE)}


def _differing(old: Row, new: Row) -> list[str]:
    """The keys in which two rows differ; of "made", its own keys."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if keys != ["made"] or not isinstance(new.get("made"), dict):
        return keys
    return _differing(old["made"], new["made"])
