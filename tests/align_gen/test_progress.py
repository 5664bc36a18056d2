"""Plain lines of long work, against a clock that is set by hand; the bar on a real terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest

from align_gen.progress import ProgressBar, duration, note, short_note


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
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
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


STEP = {"step": 3, "reward/mean_hue": -0.1037, "reward/combined": -0.1037, "reward/std": 0.1429}


def test_a_lone_reward_is_not_repeated() -> None:
    numbers = {**STEP, "loss": 0.012345, "kl": 1.0}
    assert note(numbers) == "reward/mean_hue -0.1037  reward/std 0.1429  loss 0.01235"
    assert short_note(numbers) == "reward -0.104  loss 0.0123"
    two = {**numbers, "reward/clip": 0.3, "reward/combined": 0.1963}
    assert "reward/combined 0.1963" in note(two)
    assert short_note(two) == "reward 0.196  loss 0.0123"
    assert (note({}), short_note({})) == ("", "")


def test_a_plain_line_says_the_pace(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as progress:
        progress("train", 1, 2, {"loss": 0.5, "seconds": 12.345})
    assert capsys.readouterr().err == "train 1/2  loss 0.5  12.3 s/step\n"


def on_a_terminal(code: str, columns: int) -> list[str]:
    """The lines that a program leaves on a terminal of so many columns, as stderr."""
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    environment["TERM"] = "xterm"
    command = [sys.executable, "-c", code]
    program = subprocess.Popen(command, stderr=child, stdout=child, env=environment)
    os.close(child)
    text = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        text += part
    os.close(main)
    assert program.wait() == 0, text.decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode())
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_a_line_of_training_fits_80_columns() -> None:
    """Bar, count, time left, seconds a step, reward and loss; nothing is cut."""
    code = (
        "import time\n"
        "from align_gen import progress\n"
        "now = [0.0]\n"
        "time.monotonic = lambda: now[0]\n"
        "with progress.ProgressBar() as bar:\n"
        "    bar('before', 64, 64, {})\n"
        "    for step in range(1, 121):\n"
        "        numbers = {'reward/mean_hue': -0.1037, 'reward/combined': -0.1037}\n"
        "        numbers |= {'reward/std': 0.14, 'loss': 0.012345, 'seconds': 123.4}\n"
        "        bar('train', step, 400, numbers)\n"
        "        now[0] += 120\n"
    )
    lines = on_a_terminal(code, 80)
    assert max(map(len, lines)) <= 80
    line = lines[-1]
    words = r"train +\S+ +120/400 +9 h 20 min left +123 s/step +reward -0.104  loss 0.0123"
    assert re.fullmatch(words, line), line
    assert "━" in line
