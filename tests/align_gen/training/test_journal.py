"""metrics.jsonl: lines that no run has written, and lines that were lost."""

import json
from pathlib import Path

import pytest

from align_gen.errors import RunFailure
from align_gen.training.journal import Journal, read_lines

GOOD = [{"step": step, "loss": 0.5 * step} for step in range(4)]


def write(file: Path, *lines: bytes) -> None:
    file.write_bytes(b"".join(line + b"\n" for line in lines))


def good() -> list[bytes]:
    return [json.dumps(line).encode() for line in GOOD]


@pytest.mark.parametrize(
    "bad",
    [
        b'{"step": 3, "loss": "low"}',
        b'{"step": 3, "eval/fallen": "words"}',
        b'{"step": 3, "loss": null}',
        b'{"step": 3, "loss": true}',
        b'{"step": 3, "loss": [1]}',
        b'{"step": 3, "loss": ' + b"9" * 400 + b"}",
        b'{"step": ' + b"9" * 400 + b"}",
        b'{"step": ' + b"9" * 5000 + b"}",
        b'{"step": -1}',
        b'{"step": 1.0}',
        b'{"step": true}',
        b'{"loss": 1.0}',
        b'{"step": 3, "loss": \xff\xfe}',
        b'{"st\xff": 3}',
        b"\x00",
        b"[" * 100_000,
        b"[]",
        b"3",
        b'{"step": 3, "lo',
    ],
    ids=lambda bad: repr(bad[:24]),
)
def test_lines_up_to_one_that_no_run_has_written(tmp_path: Path, bad: bytes) -> None:
    write(tmp_path / "m", *good()[:2], bad, good()[3])
    assert read_lines(tmp_path / "m") == GOOD[:2]


def test_infinity_and_nothing(tmp_path: Path) -> None:
    """A skipped step of fp16 has an infinite norm."""
    write(tmp_path / "m", b'{"step": 1, "grad_norm": Infinity}')
    assert read_lines(tmp_path / "m") == [{"step": 1, "grad_norm": float("inf")}]
    assert read_lines(tmp_path / "nothing") == []


@pytest.mark.parametrize("harm", ["gone", "torn", "words", "other numbers"])
def test_lost_lines_are_those_of_the_checkpoint(tmp_path: Path, harm: str) -> None:
    file = tmp_path / "m"
    there = {
        "torn": [*good()[:1], good()[1][:7]],
        "words": [good()[0], b"words", *good()[2:]],
        "other numbers": [*good()[:2], b'{"step": 2, "loss": 7.0}'],
    }
    if harm in there:
        write(file, *there[harm])
    journal = Journal(file, 2, kept=GOOD[:3])
    assert journal.lines == read_lines(file) == GOOD[:3]


def test_what_came_after_the_checkpoint_stays(tmp_path: Path) -> None:
    """The measurement of its step stands behind it; lines of later steps are of nothing kept."""
    later = {"step": 2, "eval/a/mean": float("nan")}
    write(tmp_path / "m", *good()[:3], json.dumps(later).encode(), good()[3])
    journal = Journal(tmp_path / "m", 2, kept=GOOD[:3])
    assert [line["step"] for line in journal.lines] == [0, 1, 2, 2]
    again = Journal(tmp_path / "m", 2, kept=journal.lines)
    assert len(again.lines) == 4


def test_no_link_is_written_through(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("mine")
    journal = Journal(tmp_path / "m", 0)
    (tmp_path / "m").symlink_to(canary)
    with pytest.raises(RunFailure, match="m: cannot be written"):
        journal.add({"step": 1})
    assert canary.read_text() == "mine"
