"""What a user can put right, told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake of the user's: names the key or file and what is accepted. The command line exits with 2."""


@contextmanager
def user_mistakes() -> Iterator[None]:
    """Around making things ready from what a user named: a library's ValueError or OSError there is theirs to fix."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
