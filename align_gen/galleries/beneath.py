"""Read a file that must lie in a folder, whatever is renamed or linked while it is opened."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from io import RawIOBase
from pathlib import Path, PurePath
from typing import IO

from .formats import UnreadablePicture


def read_beneath(folder: Path, name: str, limit: int) -> bytes:
    """Read the file ``name`` of a folder; links inside are followed, and none that leads out.

    Raises:
        UnreadablePicture: the file lies outside, or has more than ``limit`` bytes.
        FileNotFoundError: there is none, or no regular file; or a link took its place just now.
    """
    parts = PurePath(name).parts
    if not parts or ".." in parts or PurePath(name).is_absolute():
        raise UnreadablePicture("leaves the folder")
    try:
        descriptor = _open_beneath(folder, parts)
    except FileNotFoundError:
        raise
    except OSError:
        # A link on the way. It is resolved once; whatever becomes a link later is not followed.
        parts = _resolved_beneath(folder, name)
        try:
            descriptor = _open_beneath(folder.resolve(), parts)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise FileNotFoundError from error
            raise
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise FileNotFoundError
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return read_all(file, limit, about.st_size)
    finally:
        os.close(descriptor)


def read_all(file: IO[bytes] | RawIOBase, limit: int, size: int | None = None) -> bytes:
    """Read a file to its end.

    Raises:
        UnreadablePicture: it has more than ``limit`` bytes; no more than these are ever read.
    """
    too_large = UnreadablePicture(f"larger than {limit} bytes")
    if size is not None and size > limit:
        raise too_large
    # In chunks: memory is asked for as bytes arrive, and not by what a header says.
    step = 2**20 if size is None else min(size + 1, 2**24)
    chunks = []
    total = 0
    while chunk := file.read(step):
        chunks.append(chunk)
        total += len(chunk)
        if total > limit:
            raise too_large
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _open_beneath(folder: Path, parts: Sequence[str]) -> int:
    """A descriptor of the file at ``parts``, none of which may be a link."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for number, part in enumerate(parts, start=1):
        # Without O_NONBLOCK, opening a pipe would wait for its other end.
        kind = os.O_DIRECTORY if number < len(parts) else os.O_NONBLOCK
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind
        try:
            inner = os.open(part, flags, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def _resolved_beneath(folder: Path, name: str) -> tuple[str, ...]:
    """The folders and the file that lead from the folder to ``name``, links resolved."""
    try:
        parts = (folder / name).resolve().relative_to(folder.resolve()).parts
    except (RuntimeError, OSError) as error:
        # Links that go in circles.
        raise FileNotFoundError from error
    except ValueError as error:
        raise UnreadablePicture("leaves the folder") from error
    if not parts:
        raise FileNotFoundError
    return parts
