"""Parquet files of ours: pages with checksums, and a mark in the footer by which they are known.

Scores and pairs are written and read through here, so that a flipped bit is an error and no file of
somebody else's is replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align_gen.errors import UserError
from align_gen.files import require_file

KEY = b"align_gen"  # of the schema's metadata
FORMAT = 1  # of a file; raised when an older reader would misread it
SCORES = "scores.parquet"  # in a gallery's folder
SCORES_KIND = "scores"
PAIRS_KIND = "pairs"


def parquet_writer(file: Any, schema: Any) -> Any:
    """A ``ParquetWriter`` whose pages have checksums; older readers pass over these."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(file, schema, write_page_checksum=True)


def parquet_reader(path: str | Path) -> Any:
    """A ``ParquetFile`` that compares checksums where the file has some; of one file, no folder."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, page_checksum_verification=True)


def mark(kind: str) -> bytes:
    """The mark of a file that says no more of itself than its kind."""
    return json.dumps({"format": FORMAT, "kind": kind}).encode()


def kind_of(path: Path) -> str | None:
    """The kind that the mark of a file names; None for a file of somebody else's, or a broken one.

    Only the footer is read.
    """
    import pyarrow as pa

    broken = (
        pa.ArrowException, OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError,
    )  # fmt: skip
    try:
        with parquet_reader(path) as file:
            about = json.loads((file.metadata.metadata or {})[KEY])
            # A file of scores has no kind: the first were written when there was no other.
            return str(about.get("kind", SCORES_KIND))
    except broken:
        return None


def require_own(path: Path, kind: str) -> None:
    """Refuse to replace anything but a file of this kind, written by align-gen.

    Raises:
        UserError: a folder, a link, a device; another suffix than .parquet; a file of somebody
            else's, of another kind, or too broken to be known.
    """
    require_file(path, ".parquet", "")
    if path.exists() and kind_of(path) != kind:
        raise UserError(
            f"{path}: is there, and no file of {kind} by align-gen; want another name, "
            "or the file moved away"
        )
