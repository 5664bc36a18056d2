"""Read the pictures of Parquet files: the columns wanted, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from ..errors import UserError, one_line
from .formats import MAX_BYTES, MAX_TEXT, UnreadablePicture
from .items import Item, Opener
from .rows import picture_column, picture_item

ROWS_BYTES = 2**26  # of the rows in memory at a time, should each be as large as its column
MAX_ROWS = 2**16  # in memory at a time
BUFFER = 2**20  # bytes that are read from the file at once
NULL_ROWS = 1000  # without a picture, of which each has its own row
# Pictures are compressed already. What gives more than this is no column of pictures.
MAX_UNPACKED = 2**26
PACKED_RATIO = 20


def parquet_rows(file: str, opener: Opener) -> int:
    """The number of rows, from the file's footer.

    Raises:
        UserError: the file cannot be read as Parquet, or has no column of pictures.
    """
    try:
        with opener.open(file, "rb") as stream:
            table = _open(stream)
            picture_column(file, table.schema_arrow.names)
            return int(table.metadata.num_rows)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file}: cannot be read as Parquet ({one_line(error, 120)})") from error


def read_parquet(file: str, opener: Opener) -> Iterator[Item]:
    """The items of a file, a few rows in memory at a time.

    What is damaged of a row group costs the rest of its rows, and gives one item with the reason.
    Rows without a picture give an item each, and one for all that are more than NULL_ROWS.
    """
    with opener.open(file, "rb") as stream:
        table = _open(stream)
        rows = _Rows(file, table.schema_arrow)
        groups = table.metadata.num_row_groups
        for group in range(groups):
            about = table.metadata.row_group(group)
            before = rows.number
            reason = None
            try:
                count = rows.at_once(about)
                for batch in table.iter_batches(count, row_groups=[group], columns=rows.columns):
                    yield from rows.items(batch)
                if rows.number - before != about.num_rows:
                    reason = f"{rows.number - before} rows of {about.num_rows}"
            except Exception as error:
                # A page that is damaged, or whose content wants more memory than there is.
                reason = one_line(error, 160) or type(error).__name__
            if reason is not None:
                where = "the rest" if group == groups - 1 else f"the rest of row group {group}"
                yield rows.lost(where, f"the file is damaged: {reason}")
            rows.number = before + about.num_rows
        if rows.nulls > NULL_ROWS:
            yield rows.lost("more rows", f"{rows.nulls - NULL_ROWS} more rows have no picture")


def _open(stream: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(stream, buffer_size=BUFFER, page_checksum_verification=True)


class _Rows:
    """Makes items of the rows of a file.

    Attributes:
        columns: that are read: of pictures, texts and numbers.
        number: of the row that comes next.
        nulls: rows without a picture so far.
    """

    def __init__(self, file: str, schema: Any):
        self.name = PurePosixPath(file).name
        self.picture = picture_column(file, schema.names)
        plain = [field.name for field in schema if _is_plain(field.type)]
        self.columns = [self.picture, *(name for name in plain if name != self.picture)]
        self.number = 0
        self.nulls = 0

    def at_once(self, group: Any) -> int:
        """How many rows of a row group may be in memory.

        One value may stand for many: a row can be as large as the whole column.

        Raises:
            UnreadablePicture: a column unpacks to much more than it takes in the file.
        """
        largest = 1
        for number in range(group.num_columns):
            chunk = group.column(number)
            # A column of parts is called by the names of all of them.
            if not any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in self.columns):
                continue
            size = chunk.total_uncompressed_size
            if size > max(MAX_UNPACKED, PACKED_RATIO * chunk.total_compressed_size):
                raise UnreadablePicture(f"column {chunk.path_in_schema!r} unpacks to {size} bytes")
            largest = max(largest, size)
        return max(1, min(MAX_ROWS, ROWS_BYTES // largest))

    def items(self, batch: Any) -> Iterator[Item]:
        """The items of some rows."""
        names = batch.schema.names
        pictures = batch.column(names.index(self.picture))
        others = [(name, batch.column(n)) for n, name in enumerate(names) if name != self.picture]
        first = self.number
        self.number += len(batch)
        if _has_none(pictures):
            # Millions of nulls fit into a few bytes.
            own = max(0, min(len(batch), NULL_ROWS - self.nulls))
        else:
            own = len(batch)
        for row in range(own):
            item = self._item(pictures[row], others, row, first + row)
            if item is not None:
                yield item
        self.nulls += len(batch) - own

    def lost(self, where: str, reason: str) -> Item:
        """An item for all rows that are not read."""
        return Item({"file_name": f"{self.name}/({where})"}, UnreadablePicture(reason))

    def _item(self, picture: Any, others: list[Any], row: int, number: int) -> Item | None:
        """The item of a row; None for a row without a picture, once there were many."""
        name = f"{self.name}/{number:06d}"
        try:
            content = _picture(picture)
            if (content.get("bytes") if isinstance(content, dict) else content) is None:
                self.nulls += 1
                if self.nulls > NULL_ROWS:
                    return None
            columns = {key: _plain(column[row]) for key, column in others}
            return picture_item(columns, content, name)
        except UnreadablePicture as error:
            return Item({"file_name": f"{name}.png"}, error)


def _is_plain(kind: Any) -> bool:
    """Whether values of an Arrow type are kept: texts and numbers."""
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    # Texts of the newest kind are unknown to older versions of the library.
    is_view = getattr(types, "is_string_view", types.is_string)
    texts = (types.is_string, types.is_large_string, is_view)
    numbers = (types.is_boolean, types.is_integer, types.is_floating)
    return any(test(kind) for test in (*texts, *numbers))


def _has_none(pictures: Any) -> bool:
    """Whether no row has a picture, by the counts of nulls alone."""
    import pyarrow as pa

    if pictures.null_count == len(pictures):
        return True
    if pa.types.is_struct(pictures.type) and pictures.type.get_field_index("bytes") >= 0:
        content = pictures.field("bytes")
        return bool(content.null_count == len(content))
    return False


def _picture(value: Any) -> Any:
    """A picture as bytes, or {bytes, path}; None without one.

    Raises:
        UnreadablePicture: it has more than MAX_BYTES.
    """
    import pyarrow as pa

    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    if not value.is_valid:
        return None
    if isinstance(value, pa.StructScalar):
        names = [field.name for field in value.type]
        return {key: _picture(value[key]) for key in ("bytes", "path") if key in names}
    if _is_plain(value.type):
        return _plain(value)
    # The class of all values that are bytes, however their lengths are kept.
    if not isinstance(value, pa.BinaryScalar):
        return None
    content = value.as_buffer()
    if content.size > MAX_BYTES:
        raise UnreadablePicture(f"larger than {MAX_BYTES} bytes")
    return content.to_pybytes()


def _plain(value: Any) -> Any:
    """A text or number; None for a value that Python cannot hold.

    Raises:
        UnreadablePicture: a text has more than MAX_TEXT bytes.
    """
    import pyarrow as pa

    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    try:
        if isinstance(value, pa.BinaryScalar):
            if not value.is_valid:
                return None
            text = value.as_buffer()
            if text.size > MAX_TEXT:
                raise UnreadablePicture(f"a text beside it is larger than {MAX_TEXT} bytes")
            # Nothing in a file makes sure that a text is UTF-8.
            return text.to_pybytes().decode("utf-8", "replace")
        return value.as_py()
    except UnreadablePicture:
        raise
    except Exception:
        return None
