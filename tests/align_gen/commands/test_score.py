"""`align-gen score`: scores beside pictures, corrupt pictures, mistakes."""

import json
from pathlib import Path

import pytest

from tests.kits.command_line import Cli, coloured, mistake


def test_score_writes_scores_beside_the_pictures(cli: Cli, tmp_path: Path) -> None:
    """Green by .1 above grey: the component along 120 degrees is .1."""
    done = cli(
        "score",
        coloured(tmp_path / "g", 0.1),
        "--reward",
        "green=mean_hue:hue=120",
        "--reward",
        "jpeg_size",
    )
    assert done.code == 0 and "8 of 8 pictures scored" in done.out
    assert (tmp_path / "g/scores.parquet").is_file()
    line = next(line for line in done.out.splitlines() if line.startswith("green"))
    assert float(line.split()[1]) == pytest.approx(0.1, abs=0.003)


def test_a_corrupt_picture_is_a_null_row(cli: Cli, tmp_path: Path) -> None:
    """The rest goes on and the exit code is 0; with --strict it is 1. The reason is told either
    way.
    """
    folder = coloured(tmp_path / "g", 0.1)
    (folder / "00003.png").write_bytes((folder / "00003.png").read_bytes()[:40])
    done = cli("score", folder, "--reward", "mean_hue", "--json", "--out", tmp_path / "s.parquet")
    found = json.loads(done.out)
    assert done.code == 0 and found["pictures"] == 8 and list(found["failed"]) == ["00003.png"]
    assert any("00003.png" in line for line in done.err.splitlines())
    strict = cli(
        "score", folder, "--reward", "mean_hue", "--strict", "--out", tmp_path / "t.parquet"
    )
    assert strict.code == 1 and "00003.png" in strict.err and "7 of 8" in strict.out
    from align_gen.galleries.table import ScoresTable

    column = ScoresTable.load(tmp_path / "s.parquet")
    assert [value is None for value in column.heads["mean_hue"]] == [i == 3 for i in range(8)]
    assert column.errors[3]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--reward", "shine"], "'shine'"),
        (["--reward", "mean_hue:heu=1"], "heu"),
        (["--reward", "mean_hue", "--reward", "mean_hue:hue=3"], "mean_hue"),
        (["--reward", "=:="], "want [LABEL=]NAME"),
        (["--reward", "mean_hue:hue=[1"], "mean_hue"),
        (["--reward", "clip:path=nowhere"], "nowhere"),
        (["--reward", "seed=mean_hue"], "'seed'"),
        (["--reward", "mean_hue", "--out", "/proc/align-gen-scores"], "/proc/align-gen-scores"),
        (["--reward", "mean_hue", "--batch-size", "0"], "batch"),
    ],
    ids=" ".join,
)
def test_a_mistake_in_scoring_is_one_line(
    cli: Cli, tmp_path: Path, options: list[str], named: str
) -> None:
    done = cli("score", coloured(tmp_path / "g", 0.1), *options)
    assert done.code == 2 and named in done.err.splitlines()[-1] and "Traceback" not in done.err
    assert not (tmp_path / "g/scores.parquet").exists()


def test_scoring_nothing_is_one_line(cli: Cli, tmp_path: Path) -> None:
    assert "nowhere" in mistake(cli("score", tmp_path / "nowhere", "--reward", "mean_hue"))
    (tmp_path / "empty").mkdir()
    assert "no pictures" in mistake(cli("score", tmp_path / "empty", "--reward", "mean_hue"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ["score", ".", "--reward", "mean_hue", "--suite", "drawbench"],
            "--suite 'drawbench': have ['hpdv2']",
        ),
        (
            ["score", "a.tar", "--reward", "mean_hue"],
            "a.tar: is no folder to keep the scores in; want --out FILE",
        ),
        (["score", "nowhere", "--reward", "mean_hue"], "nowhere: no such folder"),
        (["score", ".", "--reward", "mean_hue", "--out", "s.csv"], "want a .parquet file"),
        (["score", ".", "--reward", "mean_hue", "--combine", "best"], "rule"),
        (["score", ".", "--reward", "mean_hue", "--calibrate", "nowhere"], "nowhere: no such file"),
        (["score", ".", "--reward", "clip:emoji-clip"], "want clip:KEY=emoji-clip"),
    ],
)
def test_a_mistake_is_one_line(cli: Cli, arguments: list[str], named: str) -> None:
    assert named in mistake(cli(*arguments))


EDITED = "def f(media, prompts):\n    return {factor} * media.mean((1, 2, 3))\n"


def test_an_edited_reward_scores_anew_and_an_unchanged_one_does_not(
    cli: Cli, tmp_path: Path
) -> None:
    """Twice the factor is twice the score; a file of the same text, written again, is the same."""
    from align_gen.galleries.table import ScoresTable

    folder = coloured(tmp_path / "g", 0.1)
    means, hashes = [], []
    for factor in ("1", "2", "2"):
        (tmp_path / "mine.py").write_text(EDITED.format(factor=factor))
        assert cli("score", folder, "--reward", f"mine={tmp_path}/mine.py:f").code == 0
        table = ScoresTable.load(folder / "scores.parquet")
        means.append(table.mean("mine"))
        hashes.append(table.provenance["mine"]["code_sha256"])
    assert means[1] == means[2] == pytest.approx(2 * means[0])
    assert hashes[0] != hashes[1] == hashes[2]


def test_code_on_the_command_line_needs_no_leave_and_no_program_is_a_reward(
    cli: Cli, tmp_path: Path
) -> None:
    mark = tmp_path / "sprung"
    reward = f"x=subprocess:Popen:args=[touch, '{mark}']"
    line = mistake(cli("score", coloured(tmp_path / "g", 0.1), "--reward", reward))
    assert "'subprocess:Popen': is the class Popen; want a function" in line and not mark.exists()
