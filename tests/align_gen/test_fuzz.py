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
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from align_gen.errors import UserError
from align_gen.galleries.formats import UnreadablePicture
from align_gen.galleries.media import pixels_of, read_pixels
from align_gen.galleries.pairs import SIDES, read_pairs, write_pairs
from align_gen.galleries.prompts import load_prompts
from align_gen.galleries.sources import open_source
from align_gen.galleries.table import ScoresTable
from align_gen.methods.state import TrainState
from align_gen.pipelines.lora_files import SETTINGS, write_plain
from align_gen.training import checkpoint, saved
from tests.kits.pictures import patches, picture, tar, video
from tests.kits.states import learn, state_of, sums_again

EXAMPLES = 200  # of each target in the suite
FEWER = {"MP4": 20, "weights": 50, "optimizer": 50}  # of those that take longer
LONGEST = 5.0  # seconds of this process that one example may take

# Targets that are files of a checkpoint.
OF_CHECKPOINTS = {
    "weights": saved.WEIGHTS,
    "optimizer": saved.OPTIMIZER,
    "progress": saved.PROGRESS,
}

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


def _file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    """A target that reads a file of this name."""

    def target(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            file.write_bytes(content)
            read(file)

    return target


def _read_pairs(file: Path) -> None:
    for row in read_pairs(file):
        for side in SIDES:
            row[side].read()


def _read_lora(file: Path) -> None:
    try:
        write_plain(file, file.with_name("plain"))
    except ValueError as error:
        # What loads an adapter says whose file it is.
        raise UserError(str(error)) from error


@cache
def _run() -> tuple[TrainState, dict[str, dict[str, bytes]]]:
    """A state, and the files of a run's checkpoints of steps 1 and 2."""
    state = state_of()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            learn(state)
            checkpoint.save(state, Path(folder), {}, [{"step": state.step, "loss": 1.0}])
        steps = {
            step.name: {file.name: file.read_bytes() for file in step.iterdir()}
            for step in (Path(folder) / "checkpoints").iterdir()
        }
    return state, steps


def _checkpoint(name: str) -> Callable[[bytes], None]:
    """A target that resumes from a checkpoint one of whose files is this, under sums that fit."""

    def target(content: bytes) -> None:
        state, steps = _run()
        with tempfile.TemporaryDirectory() as folder:
            for step, files in steps.items():
                path = Path(folder) / "checkpoints" / step
                path.mkdir(parents=True)
                for each, data in files.items():
                    (path / each).write_bytes(data)
            (path.with_name("step-000002") / name).write_bytes(content)
            sums_again(path.with_name("step-000002"))
            # A checkpoint that cannot be is passed over; the one before is as it was written.
            assert checkpoint.restore(state, Path(folder), 2)["step"] in (1, 2)

    return target


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
    "scores": _file("x.parquet", ScoresTable.load),
    "pairs": _file("x.parquet", _read_pairs),
    "JSON prompts": _file("x.jsonl", load_prompts),
    "CSV prompts": _file("x.csv", load_prompts),
    "LoRA": _file("x.safetensors", _read_lora),
    **{target: _checkpoint(name) for target, name in OF_CHECKPOINTS.items()},
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
    if target in ("PNG", "WebP"):
        return [patches(target.upper(), (40, 30))]
    return own_files(target)


def own_files(target: str) -> list[bytes]:
    """Whole files as the project writes them, or as people hand them over."""
    if target == "JSON prompts":
        return [b'{"prompt": "a", "seed": 3}\n{"prompt": "b", "x": [1.5]}\n']
    if target == "CSV prompts":
        return [b'prompt,seed\n"a ""b""",1\nc,2\n', b"text;x\na;1\n"]
    if target in OF_CHECKPOINTS:
        return [_run()[1]["step-000002"][OF_CHECKPOINTS[target]]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "x.parquet"
        if target == "scores":
            rows = [{"file_name": "a.png", "prompt": "a"}, {"file_name": "b.png", "prompt": "b"}]
            scores = {"x": [0.5, None]}
            ScoresTable(rows, scores, [None, "broken"], {"x": {}}, {}, None).save(file)
        elif target == "pairs":
            (folder / "a.png").write_bytes(picture())
            (folder / "b.png").write_bytes(picture(level=90))
            write_pairs(file, [{"prompt": "a", "chosen": "a.png", "rejected": "b.png"}], folder)
        elif target == "LoRA":
            settings = {"unet.r": 2, "unet.lora_alpha": 2, "unet.target_modules": ["to_q"]}
            down = {"unet.to_q.lora_A.weight": torch.ones(2, 4)}
            save_file(down, file, metadata={SETTINGS: json.dumps(settings), "format": "pt"})
        return [file.read_bytes()]


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
        run(FEWER.get(target, EXAMPLES), derandomize=True)
        return
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run(EXAMPLES)
