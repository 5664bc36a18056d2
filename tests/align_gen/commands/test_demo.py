"""`align-gen demo`: mistakes; what it computes is tested with the demo itself."""

from pathlib import Path

from tests.kits.command_line import Cli, mistake


def test_a_demo_of_no_model_is_one_line(cli: Cli, tmp_path: Path) -> None:
    assert "emoji-sd" in mistake(cli("demo", "--model", "sd35", "--out", tmp_path / "run"))
