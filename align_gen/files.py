"""The one way to write and to remove: whole files and folders, whatever moment a kill comes at.

Everything is written beside its target, under a new name, synced and renamed. No link is followed
to what is written or removed. What is there already is replaced only where it is of the same kind.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from secrets import token_hex
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import BinaryIO

from .errors import UserError

# Fails where the name exists, be it a link to nowhere.
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
TOKEN = "[0-9a-f]{16}"
MAX_LINE = 2**20  # bytes of a line of JSON: a row of metadata, a preference pair


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at ``path`` complete or not at all.

    Raises:
        UserError: there is something else than a regular file.
    """
    require_file(path)
    clear(path)
    part = _fresh(path, "part")
    try:
        with open(os.open(part, NEW, 0o666), "wb") as file:
            # Held while it is written, so that ``clear`` of another process leaves it alone.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A binary file that is not there yet, on disk afterwards; for a folder that is being written.

    Raises:
        FileExistsError: the name is taken.
    """
    with open(os.open(path, NEW, mode), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder that appears at ``target`` complete or not at all, in place of one that is there.

    Yields the folder to write into. An old folder survives until the new one is whole. Whether it
    may be replaced is for the caller to know.

    Raises:
        UserError: there is something else than a folder.
    """
    with part_of(target) as part:
        yield part
        # As any new file: some libraries make theirs readable to their owner alone.
        mode = part.stat().st_mode & 0o666
        for path in part.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(mode)
            sync(path)
        publish(part, target)


@contextmanager
def part_of(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` to write into; it is removed unless ``publish`` renames it.

    Raises:
        UserError: at ``target`` is something else than a folder.
    """
    require_folder(target)
    clear(target)
    part = _fresh(target, "part")
    part.mkdir(parents=True)
    descriptor = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield part
    finally:
        os.close(descriptor)
        shutil.rmtree(part, ignore_errors=True)


def publish(part: Path, target: Path) -> None:
    """Rename a folder that is written and synced to ``target``; an old folder there is removed.

    A kill between the two renames leaves the old folder aside, where ``surviving`` finds it.
    """
    sync(part)
    require_folder(target)
    aside = _fresh(target, "old")
    if target.exists():
        os.replace(target, aside)
    os.replace(part, target)
    sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def surviving(folder: Path) -> Path:
    """The folder, or the old one put aside by a write that was killed between its two renames."""
    if folder.exists():
        return folder
    old = [
        path
        for path in _leftovers(folder.resolve())
        if path.suffix == ".old" and not path.is_symlink()
    ]
    return max(old, key=lambda path: path.stat().st_mtime, default=folder)


def clear(target: Path) -> None:
    """Remove what killed writes of ``target`` left beside it; an old folder comes back.

    What another process is writing stays.
    """
    old = surviving(target)
    if old != target:
        with suppress(OSError):
            os.replace(old, target)
    _remove_idle(_leftovers(target))


def clear_below(folder: Path) -> None:
    """Remove what killed writes of anything in ``folder`` left there."""
    _remove_idle(path for path in _entries(folder) if is_leftover(path))


def is_leftover(path: Path, of: str = ".+") -> bool:
    """Whether a name is one that a killed write left; ``of`` is a pattern of what was written."""
    return re.fullmatch(rf"\.{of}\.{TOKEN}\.(part|old)", path.name, re.DOTALL) is not None


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it; of a link, the link alone.

    What is gone already, or cannot be removed, is passed over.
    """
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def move(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that nothing has.

    Raises:
        FileExistsError: there is something; a link to nowhere, too.
    """
    if _kind(target) != "nothing":
        raise FileExistsError(f"{target}: is there already")
    os.replace(source, target)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file, on disk afterwards; it is made where there is none.

    Raises:
        OSError: it cannot be written, or is a link.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o666), "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders, in this order, that hold nothing."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def require_file(path: Path, *suffixes: str) -> None:
    """Refuse a target that is there and is no regular file, or has another suffix.

    Raises:
        UserError: says what is there.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: want a name that ends in {' or '.join(suffixes)}")
    kind = _kind(path)
    if kind not in ("nothing", "a file"):
        raise UserError(f"{path}: is {kind}; want a new name, or a file to replace")


def require_folder(path: Path) -> None:
    """Refuse a target that is there and is no folder: a link to one is none.

    Raises:
        UserError: says what is there.
    """
    kind = _kind(path)
    if kind not in ("nothing", "a folder"):
        raise UserError(f"{path}: is {kind}; want a new name, or a folder")


def require_no_links(folder: Path) -> None:
    """Refuse a folder in which a link stands, at any depth: it may have come from someone else.

    Raises:
        UserError: names the link.
    """
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where, name)
            if path.is_symlink():
                raise UserError(f"{path}: is a link; want the folder of a run without links")


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


def _fresh(target: Path, kind: str) -> Path:
    """A name beside ``target`` that nobody else has: ``.NAME.0123456789abcdef.part``."""
    return target.with_name(f".{target.name}.{token_hex(8)}.{kind}")


def _leftovers(target: Path) -> list[Path]:
    """What stands beside ``target`` under a name of ``_fresh``."""
    name = re.escape(target.name)
    return [path for path in _entries(target.parent) if is_leftover(path, name)]


def _entries(folder: Path) -> list[Path]:
    """What stands in a folder; nothing where it cannot be read."""
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except OSError:
        return []


def _remove_idle(paths: Iterable[Path]) -> None:
    """Remove files and folders that no process is writing; links stay."""
    for path in paths:
        if not path.is_symlink() and not _being_written(path):
            remove(path)


def _being_written(path: Path) -> bool:
    """Whether a process holds the part of a file or folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _kind(path: Path) -> str:
    """What stands at a path, in words; a link is not followed."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    kinds = {S_ISREG: "a file", S_ISDIR: "a folder", S_ISLNK: "a link"}
    return next((name for test, name in kinds.items() if test(mode)), "a device or a pipe")
