"""What is told in one line: a user's mistake, and a run that could not go on."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake of the user's: names the key or file and what is accepted. The command line exits
    with 2.
    """


class RunFailure(RuntimeError):
    """A run that had to stop, with everything up to its last checkpoint kept. The command line
    exits with 1.
    """


@contextmanager
def user_mistakes() -> Iterator[None]:
    """Around making things ready from what a user named: a library's ValueError or OSError there is
    theirs to fix.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Around writing a part of a run: a disk that is full, or gone, is a RunFailure that names the
    path.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunFailure(f"{path}: cannot be written ({one_line(error)})") from error


@contextmanager
def writing_to(path: object, want: str = "a file that can") -> Iterator[None]:
    """Around writing what the user named: an OSError there is a UserError that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); want {want}") from error


def one_line(error: object, limit: int | None = None) -> str:
    """The message of an error in one line, of at most ``limit`` characters."""
    return " ".join(str(error).split())[:limit]
