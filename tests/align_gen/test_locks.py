"""A target has one writer, and a writer that was killed holds nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from align_gen.errors import UserError
from align_gen.locks import beside, clear_locks, locked

HOLD = """
import sys
from pathlib import Path
from align_gen.locks import locked
with locked(Path(sys.argv[1]), "target"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(lock: Path) -> "subprocess.Popen[str]":
    """A process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_the_first(tmp_path: Path) -> None:
    lock = beside(tmp_path / "g")
    assert lock == tmp_path / ".g.lock"
    with holder(lock) as process:
        told = rf"g: is being written by process {process.pid} on "
        with pytest.raises(UserError, match=told), locked(lock, "g"):
            pass
        process.communicate()
    with locked(lock, "g"):
        pass
    assert not [*tmp_path.iterdir()]


def test_locks_that_kills_left_are_cleared(tmp_path: Path) -> None:
    """What a process holds stays, what is no lock, and every lock that was not asked for."""
    names = ("final", "held", "notes", "link", "mine")
    final, held, notes, link, mine = (tmp_path / name for name in names)
    with holder(beside(final)) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    beside(notes).write_text("my own notes")
    beside(link).symlink_to(beside(notes))
    beside(mine).touch()
    with holder(beside(held)) as process:
        clear_locks([final, held, notes, link, tmp_path / "none"])
        assert not beside(final).exists() and beside(held).exists()
        assert beside(notes).read_text() == "my own notes" and beside(link).is_symlink()
        assert beside(mine).exists()
        process.communicate()


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with holder(lock) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lock.exists()
    with locked(lock, "run"):
        pass
    assert not lock.exists()


def test_who_waits_comes_next(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with holder(lock) as process:
        assert process.stdin is not None
        # Its input ends, and with it the holder; whenever that is, the lock is ours afterwards.
        process.stdin.close()
        with locked(lock, "run", wait=True):
            assert f"process {os.getpid()} on" in lock.read_text()


@pytest.mark.parametrize("kind", ["link", "hard link", "text", "folder", "pipe"])
def test_a_name_that_is_taken_is_left_alone(tmp_path: Path, kind: str) -> None:
    lock, canary = tmp_path / ".lock", tmp_path / "canary"
    canary.write_text("mine")
    makes = {
        "link": lambda: lock.symlink_to(canary),
        "hard link": lambda: lock.hardlink_to(canary),
        "text": lambda: lock.write_text("mine"),
        "folder": lambda: lock.mkdir(),
        "pipe": lambda: os.mkfifo(lock),
    }
    makes[kind]()
    with pytest.raises(UserError, match=r"\.lock: is no lock of ours"), locked(lock, "run"):
        pass
    assert canary.read_text() == "mine"
    assert lock.is_symlink() == (kind == "link")
