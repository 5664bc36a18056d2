"""One writer at a time: locks that the kernel releases when their process dies."""

import fcntl
import logging
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

from .errors import UserError

log = logging.getLogger("align_gen")
HOLDER = re.compile(rb"process \d+ on [^\x00-\x1f]{1,255}\n")


def beside(target: Path) -> Path:
    """The lock of a file or folder: hidden, in the folder where it lies."""
    target = Path(os.path.abspath(target))
    return target.with_name(f".{target.name}.lock")


@contextmanager
def locked(lock: Path, target: object, *, wait: bool = False) -> Iterator[None]:
    """Hold ``target`` for writing, by a lock at the file ``lock``; it is gone afterwards.

    Args:
        lock: see ``beside``; its folder is made.
        target: as an error names it.
        wait: until another process is done, instead of raising.

    Raises:
        UserError: another process holds it, named by its number; or the name is taken by a file
            that is no lock.
        OSError: the lock cannot be made.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(lock, target, wait)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _myself(), 0)
        yield
    finally:
        # Removed while it is held: who opened it meanwhile sees that it is gone, and begins anew.
        with suppress(OSError):
            lock.unlink()
        os.close(descriptor)


def clear_locks(targets: Iterable[Path]) -> None:
    """Remove the locks of files and folders that kills left: those that no process holds."""
    for lock in map(beside, targets):
        if lock.is_file():
            # What is held, or no lock of ours, stays.
            with suppress(UserError, OSError), locked(lock, lock):
                pass


def _take(lock: Path, target: object, wait: bool) -> int:
    """An open and held lock file."""
    told = False
    while True:
        descriptor = _open(lock)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 300, 0).decode(errors="replace").strip()
            os.close(descriptor)
            holder = holder or "another process"
            if not wait:
                raise UserError(
                    f"{target}: is being written by {holder}; "
                    "want to wait until it is done, or another --out"
                ) from None
            if not told:
                log.info("%s: waiting for %s", target, holder)
                told = True
            time.sleep(0.2)
            continue
        if _stands(descriptor, lock):
            return descriptor
        os.close(descriptor)


def _open(lock: Path) -> int:
    """Open the lock file, made where there is none; UserError where the name is another's."""
    foreign = UserError(f"{lock}: is no lock of ours; want it moved away")
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(lock, flags, 0o666)
    except OSError as error:
        if lock.is_symlink() or lock.is_dir():
            raise foreign from None
        raise error
    about = os.fstat(descriptor)
    content = os.pread(descriptor, 512, 0) if S_ISREG(about.st_mode) else b"?"
    # A second name of the file would mean that it is somewhere else, too.
    if about.st_nlink > 1 or (content and not HOLDER.fullmatch(content)):
        os.close(descriptor)
        raise foreign
    return descriptor


def _stands(descriptor: int, lock: Path) -> bool:
    """Whether the open file is still the one of that name: its last holder may have removed it."""
    try:
        there = os.stat(lock, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _myself() -> bytes:
    """The holder in words, as the one who comes second is told."""
    return f"process {os.getpid()} on {socket.gethostname()}\n".encode()
