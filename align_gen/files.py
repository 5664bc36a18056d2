"""Files and folders that appear complete or not at all, whatever moment a process is killed at."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

MAX_LINE = 2**20  # bytes of a line of JSON: a row of metadata, a preference pair


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at ``path`` complete or not at all.

    It is written beside ``path``, synced to disk and renamed.
    """
    part = partial(path)
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder that appears at ``target`` complete or not at all, in place of one that is there.

    Yields the folder to write into. An old folder survives until the new one is whole.
    """
    part = partial(target)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for path in part.rglob("*"):
            sync(path)
        publish(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def publish(part: Path, target: Path) -> None:
    """Rename a folder that is written and synced to ``target``; an old folder there is removed.

    A kill between the two renames leaves the old folder aside, where ``surviving`` finds it.
    """
    sync(part)
    if target.exists():
        shutil.rmtree(aside(target), ignore_errors=True)
        os.replace(target, aside(target))
    os.replace(part, target)
    sync(target.parent)
    shutil.rmtree(aside(target), ignore_errors=True)


def partial(target: Path) -> Path:
    """Where ``target`` is written until it is whole."""
    return target.with_name(f".{target.name}.part")


def aside(folder: Path) -> Path:
    """Where the old folder waits while the new one takes its place."""
    return folder.with_name(f".{folder.name}.old")


def surviving(folder: Path) -> Path:
    """The folder, or the old one put aside by a write that was killed between its two renames."""
    old = aside(folder.resolve())
    return old if old.is_dir() and not folder.exists() else folder


def sync(path: Path) -> None:
    """Have the disk hold what was written: a file's content, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file that are not blank, as bytes; see ``numbered_lines``."""
    with path.open("rb") as file:
        yield from numbered_lines(file, str(path))


def numbered_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, as bytes, of which only one is in memory.

    They are split at newlines alone: a prompt may hold U+2028, where ``str.splitlines`` would cut
    it in two.

    Raises:
        UserError: a line of more than MAX_LINE bytes.
    """
    for number in count(1):
        line = file.readline(MAX_LINE + 1)
        if not line:
            return
        if len(line) > MAX_LINE:
            raise UserError(f"{name} line {number}: longer than {MAX_LINE} bytes; want JSON lines")
        if line.strip():
            yield number, line
