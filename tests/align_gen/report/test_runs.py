"""Which scores and names a report of galleries takes, and what it says where there are none."""

from pathlib import Path

import pytest

from align_gen.errors import UserError
from align_gen.galleries.table import ScoresTable
from align_gen.report.runs import command_for, report_galleries


def scored(folder: Path, *values: float) -> Path:
    """A folder with scores and without the pictures."""
    folder.mkdir(parents=True)
    rows = [{"file_name": f"{n}.png", "prompt": "a", "seed": n} for n in range(len(values))]
    table = ScoresTable(rows, {"h": list(values)}, [None] * len(values), {}, {})
    table.save(folder / "scores.parquet")
    return folder


def test_what_is_missing_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nosuch: no such folder or file; want a scored gallery"):
        report_galleries([tmp_path / "nosuch"], tmp_path / "r.html")
    (tmp_path / "g").mkdir()
    with pytest.raises(UserError, match=r"g: no scores in it; make them with: align-gen score \S+"):
        report_galleries([tmp_path / "g"], tmp_path / "r.html")
    with pytest.raises(UserError, match="want one or two galleries"):
        report_galleries([], tmp_path / "r.html")


def test_galleries_go_by_their_names_or_by_their_paths(tmp_path: Path) -> None:
    base = scored(tmp_path / "base", 1.0, 2.0)
    tuned = scored(tmp_path / "tuned", 2.0, 3.0)
    page = report_galleries([base, tuned], tmp_path / "r.html").read_text()
    assert "<title>base → tuned</title>" in page
    assert '"names":{"before":"base","after":"tuned"}' in page
    other = scored(tmp_path / "more" / "base", 5.0, 6.0)
    page = report_galleries([base, other], tmp_path / "r.html").read_text()
    assert f"<title>{base} → {other}</title>" in page


def test_a_picture_of_pythons_guide_has_no_command() -> None:
    """Its row names the rewards without their options."""
    row = {"prompt": "a", "seed": 1, "made": {"model": "m", "best-of": "2", "reward": "h:x=1"}}
    command = command_for(row)
    assert command is not None and "--best-of 2 --reward h:x=1" in command
    row["made"] = {"model": "m", "best-of": "2", "rewards": ["h"]}
    assert command_for(row) is None


@pytest.mark.parametrize(
    "reward", ["x=subprocess:Popen:args=[touch, sprung]", "my.py:f", "views:head=os:system"]
)
def test_a_picture_by_code_of_its_author_has_no_command(reward: str) -> None:
    """A reader who pastes the command would run that code."""
    made = {"model": "m", "best-of": "2"}
    row = {"prompt": "a", "seed": 1}
    assert command_for({**row, "made": {**made, "reward": "mean_hue:hue=120"}}) is not None
    assert command_for({**row, "made": {**made, "reward": reward}}) is None
