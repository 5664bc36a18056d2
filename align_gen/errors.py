"""Errors printed in one line: a user's mistake (exit 2), and a run that had to stop (exit 1)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

# What moves a terminal's cursor, ends a line or turns its letters round: C0, DEL, C1, the line
# separators, and Unicode's controls of direction; and half a surrogate pair, which has no bytes.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class UserError(ValueError):
    """A mistake of the user; the message names the key or file, and what is accepted.

    The command line exits with 2.
    """


class RunFailure(RuntimeError):
    """A run that had to stop, with everything up to its last checkpoint kept.

    The command line exits with 1.
    """


@contextmanager
def user_mistakes() -> Iterator[None]:
    """Inside, a library's ValueError or OSError becomes a UserError.

    For making things ready from what a user named: the error is then the user's to fix.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Inside, a disk that is full or gone is a RunFailure that names the path.

    For writing the parts of a run.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunFailure(f"{path}: cannot be written ({one_line(error)})") from error


@contextmanager
def writing_to(path: object, want: str = "a file that can") -> Iterator[None]:
    """Inside, an OSError is a UserError that names the path; for writing what the user named."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); want {want}") from error


def one_line(error: object, limit: int | None = None) -> str:
    """The message of an error in one line, of at most ``limit`` characters, without controls."""
    return printable(" ".join(str(error).split()))[:limit]


def printable(text: object) -> str:
    """A text for one line of a terminal: control characters as their escapes in Python.

    Names and prompts come from files of others, and could forge lines or move the cursor.
    """
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], str(text))
