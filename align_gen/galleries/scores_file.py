"""A file of scores apart from its rows: how it is opened, what it may say, where its gallery is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align_gen.errors import UserError
from align_gen.galleries.columns import EXTRA
from align_gen.galleries.parquet_files import SCORES_KIND, parquet_reader, require_own

log = logging.getLogger("align_gen")


@contextmanager
def reading(path: str | Path) -> Iterator[Any]:
    """An open scores file; what is wrong with it is a UserError that names the path."""
    import pyarrow as pa

    # What a broken or foreign file can raise on its way to a table.
    broken = (
        pa.ArrowException, OSError, KeyError, TypeError, AttributeError, ValueError,
        OverflowError, RecursionError,
    )  # fmt: skip
    try:
        with parquet_reader(path) as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; want scores, as written by `align-gen score`"
        ) from error
    except UserError:
        raise
    except broken as error:
        raise UserError(
            f"{path}: not a scores file; want Parquet as written by `align-gen score`"
        ) from error


def require_kinds(about: Mapping[str, Any]) -> None:
    """TypeError where a part of a file's description is of another kind than ``save`` writes."""
    kinds = {
        "types": dict,
        "heads": list,
        "provenance": dict,
        "versions": dict,
        "folder": str | None,
        "own": list,
        "combination": dict | None,
        "kept": dict,
        "unsigned": list,
    }
    for name, kind in kinds.items():
        if name in about and not isinstance(about[name], kind):
            raise TypeError(f"{name} is {type(about[name]).__name__}")
    each = [*about["provenance"].values(), *about.get("kept", {}).values()]
    if not all(isinstance(value, dict) for value in each):
        raise TypeError("want a mapping for each head")
    if set(about.get("own", [])) - set(EXTRA):
        raise KeyError("columns that no scores file has")


def require_parquet(path: str | Path) -> None:
    """UserError for another suffix than .parquet or none, and where no scores file may be replaced.

    A file that is there must be one of scores.
    """
    if Path(path).suffix.lower() not in ("", ".parquet"):
        raise UserError(f"{path}: scores are Parquet; want a name that ends in .parquet")
    require_own(Path(path), SCORES_KIND)


def saved_folder(folder: str | None, file: Path) -> str | None:
    """The gallery's path as the file keeps it: relative to the file's own folder, or None.

    So both can be moved together, and no path of this machine is in what is shared.
    """
    if folder is None:
        return None
    gallery = Path(folder).resolve()
    base = file.resolve().parent
    return str(gallery.relative_to(base)) if gallery.is_relative_to(base) else None


def followed(folder: str | None, file: Path) -> str | None:
    """The gallery that a file names, where it lies in the file's own folder; else None.

    A file from somebody else could name any folder of the user's.
    """
    if folder is None:
        return None
    gallery = file.parent / folder
    if gallery.resolve().is_relative_to(file.parent.resolve()):
        return str(gallery)
    log.warning("%s: names a gallery outside of its own folder; it is not followed", file)
    return None
