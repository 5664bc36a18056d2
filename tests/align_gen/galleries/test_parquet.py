"""Parquet files from a stranger: other columns, damage and bombs cost their own rows alone."""

import datetime
import decimal
import io
import math
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align_gen.errors import UserError
from align_gen.galleries.formats import MAX_TEXT, UnreadablePicture
from align_gen.galleries.items import Item
from align_gen.galleries.parquet import NULL_ROWS, parquet_rows, read_parquet
from tests.kits.pictures import picture

PICTURE = picture()


def written(columns: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(
        columns if isinstance(columns, pa.Table) else pa.table(columns), buffer, **options
    )
    return buffer.getvalue()


def items(content: bytes) -> list[Item]:
    memory = fsspec.filesystem("memory")
    memory.pipe("/x.parquet", content)
    parquet_rows("/x.parquet", memory)
    return list(read_parquet("/x.parquet", memory))


def reasons(content: bytes) -> list[str | None]:
    return [
        str(item.content) if isinstance(item.content, UnreadablePicture) else None
        for item in items(content)
    ]


# --- columns --------------------------------------------------------------------------------------


def raw(kind: pa.DataType, *values: int) -> pa.Array:
    """Values of any bits, which the type itself may not allow."""
    bits = np.array(values, np.int64 if kind.bit_width == 64 else np.int32)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(bits.tobytes())])


LOW, HIGH = -(2**63), 2**63 - 1
NOT_UTF8 = pa.array([b"\xff\xfe", b"fine"], pa.binary())
# A column of each type, at its extremes; and what is kept of it, where anything is.
COLUMNS: dict[str, tuple[Any, list[Any] | None]] = {
    "null": (pa.nulls(2), None),
    "bool": (pa.array([True, False]), [True, False]),
    "int8": (pa.array([-128, 127], pa.int8()), [-128, 127]),
    "int64": (pa.array([LOW, HIGH]), [LOW, HIGH]),
    "uint64": (pa.array([0, 2**64 - 1], pa.uint64()), [0, 2**64 - 1]),
    "float16": (pa.array(np.array([1.5, np.inf], np.float16)), [1.5, math.inf]),
    "float64": (pa.array([5e-324, -math.inf]), [5e-324, -math.inf]),
    "decimal128": (pa.array([decimal.Decimal("9" * 38), None]), None),
    "decimal256": (pa.array([decimal.Decimal("9" * 76), None], pa.decimal256(76)), None),
    "string": (pa.array(["a", ""]), ["a", ""]),
    "not UTF-8": (NOT_UTF8.view(pa.string()), ["\ufffd\ufffd", "fine"]),
    "large string": (pa.array(["a", "猫"], pa.large_string()), ["a", "猫"]),
    "large, not UTF-8": (
        NOT_UTF8.cast(pa.large_binary()).view(pa.large_string()),
        ["\ufffd\ufffd", "fine"],
    ),
    "dictionary": (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    "binary": (pa.array([b"", b"\xff"]), None),
    "fixed binary": (pa.array([b"ab", b"\xff\xff"], pa.binary(2)), None),
    "date32": (raw(pa.date32(), -(2**31), 2**31 - 1), None),
    "date64": (raw(pa.date64(), 2**36 * 86_400_000, 0), None),
    "time32": (raw(pa.time32("ms"), -1, 2**31 - 1), None),
    "time64": (raw(pa.time64("ns"), LOW, HIGH), None),
    **{
        f"timestamp {unit} {zone}": (raw(pa.timestamp(unit, zone), *ends), None)
        for unit, ends in (
            ("s", (-(2**50), 2**50)),
            ("ms", (-(2**60), 2**60)),
            ("us", (LOW, HIGH)),
            ("ns", (1234567891, 1)),
        )
        for zone in (None, "UTC", "+23:59")
    },
    **{
        f"duration {unit}": (raw(pa.duration(unit), 1234567891, HIGH), None)
        for unit in ("s", "ms", "us", "ns")
    },
    "list": (pa.array([[1], []]), None),
    "fixed list": (pa.array([[1, 2], None], pa.list_(pa.int8(), 2)), None),
    "map": (pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())), None),
    "struct": (pa.array([{"a": datetime.date.max}, None]), None),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_any_type_beside_a_picture(kind: str) -> None:
    """Texts and numbers are kept; the picture is read whatever stands beside it."""
    column, kept = COLUMNS[kind]
    # The schema that Arrow adds to the file makes its types come back.
    content = written({"image": [PICTURE] * 2, "x": column, "prompt": ["one", "two"]})
    found = items(content)
    assert [item.content for item in found] == [PICTURE] * 2
    assert [item.row.get("prompt") for item in found] == ["one", "two"]
    assert [item.row.get("x") for item in found] == (kept or [None, None])


def test_all_types_at_once() -> None:
    """In one file, as it may come."""
    columns = {name: column for name, (column, _) in COLUMNS.items()}
    assert reasons(written({"image": [PICTURE] * 2, **columns})) == [None, None]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(len(PICTURE))])
def test_pictures_of_any_type_of_bytes(kind: pa.DataType) -> None:
    content = pa.array([PICTURE, None, PICTURE], kind)
    assert reasons(written({"image": content})) == [None, "the row has no picture", None]
    if pa.types.is_binary(kind):
        assert reasons(written({"image": content.dictionary_encode()})) == [
            None,
            "the row has no picture",
            None,
        ]


def test_a_column_whose_name_has_a_point() -> None:
    """Parquet calls the parts of a nested column so."""
    table = {"image": [{"bytes": PICTURE, "path": None}], "image.size": [3], "a.b": ["x"]}
    (found,) = items(written(table))
    assert found.content == PICTURE
    assert found.row == {"image.size": 3, "a.b": "x", "file_name": "x.parquet/000000.png"}


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_a_prefix_of_a_file_is_refused(fraction: float) -> None:
    whole = written({"image": [PICTURE] * 5, "prompt": list("abcde")}, row_group_size=2)
    with pytest.raises(UserError, match=r"x\.parquet: cannot be read as Parquet"):
        items(whole[: int(fraction * len(whole))])


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_flipped_bit_costs_the_rest_of_its_row_group(compression: str) -> None:
    """Every row is there, or one that says which are not; pages have sums here, so none is
    another's.
    """
    pictures = [picture(level=n) for n in range(9)]
    options = {"row_group_size": 3, "write_page_checksum": True, "compression": compression}
    whole = written({"image": pictures}, **options)
    damaged = 0
    for at in range(4, 300, 7):
        found = items(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        good = [item.content for item in found if isinstance(item.content, bytes)]
        assert good == [each for each in pictures if each in good]
        if len(good) < 9:
            damaged += 1
            assert any("(the rest" in str(item.row["file_name"]) for item in found)
    assert damaged > 3


def test_the_row_groups_after_a_damaged_one_are_read() -> None:
    """The first page of the second group holds nothing but zeros."""
    pictures = [picture(level=n) for n in range(9)]
    whole = written({"image": pictures}, row_group_size=3, compression="none")
    start = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(1).column(0).dictionary_page_offset
    found = items(whole[:start] + bytes(40) + whole[start + 40 :])
    names = [str(item.row["file_name"])[10:] for item in found]
    assert names == [
        *(f"{n:06d}.png" for n in (0, 1, 2)),
        "(the rest of row group 1)",
        *(f"{n:06d}.png" for n in (6, 7, 8)),
    ]


# --- bombs ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_null_rows_beyond_a_number_are_one_row() -> None:
    """Three million of them take a few kilobytes; the picture behind them is read."""
    empty = pa.array([None] * 100_000, pa.binary())
    parts = pa.chunked_array([*[empty] * 30, pa.array([PICTURE], pa.binary())])
    for column in (parts, pa.chunked_array([struct_of(chunk) for chunk in parts.chunks])):
        found = items(written({"image": column}))
        assert len(found) == NULL_ROWS + 2
        assert found[NULL_ROWS].row["file_name"] == "x.parquet/3000000.png"
        assert found[NULL_ROWS].content == PICTURE
        assert str(found[-1].content) == f"{3_000_000 - NULL_ROWS} more rows have no picture"


def struct_of(content: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays(
        [content, pa.nulls(len(content), pa.string())], ["bytes", "path"]
    )


@pytest.mark.slow
def test_a_column_that_unpacks_to_much_more_than_it_takes() -> None:
    """100 MB of zeros in a few kilobytes, once, and in a dictionary that many rows use; the group
    beside it is read.
    """
    large = bytes(100_000_000)
    content = written({"image": [PICTURE, large]}, row_group_size=1, compression="zstd")
    assert len(content) < 20_000
    found = reasons(content)
    assert found[0] is None and "unpacks to 1000000" in str(found[1])
    (found_in_dictionary,) = reasons(written({"image": pointing(large, 1000)}, compression="zstd"))
    assert "unpacks to 1000000" in str(found_in_dictionary)


def pointing(value: bytes, count: int) -> pa.Array:
    """Many rows of one value, which stands in the file once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))


@pytest.mark.slow
def test_many_rows_of_one_large_value_are_not_in_memory_together() -> None:
    """A thousand rows of 10 MB each, in a dictionary: one at a time is read."""
    noise = np.random.default_rng(0).bytes(10_000_000)
    memory = fsspec.filesystem("memory")
    memory.pipe("/x.parquet", written({"image": pointing(noise, 1000)}))
    before = pa.total_allocated_bytes()
    stream = read_parquet("/x.parquet", memory)
    for _ in range(3):
        assert len(bytes_of(next(stream))) == len(noise)
        assert pa.total_allocated_bytes() - before < 100_000_000
    stream.close()  # type: ignore[attr-defined]


def bytes_of(item: Item) -> bytes:
    assert isinstance(item.content, bytes)
    return item.content


def test_a_picture_that_is_too_large_costs_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside others in its row group; the limit is set low, as the true one takes long to write."""
    monkeypatch.setattr("align_gen.galleries.parquet.MAX_BYTES", 1000)
    found = reasons(written({"image": [PICTURE, bytes(1001), bytes(1000)]}))
    assert found == [None, "larger than 1000 bytes", None]


def test_a_text_that_is_too_long_costs_its_own_row() -> None:
    table = {"image": [PICTURE] * 2, "prompt": ["x" * (MAX_TEXT + 1), "x"]}
    assert reasons(written(table)) == [f"a text beside it is larger than {MAX_TEXT} bytes", None]
