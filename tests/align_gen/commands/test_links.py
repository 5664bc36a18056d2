"""No command writes, renames or removes through a link that stood in the folder it was given.

Each command runs once and every path that it touches is listed; then again, with each of these, and
each folder on the way to it, a link to a canary outside: the canary is as it was.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from align_gen.galleries.gallery import write_gallery
from tests.kits.command_line import Cli
from tests.kits.writes import touched

pytestmark = pytest.mark.slow

# Names that are new every time: nobody can have put a link there.
NEW = re.compile(r"\.[0-9a-f]{16}\.(part|old)(/|$)")


def gallery(folder: Path) -> Path:
    """Six pictures of three prompts, as ``sample`` leaves them."""
    levels = torch.linspace(0.2, 0.8, 6).view(6, 1, 1, 1).expand(6, 3, 16, 16).clone()
    rows = [{"prompt": f"p{i // 2}", "seed": i % 2, "made": {"model": "x"}} for i in range(6)]
    write_gallery(folder / "g", levels, rows)
    return folder / "g"


Make = Callable[[Cli, Path, Path], Sequence[object]]


def score(cli: Cli, folder: Path, recipe: Path) -> Sequence[object]:
    return "score", gallery(folder), "--reward", "jpeg_size"


def score_again(cli: Cli, folder: Path, recipe: Path) -> Sequence[object]:
    assert cli(*score(cli, folder, recipe)).code == 0
    return "score", folder / "g", "--reward", "mean_hue:hue=120"


def score_elsewhere(cli: Cli, folder: Path, recipe: Path) -> Sequence[object]:
    return "score", gallery(folder), "--reward", "jpeg_size", "--out", folder / "s.parquet"


def pairs(cli: Cli, folder: Path, recipe: Path) -> Sequence[object]:
    assert cli(*score(cli, folder, recipe)).code == 0
    return "pairs", folder / "g", "--out", folder / "pairs.parquet"


def report(cli: Cli, folder: Path, recipe: Path) -> Sequence[object]:
    assert cli(*score(cli, folder, recipe)).code == 0
    return "report", folder / "g", "--out", folder / "g" / "page.html"


def new_recipe(cli: Cli, folder: Path, recipe: Path) -> Sequence[object]:
    return "recipe", "new", folder / "mine.yaml"


def sample(cli: Cli, folder: Path, recipe: Path) -> Sequence[object]:
    gallery(folder)
    model = recipe.parent / "model"
    options = ["--prompt", "a bird", "--steps", 2, "--size", "16x16", "--overwrite"]
    return "sample", model, *options, "--out", folder / "g"


def finetune(cli: Cli, folder: Path, recipe: Path) -> Sequence[object]:
    return "finetune", recipe, "--out", folder / "run"


def finetune_on(cli: Cli, folder: Path, recipe: Path) -> Sequence[object]:
    assert cli(*finetune(cli, folder, recipe)).code == 0
    return *finetune(cli, folder, recipe), "--set", "run.steps=2"


def run_report(cli: Cli, folder: Path, recipe: Path) -> Sequence[object]:
    assert cli(*finetune(cli, folder, recipe)).code == 0
    return "report", folder / "run", "--out", folder / "run" / "report.html"


COMMANDS: list[Make] = [
    score, score_again, score_elsewhere, pairs, report, new_recipe, sample, finetune, finetune_on,
    run_report,
]  # fmt: skip


@pytest.mark.parametrize("make", COMMANDS, ids=lambda make: make.__name__)
def test_no_link_is_followed(
    cli: Cli, make: Make, recipe: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    (recipe.parent / "model").symlink_to(tiny_folder)
    start = tmp_path / "start"
    start.mkdir()
    command = make(cli, start, recipe)

    def here(folder: Path) -> list[object]:
        """The command, on a copy of the folder."""
        return [
            folder / word.relative_to(start)
            if isinstance(word, Path) and word.is_relative_to(start)
            else word
            for word in command
        ]

    first = tmp_path / "first"
    shutil.copytree(start, first)
    with touched(first) as paths:
        done = cli(*here(first))
    assert done.code == 0, done.err
    assert paths

    for name in _and_folders(paths):
        folder, canary = tmp_path / "again", tmp_path / "canary"
        shutil.copytree(start, folder)
        _canary(canary)
        before = _tree(canary)
        goal = canary if (first / name).is_dir() else canary / "file"
        _put_link(folder / name, goal)
        done = cli(*here(folder))
        assert _tree(canary) == before, name
        assert done.code in (0, 1, 2), done
        shutil.rmtree(folder)
        shutil.rmtree(canary)


def _and_folders(paths: Sequence[str]) -> list[str]:
    """Each path and the folders on the way to it; not the folder that the user named."""
    named = {"g", "run"}
    found = {
        str(each)
        for path in paths
        if not NEW.search(path)
        for each in (Path(path), *Path(path).parents)
    }
    return sorted(found - named - {"."})


def _canary(folder: Path) -> None:
    """A folder with a file, and with what the commands look for: nothing of it may change."""
    (folder / "step-000000").mkdir(parents=True)
    for name in ("file", "000000.parquet", "00000.png", "metadata.jsonl", "step-000000/SHA256SUMS"):
        (folder / name).write_text("mine")


def _tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def _put_link(path: Path, goal: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(goal)
