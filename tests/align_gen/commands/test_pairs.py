"""From scores to pairs to a reward that scores: `align-gen pairs` and `align-gen train-reward`."""

import json
from pathlib import Path

import pytest
import torch

from align_gen.galleries.gallery import write_gallery
from align_gen.galleries.table import ScoresTable
from tests.kits.command_line import Cli, mistake


@pytest.mark.slow
def test_from_scores_to_pairs_to_a_reward_that_scores(cli: Cli, tmp_path: Path) -> None:
    """Eight pictures of four prompts, the lighter of each two preferred; what is trained is scored
    with in the end.
    """
    rows = [{"prompt": f"thing {n // 2}", "seed": n % 2} for n in range(8)]
    levels = torch.linspace(0.1, 0.9, 8).view(-1, 1, 1, 1).expand(-1, 3, 64, 64)
    write_gallery(tmp_path / "g", levels, rows)
    (tmp_path / "light.py").write_text(
        "def light(media, prompts):\n    return media.mean((1, 2, 3))\n"
    )
    assert (
        cli(
            "score",
            tmp_path / "g",
            "--reward",
            f"light={tmp_path}/light.py:light",
            "--combine",
            "mean",
        ).code
        == 0
    )
    mined = cli(
        "pairs", tmp_path / "g", "--by", "best_worst", "--out", tmp_path / "p.parquet", "--json"
    )
    assert json.loads(mined.out) == {
        "pairs": 4,
        "prompts": 4,
        "ties": 0,
        "unreadable": 0,
        "agreement": 1.0,
        "out": str(tmp_path / "p.parquet"),
    }
    trained = cli(
        "train-reward",
        tmp_path / "p.parquet",
        "--base",
        "emoji-clip",
        "--mode",
        "frozen",
        "--epochs",
        "2",
        "--out",
        tmp_path / "head",
    )
    assert trained.code == 0 and "trained overall" in trained.out, trained
    scored = cli(
        "score",
        tmp_path / "g",
        "--reward",
        f"trained:path={tmp_path}/head",
        "--out",
        tmp_path / "s.parquet",
    )
    assert scored.code == 0 and "8 of 8 pictures scored" in scored.out


def test_pictures_outside_of_a_scores_files_folder_are_no_pairs(cli: Cli, tmp_path: Path) -> None:
    """A stranger's file that names a private gallery; beside the gallery the same file is taken."""
    rows = [{"prompt": "a", "seed": seed} for seed in range(2)]
    private = tmp_path / "home" / "private"
    write_gallery(private, torch.linspace(0.1, 0.9, 2).view(-1, 1, 1, 1).expand(-1, 3, 8, 8), rows)
    heads: dict[str, list[float | None]] = {"x": [1.0, 2.0]}
    given = [{**row, "file_name": f"{row['seed']:05d}.png"} for row in rows]
    table = ScoresTable(given, heads, [None] * 2, {}, {}, str(private))
    out = tmp_path / "p.parquet"
    for place, code in (("mail", 2), ("home", 0)):
        (tmp_path / place).mkdir(exist_ok=True)
        table.save(tmp_path / place / "scores.parquet")
        done = cli("pairs", tmp_path / place / "scores.parquet", "--out", out)
        assert done.code == code and out.exists() == (code == 0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["pairs", "nowhere", "--out", "p.parquet"], "nowhere: no such file"),
        (
            ["train-reward", "nowhere", "--base", "emoji-clip", "--out", "o"],
            "nowhere: no such file; want pairs",
        ),
        (
            ["train-reward", "nowhere", "--base", "b", "--out", "o", "--label-smoothing", "x"],
            "--label-smoothing 'x'",
        ),
    ],
)
def test_a_mistake_is_one_line(cli: Cli, arguments: list[str], named: str) -> None:
    assert named in mistake(cli(*arguments))
