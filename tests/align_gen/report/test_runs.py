"""Which scores and names a report of galleries takes, and what it says where there are none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align_gen.errors import UserError
from align_gen.galleries.comparison import compare
from align_gen.galleries.gallery import write_gallery
from align_gen.galleries.table import ScoresTable
from align_gen.report.runs import Roles, report_galleries, verdict_line
from align_gen.training.engine import Run
from align_gen.training.recipe import Recipe


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
    assert "<title>base → more/base</title>" in page and str(tmp_path) not in page


def test_pictures_without_prompts_pair_by_the_columns_that_are_named(tmp_path: Path) -> None:
    """As `compare` does; the page says by what."""
    sides = []
    for name, values in (("a", [1.0, 2.0]), ("b", [3.0, 5.0])):
        (tmp_path / name).mkdir()
        rows = [{"file_name": f"{number}.png"} for number in range(2)]
        column: list[float | None] = [*values]
        ScoresTable(rows, {"h": column}, [None] * 2, {}, {}).save(
            tmp_path / name / "scores.parquet"
        )
        sides.append(tmp_path / name)
    with pytest.raises(UserError, match="no column 'prompt' to pair on; it has file_name"):
        report_galleries(sides, tmp_path / "r.html")
    page = report_galleries(sides, tmp_path / "r.html", on=["file_name"]).read_text()
    assert "over pairs of the same file_name;" in page and "+2.50" in page


def test_a_scores_files_folder_is_followed_only_below_the_file(tmp_path: Path) -> None:
    """A stranger's file that names a private gallery: its page has the scores and no picture."""
    secret = torch.full((1, 3, 8, 8), 0.25)
    for place in ("private", "shared/below"):
        write_gallery(tmp_path / place, secret, [{"prompt": "a", "seed": 0}])
    rows = [{"file_name": "00000.png", "prompt": "a", "seed": 0}]
    (tmp_path / "shared" / "link").symlink_to(tmp_path / "private")
    found = {}
    for name in ("private", "shared/link", "shared/below"):
        table = ScoresTable(rows, {"h": [1.0]}, [None], {}, {}, str(tmp_path / name))
        file = tmp_path / "shared" / "scores.parquet"
        table.save(file)
        page = report_galleries([file], tmp_path / "r.html").read_text()
        found[name] = "base64," in page
        assert found[name] or "the scores name no gallery in their own folder" in page
    assert found == {"private": False, "shared/link": False, "shared/below": True}


RECIPE: dict[str, Any] = {
    "model": {"path": "emoji-sd"},
    "method": {"name": "prdp"},
    "prompts": {"train": "emoji-train", "eval": "emoji-heldout"},
    "rewards": {"blue": {"name": "mean_hue", "hue": 240, "weight": -1}},
    "eval_rewards": {"alias": {"name": "mean_hue", "hue": 240}, "hue": {"name": "mean_hue"}},
}


def test_an_optimised_reward_by_another_name_is_not_held_out() -> None:
    """Equal weights and options are one judge; without a provenance the recipe is believed."""
    blue = {"weights_sha256": None, "options": {"hue": 240.0}}
    known = {"blue": blue, "alias": dict(blue), "hue": {**blue, "options": {"hue": 0.0}}}
    recipe = Recipe.parse(RECIPE)
    roles = Roles.of(recipe, ScoresTable([], {}, [], known, {}))
    assert (roles.optimised, roles.held_out, roles.lowered) == (["blue"], ["hue"], ["blue"])
    assert Roles.of(recipe, ScoresTable([], {}, [], {}, {})).held_out == ["alias", "hue"]


def test_the_verdict_in_one_line_is_the_pages(tmp_path: Path) -> None:
    """Twelve prompts whose blue is wanted low and fell by 1, and whose hue rose by 1."""
    rows = [{"prompt": f"p{number}", "seed": 0} for number in range(12)]
    values: list[float | None] = [float(number) for number in range(12)]
    names = ("blue", "alias", "hue")
    before = ScoresTable(rows, dict.fromkeys(names, values), [None] * 12, {}, {})
    shifts = {"blue": -1.0, "alias": 0.0, "hue": 1.0}
    moved: dict[str, list[float | None]] = {
        name: [number + by for number in range(12)] for name, by in shifts.items()
    }
    after = ScoresTable(rows, moved, [None] * 12, {}, {})
    run = Run(tmp_path, Recipe.parse(RECIPE), before, after)
    reason = "The optimised −blue and the held-out hue rose; nothing optimised or held out fell."
    assert verdict_line(run, compare(before, after)) == f"Improved: {reason}"
    fallen = replace(run, metrics=[{"step": 3, "eval/fallen": 1.0}])
    assert verdict_line(fallen, compare(before, after)).startswith("Held-out rewards fell: ")
