"""What a piece of code writes, renames and removes: seen by an audit hook of the interpreter."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Events whose first argument is the path, and those whose second one is a path, too.
TOUCHES = ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.truncate", "os.chmod", "os.utime")
TWO = ("os.rename", "os.link", "os.symlink")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

_seen: list[list[str]] = []  # of every ``touched`` that is open


@contextmanager
def touched(folder: Path) -> Iterator[list[str]]:
    """Inside, the paths below ``folder`` that are written or removed, in order, relative to it.

    The list is filled while the code runs, and cut to the folder's at the end.
    """
    if not _seen:
        # A hook stays for as long as the interpreter: one is enough.
        sys.addaudithook(_audit)
        _seen.append([])
    paths: list[str] = []
    _seen.append(paths)
    try:
        yield paths
    finally:
        _seen.remove(paths)
        below = [path for path in map(Path, paths) if path.is_relative_to(folder)]
        paths[:] = [str(path.relative_to(folder)) for path in below if path != folder]


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if len(_seen) < 2:
        return
    named: list[Any] = []
    if event == "open" and (arguments[2] or 0) & WRITES:
        named = [arguments[0]]
    elif event in TOUCHES or event in TWO:
        named = [*arguments[: 2 if event in TWO else 1]]
    for name in named:
        if isinstance(name, str | os.PathLike):
            _seen[-1].append(os.path.abspath(name))
