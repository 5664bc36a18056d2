"""The command line as a fixture, for its own tests and those of every command."""

import sys
from typing import Any

import pytest

from align_gen.cli import main
from tests.kits.command_line import Cli, Done


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The entry point in this process: arguments in, (exit code, stdout, stderr) out."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["align-gen", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as error:
            code = error.code or 0
        return Done(code, *capsys.readouterr())

    return run
