"""`align-gen compare`: figures, conditions, slices, mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest

from align_gen.galleries.table import ScoresTable
from tests.kits.command_line import Cli, coloured, mistake


@pytest.fixture
def two(cli: Cli, tmp_path: Path) -> tuple[Path, Path]:
    a, b = coloured(tmp_path / "a", 0.1), coloured(tmp_path / "b", 0.2)
    for folder in (a, b):
        assert cli("score", folder, "--reward", "green=mean_hue:hue=120").code == 0
    return a, b


def test_compare_and_its_conditions(cli: Cli, two: tuple[Path, Path]) -> None:
    """Every picture gains .1: a change of .1, all pairs won; that it fell is false, that it rose is
    true.
    """
    done = cli("compare", *two, "--json", "--fail-if", "green.ci_low < 0")
    change = json.loads(done.out)["columns"]["green"]
    assert done.code == 0 and change["delta"] == pytest.approx(0.1, abs=0.005)
    assert (change["n"], change["prompts"], change["win_rate"]) == (8, 4, 1.0)
    failed = cli(
        "compare", *two, "--fail-if", "green.delta > 0.05", "--fail-if", "green.ci_low < 0"
    )
    assert failed.code == 1 and failed.err.splitlines() == ["align-gen: failed: green.delta > 0.05"]
    back = cli("compare", *reversed(two))
    assert back.out.count("fell most in green: ") == 3 and "'p0', seed 0" in back.out
    sliced = cli("compare", *two, "--by", "prompt")
    assert sliced.code == 0 and sliced.out.count("[p") == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--fail-if", "green.ci_low"], "green.ci_low"),
        (["--fail-if", "green.luck < 0"], "luck"),
        (["--fail-if", "__import__('os') < 0"], "__import__"),
        (["--fail-if", "blue.delta < 0"], "blue"),
        (["--by", "colour"], "colour"),
    ],
    ids=" ".join,
)
def test_a_mistake_in_comparing_is_one_line(
    cli: Cli, two: tuple[Path, Path], options: list[str], named: str
) -> None:
    done = cli("compare", *two, *options)
    assert done.code == 2 and named in done.err.splitlines()[-1] and "Traceback" not in done.err


def test_comparing_what_is_not_there_is_one_line(
    cli: Cli, two: tuple[Path, Path], tmp_path: Path
) -> None:
    assert "nowhere" in mistake(cli("compare", two[0], tmp_path / "nowhere"))


def test_comparing_other_weights_is_refused(cli: Cli, two: tuple[Path, Path]) -> None:
    assert cli("score", two[1], "--reward", "green=mean_hue:hue=121").code == 0
    assert "green" in mistake(cli("compare", *two))


def scored(file: Path, rows: list[dict[str, Any]], values: list[float]) -> Path:
    column: list[float | None] = [*values]
    ScoresTable(rows, {"x": column}, [None] * len(rows), {"x": {}}, {}).save(file)
    return file


def test_pictures_pair_on_the_columns_that_are_named(cli: Cli, tmp_path: Path) -> None:
    """Without prompts: by their files' names, or by two columns, in either spelling."""
    rows = [{"file_name": f"{n}.png", "group": n // 2} for n in range(4)]
    a = scored(tmp_path / "a.parquet", rows, [0.0, 1.0, 2.0, 3.0])
    b = scored(tmp_path / "b.parquet", rows[::-1], [4.0, 3.0, 2.0, 1.0])
    assert "no column 'prompt'" in mistake(cli("compare", a, b))
    spellings = (["file_name"], ["file_name,group"], ["file_name", "--on", "group"])
    for columns in spellings:
        done = cli("compare", a, b, "--json", "--on", *columns)
        assert json.loads(done.out)["columns"]["x"]["delta"] == 1.0
    text = cli("compare", b, a, "--on", "file_name").out
    assert "fell most in x: 4.00000 -> 3.00000  3.png" in text


def test_what_was_left_out_or_drawn_otherwise_is_said(cli: Cli, tmp_path: Path) -> None:
    """Three pictures and two, one of which has a partner; 6 steps beside 20."""

    def rows(steps: int, *prompts: str) -> list[dict[str, Any]]:
        return [{"prompt": text, "seed": 0, "made": {"steps": steps}} for text in prompts]

    a = scored(tmp_path / "a.parquet", rows(6, "p", "q", "r"), [0.0, 1.0, 2.0])
    b = scored(tmp_path / "b.parquet", rows(20, "r", "s"), [3.0, 1.0])
    first, second, *_ = cli("compare", a, b).out.splitlines()
    assert first == "drawn in different numbers of steps: 6 before, 20 after"
    assert second == (
        "compared: 1 of 3 pictures before, 1 of 2 after; "
        "the others have no partner or cannot be read"
    )
    assert "compared:" not in cli("compare", a, a).out
    assert "drawn" not in cli("compare", a, a).out


def test_one_prompt_has_no_interval(cli: Cli, tmp_path: Path) -> None:
    """Said in words, as nan is no number; two prompts have one."""
    rows = [{"prompt": "p", "seed": 0}, {"prompt": "q", "seed": 0}]
    for count, said in ((1, "one prompt: no interval"), (2, "[+1.00000, +2.00000]")):
        a = scored(tmp_path / "a.parquet", rows[:count], [0.0, 0.0][:count])
        b = scored(tmp_path / "b.parquet", rows[:count], [1.0, 2.0][:count])
        text = cli("compare", a, b).out
        assert said in text and "nan" not in text


def test_of_runs_the_galleries_are_named(cli: Cli, tmp_path: Path) -> None:
    """One run twice: its start and its end. Two runs: end against end."""
    for run, value in (("a", 1.0), ("b", 2.0)):
        for gallery, shift in (("before", 0.0), ("samples/final", 5.0)):
            (tmp_path / run / gallery).mkdir(parents=True)
            file = tmp_path / run / gallery / "scores.parquet"
            scored(file, [{"prompt": "p", "seed": 0}], [value + shift])
        (tmp_path / run / "recipe.yaml").write_text("")
    a = tmp_path / "a"
    b = tmp_path / "b"
    once = cli("compare", a, a).out.splitlines()
    assert once[0] == f"before: {a}/before; after: {a}/samples/final"
    assert once[2].split()[1:4] == ["1.00000", "6.00000", "+5.00000"]
    two = cli("compare", a, b).out.splitlines()
    assert two[0] == f"before: {a}/samples/final; after: {b}/samples/final"
    assert two[2].split()[1:4] == ["6.00000", "7.00000", "+1.00000"]
    assert "end against end" in " ".join(cli("compare", "-h").out.split())
