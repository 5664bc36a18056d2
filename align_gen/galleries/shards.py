"""Read datasets of the datasets library, streamed."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import UserError, one_line
from .formats import UnreadablePicture
from .items import Item
from .rows import picture_column, picture_item

DATASET = "datasets:"  # prefix of a source that the datasets library loads


def read_dataset(name: str) -> Iterator[Item]:
    """Rows of a dataset of the datasets library, streamed; ``name`` is NAME or NAME:SPLIT.

    Pictures stay encoded: they are decoded here later, not by code of the dataset.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{DATASET}{name}: wants the datasets library (pip install align_gen[data])"
        ) from None
    path, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(path, split=split or "train", streaming=True)
        column = picture_column(path, list(rows.column_names or []))
        kind = datasets.Video if column in ("video", "mp4") else datasets.Image
        rows = rows.cast_column(column, kind(decode=False))
    except UserError:
        raise
    except Exception as error:
        # No such dataset, no network, no such split.
        reason = f"{type(error).__name__}: {one_line(error, 160)}"
        raise UserError(
            f"{DATASET}{name}: cannot be loaded ({reason}); want a name, or a folder of Parquet"
        ) from error
    try:
        for number, row in enumerate(rows):
            columns = {key: value for key, value in row.items() if key != column}
            yield picture_item(columns, row.get(column), f"{number:06d}")
    except Exception as error:
        # A damaged file of the dataset, or a network that is gone.
        reason = f"the dataset cannot be read further: {one_line(error, 160)}"
        yield Item({"file_name": "(the rest)"}, UnreadablePicture(reason))
