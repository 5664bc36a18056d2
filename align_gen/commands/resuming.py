"""What an ended or interrupted run says: whether the same command resumes it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError, one_line
from ..run_folder import RunFolder

HINT = "; the same command goes on from the last checkpoint"
ATTRIBUTE = "resume_hint"  # of an exception that passes through ``resumable``


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Around a run in ``folder``: an error carries a hint where there is a checkpoint to resume.

    A run that was asked to stop ends with its signal's exit code, 128 + number.
    """
    from ..training.divergence import Diverged
    from ..training.signals import Stopped

    try:
        yield
    except Stopped as stopped:
        print(
            f"align-gen: {one_line(stopped)}; the same command goes on from there", file=sys.stderr
        )
        raise SystemExit(128 + stopped.signum) from None
    except KeyboardInterrupt:
        print(f"align-gen: interrupted{_hint_of(folder)}", file=sys.stderr)
        raise SystemExit(130) from None
    except (UserError, Diverged):
        # The same command would meet the same mistake, or the same step.
        raise
    except Exception as error:
        setattr(error, ATTRIBUTE, _hint_of(folder))
        raise


def resume_hint(error: BaseException) -> str:
    """How to go on after this error, or nothing."""
    return str(getattr(error, ATTRIBUTE, ""))


def _hint_of(folder: Path) -> str:
    return HINT if RunFolder(folder).saved_steps() else ""
