"""Any bytes for every reader of files: a value, or one line that says what is wrong.

A few seconds each in the suite, always the same examples; with ALIGN_GEN_FUZZ_SECONDS, as many new
ones as that time allows.
"""

import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from align_gen.errors import UserError
from align_gen.galleries.formats import UnreadablePicture
from align_gen.galleries.media import pixels_of, read_pixels
from align_gen.galleries.sources import open_source
from tests.kits.pictures import patches, picture, tar, video

EXAMPLES = 200  # of each target in the suite
LONGEST = 5.0  # seconds of this process that one example may take

# --- targets --------------------------------------------------------------------------------------


def _read(name: str, content: bytes, link: str = "") -> None:
    """Open a file of this name and content as a source, and decode all that it gives."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        (Path(folder) / "a.png").write_bytes(picture())
        for item in open_source(f"{link}{file if link or file.suffix != '.jsonl' else folder}"):
            # An item that cannot be read is a row with its reason.
            try:
                read_pixels(item.read(), item.suffix)
            except UnreadablePicture as error:
                _one_line(error)


def _decode(suffix: str) -> Callable[[bytes], None]:
    def decode(content: bytes) -> None:
        pixels_of(content, suffix)
        read_pixels(content, suffix)

    return decode


def _one_line(error: Exception) -> None:
    assert "\n" not in str(error), error


# name -> what reads any bytes, and may only raise UserError or UnreadablePicture.
TARGETS: dict[str, Callable[[bytes], object]] = {
    "tar": lambda content: _read("x.tar", content),
    "parquet": lambda content: _read("x.parquet", content),
    "metadata": lambda content: _read("metadata.jsonl", content),
    "references": lambda content: _read("r.json", content, "reference://g::"),
    "zip": lambda content: _read("x.zip", content, "zip://::"),
    "JPEG": _decode(".jpg"),
    "PNG": _decode(".png"),
    "WebP": _decode(".webp"),
    "MP4": _decode(".mp4"),
}


@cache
def seeds(target: str) -> list[bytes]:
    """Whole files of a target's kind: what is made from them gets further than random bytes."""
    if target == "tar":
        sample = [("a.png", picture()), ("a.json", b'{"x": [1]}'), ("b.png", picture())]
        return [tar(sample, mode) for mode in ("w", "w:gz", "w:bz2", "w:xz")]
    if target == "parquet":
        columns = {"image": [picture(), None], "prompt": ["a", "b"], "x": [1.5, None]}
        return [_parquet(columns, kind) for kind in ("none", "snappy", "zstd")]
    if target in ("metadata", "references"):
        rows = [{"file_name": "a.png", "prompt": "a", "x": {"y": [None, 1e300]}}]
        references = {"version": 1, "refs": {"g/a.png": ["a.png", 0, 50], "g/b.png": "base64:AAAA"}}
        return [json.dumps(each).encode() for each in (rows[0], references)]
    if target == "MP4":
        with tempfile.TemporaryDirectory() as folder:
            return [video(Path(folder), 4)]
    if target == "JPEG":
        return [patches("JPEG", (40, 30)), patches("JPEG", (40, 30), progressive=True)]
    if target == "zip":
        return [_zip({"a.png": picture(), "metadata.jsonl": b'{"file_name": "a.png"}'})]
    return [patches(target.upper(), (40, 30))] if target in ("PNG", "WebP") else []


def _parquet(columns: dict[str, Any], compression: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression=compression)
    return buffer.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# --- any bytes ------------------------------------------------------------------------------------


@st.composite
def contents(draw: st.DrawFn, target: str) -> bytes:
    """Random bytes; or a whole file, a few of whose bytes are changed, cut out or put twice."""
    whole = seeds(target)
    if not whole or draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=600))
    content = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.integers(0, 3))
        if kind == 0 and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            content[at:at] = draw(st.binary(max_size=8) | st.sampled_from(NUMBERS))
        elif kind == 2:
            del content[at : at + draw(st.integers(1, 64))]
        else:
            content[at : at + 8] = draw(st.sampled_from(NUMBERS))
    return bytes(content)


# Sizes and counts that headers are not written with, and JSON that is nested or no number.
NUMBERS = [
    *(number.to_bytes(8, order) for number in (0, 2**31, 2**63 - 1, 2**64 - 1)
      for order in ("big", "little")),
    b"7777777777",
    b"[" * 5000,
    b"1e999,",
    b'"\\ud800"',
]  # fmt: skip


def only_errors_of_a_user(target: str, content: bytes) -> None:
    """The law: a value, or UserError or UnreadablePicture in one line; within seconds."""
    began = time.process_time()
    try:
        TARGETS[target](content)
    except (UserError, UnreadablePicture) as error:
        _one_line(error)
    assert time.process_time() - began < LONGEST


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_any_bytes(target: str) -> None:
    seconds = float(os.environ.get("ALIGN_GEN_FUZZ_SECONDS", "0"))

    def run(examples: int, **more: Any) -> None:
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
            **more,
        )
        @given(content=contents(target))
        def law(content: bytes) -> None:
            only_errors_of_a_user(target, content)

        law()

    if not seconds:
        run(20 if target == "MP4" else EXAMPLES, derandomize=True)
        return
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run(EXAMPLES)
