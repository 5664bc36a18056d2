"""What the package logs: each message in one line, whatever it names."""

import logging

import pytest

from align_gen.commands.log import log_to_stderr


def test_a_message_is_one_line_and_a_traceback_has_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger("align_gen")
    with log_to_stderr():
        log.warning("cannot read %s", "x\x1b[2J\nalign-gen: all is well")
        try:
            raise ValueError("bad")
        except ValueError:
            log.exception("failed")
    first, second, *rest = capsys.readouterr().err.splitlines()
    assert first == r"cannot read x\x1b[2J\nalign-gen: all is well"
    assert second == "failed" and rest[-1] == "ValueError: bad"
