"""SIGTERM and Ctrl-C in the middle of a run: the step is finished and saved first."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 1.0  # seconds: a terminal and a launcher both tell their processes of one Ctrl-C


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop, after all that it had done was saved."""

    def __init__(self, message: str, signum: int | None):
        super().__init__(message)
        self.signum = signum or signal.SIGTERM  # None: another process of the run had it


class StopSignals:
    """Inside, the first SIGTERM or Ctrl-C is only noted, in ``signum``; the second acts as ever.

    Outside of the main thread, where Python handles no signals, nothing changes.
    """

    signum: int | None = None

    def __enter__(self) -> "StopSignals":
        self._kept: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._kept = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._since = number, time.monotonic()
            # Not print: the signal may have come in the middle of one.
            name = signal.Signals(number).name
            os.write(2, f"align-gen: {name}: saving first; again stops at once\n".encode())
        elif time.monotonic() - self._since > ECHO:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler)
        self._kept = {}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
