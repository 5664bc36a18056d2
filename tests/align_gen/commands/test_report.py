"""`align-gen report`: mistakes; the page has its own tests."""

import json
from pathlib import Path

from tests.kits.command_line import Cli, coloured, mistake


def test_reporting_what_is_not_scored_is_one_line(cli: Cli, tmp_path: Path) -> None:
    line = mistake(cli("report", coloured(tmp_path / "g", 0.1), "--out", tmp_path / "page.html"))
    assert "align-gen score" in line and not (tmp_path / "page.html").exists()


def test_reporting_nothing_is_one_line(cli: Cli, tmp_path: Path) -> None:
    line = mistake(cli("report", tmp_path / "nowhere"))
    assert "nowhere: no such folder" in line and "align-gen score" not in line


def test_the_page_is_named_in_json(cli: Cli, tmp_path: Path) -> None:
    gallery = coloured(tmp_path / "g", 0.1)
    assert cli("score", gallery, "--reward", "jpeg_size").code == 0
    done = cli("report", gallery, "--out", tmp_path / "page.html", "--json")
    assert json.loads(done.out) == {"out": str(tmp_path / "page.html")}
    assert (tmp_path / "page.html").is_file()


def test_pictures_without_prompts_pair_by_named_columns(cli: Cli, tmp_path: Path) -> None:
    """As in `compare`, in its spellings."""
    galleries = [coloured(tmp_path / name, shift) for name, shift in (("a", 0.1), ("b", 0.2))]
    for gallery in galleries:
        (gallery / "metadata.jsonl").unlink()
        assert cli("score", gallery, "--reward", "jpeg_size").code == 0
    page = tmp_path / "page.html"
    assert "no column 'prompt'" in mistake(cli("report", *galleries, "--out", page))
    for columns in (["file_name"], ["file_name,file_name"]):
        assert cli("report", *galleries, "--out", page, "--on", *columns).code == 0
    assert "8 pairs" in page.read_text()
