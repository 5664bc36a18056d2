"""What goes to stderr while a command runs: the package's log, each line once."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import printable

# Read by each library when it is imported: what it logs below this level is not printed.
VERBOSITY = ("DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY")


class StderrHandler(logging.StreamHandler[Any]):
    """Writes to what ``sys.stderr`` is at the time, which a progress bar replaces."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """Ignore what the base class was given."""


class LineFormatter(logging.Formatter):
    """Writes a message in one line: it may name what comes from others' files."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


@contextmanager
def log_to_stderr(debug: bool = False) -> Iterator[None]:
    """Inside, what the package logs goes to stderr, each line once.

    Other libraries log only with ``debug``. Of several processes the first one logs.
    """
    ours = logging.getLogger("align_gen")
    root = logging.getLogger()
    before = (ours.level, ours.propagate, dict(os.environ))
    handler = StderrHandler()
    # Some library calls logging.basicConfig, which does nothing where the root has a handler.
    theirs: logging.Handler = StderrHandler() if debug else logging.NullHandler()
    handler.setFormatter(LineFormatter())
    ours.addHandler(handler)
    root.addHandler(theirs)
    ours.propagate = False
    ours.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    try:
        with warnings.catch_warnings():
            if not debug:
                _silence_libraries()
            yield
    finally:
        root.removeHandler(theirs)
        ours.removeHandler(handler)
        level, propagate, environment = before
        ours.setLevel(level)
        ours.propagate = propagate
        for name in VERBOSITY:
            if name not in environment:
                os.environ.pop(name, None)


def _silence_libraries() -> None:
    """Leave out what libraries log and warn of: a mistake of the user's has its own line."""
    for name in VERBOSITY:
        os.environ.setdefault(name, "error")
    # Last in the list, so that whatever asked for a warning before still gets it.
    warnings.filterwarnings("default", module="align_gen", append=True)
    warnings.filterwarnings("ignore", append=True)
