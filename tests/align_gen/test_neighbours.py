"""What stands beside our files under names that are near to theirs is nobody's but the user's.

Before each command, the folder that it writes and its parent are filled with such neighbours.
Afterwards all of them are there, byte by byte; or the command refused, with exit code 2.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kits.command_line import Cli, coloured

TOKEN = "0123456789abcde"  # one digit less than ours
# Names by the folder or file that is written; each is a file, or with a slash a file in a folder.
NEAR = (
    "{}.bak",
    "{}.old",
    "{}.part",
    "{}~",
    ".{}.part",
    ".{}.old",
    ".{}.old/thesis",
    ".{}.part/thesis",
    ".{}.parts/2020-sales.parquet",
    ".{}.parts/00000.parquet",
    ".{}.parts/known-x-000000.parquet",
    ".{}.lock.bak",
    f".{{}}.{TOKEN}.part",
    f".{{}}.{TOKEN}f.parts",
    f"{{}}.{TOKEN}f.part",
    f".{{}}.{TOKEN}F.old",
)
INSIDE = (
    "00000.png",
    "00007.png",
    "000000.parquet",
    "metadata.jsonl.bak",
    "metadata.json",
    ".metadata.jsonl.part",
    "scores.parquet.bak",
    ".scores.parquet.part",
    ".scores.parquet.parts/2020-sales.parquet",
    ".scores.parquet.parts/00001.parquet",
    "notes.txt",
    "step-000001.bak",
)


def put(folder: Path, names: Iterator[str] | list[str]) -> dict[Path, bytes]:
    """Files of the user's under some names, where these are free; what was there is known too."""
    for name in names:
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            continue
        if not path.exists():
            path.write_text(f"the user's {name}")
    return content(folder)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def around(target: Path) -> list[str]:
    return [name.format(target.name) for name in NEAR]


Command = Callable[[Path, Path], tuple[Path, list[object]]]


def sample(home: Path, model: Path) -> tuple[Path, list[object]]:
    size = ["--steps", 1, "--size", "16x16"]
    return home / "g", ["sample", model, "--prompt", "a", *size, "--out", home / "g"]


def sample_again(home: Path, model: Path) -> tuple[Path, list[object]]:
    target, command = sample(home, model)
    return target, [*command, "--overwrite"]


def score(home: Path, model: Path) -> tuple[Path, list[object]]:
    return home / "g/scores.parquet", ["score", home / "g", "--reward", "mean_hue"]


def score_elsewhere(home: Path, model: Path) -> tuple[Path, list[object]]:
    out = home / "s.parquet"
    return out, ["score", home / "g", "--reward", "mean_hue", "--out", out]


def pairs(home: Path, model: Path) -> tuple[Path, list[object]]:
    return home / "p.parquet", ["pairs", home / "g", "--out", home / "p.parquet"]


COMMANDS: dict[str, Command] = {
    "sample": sample,
    "sample --overwrite": sample_again,
    "score": score,
    "score --out": score_elsewhere,
    "pairs": pairs,
}


@pytest.fixture
def home(cli: Cli, tmp_path: Path) -> Path:
    """A scored gallery of pictures that differ."""
    (tmp_path / "light.py").write_text(
        "def light(media, prompts):\n    return media.mean((1, 2, 3))\n"
    )
    home = tmp_path / "home"
    folder = coloured(home / "g", 0.1)
    reward = f"light={tmp_path}/light.py:light"
    assert cli("score", folder, "--reward", reward).code == 0
    return home


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_neighbours_of_a_new_target_stay(
    cli: Cli, home: Path, tiny_folder: Path, name: str
) -> None:
    """The command does its work; of what was there, only an earlier file of scores changes."""
    target, command = COMMANDS[name](home, tiny_folder)
    if command[0] == "sample":
        shutil.rmtree(home / "g")
    before = put(target.parent, around(target))
    done = cli(*command)
    assert done.code == 0, done.err
    after = content(home)
    changed = {path for path in before if after.get(path) != before[path]}
    assert changed <= {target}
    # And nothing new is left behind but what was asked for.
    new = {path.relative_to(home).parts[0] for path in after.keys() - before.keys()}
    assert new <= {"g", "s.parquet", "p.parquet"}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_neighbours_inside_stay(cli: Cli, home: Path, tiny_folder: Path, name: str) -> None:
    """The folder that is written holds the user's own, too: all of it is there, or exit code 2."""
    target, command = COMMANDS[name](home, tiny_folder)
    put(home, around(home / "g"))
    before = put(home / "g", [*INSIDE, *around(home / "g/scores.parquet")]) | content(home)
    done = cli(*command)
    after = content(home)
    changed = {path for path in before if after.get(path) != before[path]}
    assert changed <= {target}
    assert done.code == (2 if command[0] == "sample" else 0), done.err


@pytest.mark.slow
@pytest.mark.parametrize("more", INSIDE)
def test_one_neighbour_keeps_a_gallery_from_being_replaced(
    cli: Cli, tmp_path: Path, tiny_folder: Path, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its name is; and no model is loaded to find out."""
    target, command = sample_again(tmp_path, tiny_folder)
    write(target)
    (target / "00000.png").rename(target / "00001.png") if more == "00000.png" else None
    before = put(target, [more])
    monkeypatch.setattr("align_gen.opening.open_model", None)
    assert cli(*command).code == 2
    assert content(target) == before


def write(folder: Path) -> None:
    """A gallery as ``sample`` writes it, of one picture."""
    import torch

    from align_gen.galleries.gallery import write_gallery

    made = {"steps": 9, "guidance": 1.0, "eta": 0.0}
    write_gallery(folder, torch.zeros(1, 3, 8, 8), [{"prompt": "b", "seed": 1, "made": made}])
