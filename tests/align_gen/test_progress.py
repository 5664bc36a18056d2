"""Plain lines of long work, against a clock that is set by hand."""

import time

import pytest

from align_gen.progress import ProgressBar, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_come_at_once_then_every_half_minute_then_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """A step takes 8 s: lines at step 1, at 5 (32 s later) with 6 of 10 … 5 steps, 40 s, left, at
    9, and at the end.
    """
    with ProgressBar() as progress:
        for done in range(1, 11):
            progress("train", done, 10, {"loss": 0.5, "other": 1.0})
            clock[0] += 8
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "train 1/10  loss 0.5",
        "train 5/10  loss 0.5  40 s left",
        "train 9/10  loss 0.5  8 s left",
        "train 10/10  loss 0.5",
    ]


def test_each_phase_begins_with_a_line_of_its_own(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar() as progress:
        progress("before", 16, 64, {})
        progress("train", 7, 10, {})  # resumed
        clock[0] += 60
        progress("train", 8, 10, {})
    assert capsys.readouterr().err.splitlines() == [
        "before 16/64",
        "train 7/10",
        "train 8/10  2 min left",
    ]


def test_durations() -> None:
    seconds = (0.4, 89, 90, 720, 5300, 5399, 12000)
    said = ["0 s", "89 s", "2 min", "12 min", "88 min", "1 h 30 min", "3 h 20 min"]
    assert [duration(each) for each in seconds] == said
