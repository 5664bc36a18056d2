"""What goes out is clean: no control character on the terminal, no folder of this machine in what
people pass on.
"""

import io
import json
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align_gen.galleries.gallery import write_gallery
from align_gen.galleries.parquet_files import SCORES
from align_gen.galleries.table import ScoresTable
from tests.kits.command_line import Cli, Done

# What a stranger may write into a name, a prompt or a group.
EVIL = (
    "\x1b]0;PWNED\x07",
    "\x1b[2J\nalign-gen: all is well",
    "\x9b31m\x85forged",
    "\u202egnp.exe",
    "\u2066a\u2069\u200f\u061c",
    "a\u2028b\r\tc\x7f\x08",
)
BIDI = {0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def controls(text: str) -> list[str]:
    """The control characters of a text, by Unicode's own tables, but for the newline."""
    kinds = ("Cc", "Cs", "Zl", "Zp")
    return [
        hex(ord(each))
        for each in text
        if each != "\n" and (unicodedata.category(each) in kinds or ord(each) in BIDI)
    ]


def test_the_guard_sees_what_it_is_to_see() -> None:
    assert all(controls(text) for text in EVIL) and not controls("a é 👩\u200d🚀\n")


def hostile(folder: Path, shift: float) -> Path:
    """Twelve pictures of six prompts, one of them corrupt, with evil in every text."""
    levels = torch.linspace(0.2, 0.5, 12).view(12, 1, 1, 1).expand(12, 3, 8, 8).clone()
    levels[:, 1] += shift
    write_gallery(folder, levels, [{"prompt": "", "seed": 0} for _ in levels])
    rows: list[dict[str, Any]] = []
    for number in range(len(levels)):
        text = EVIL[number // 2]
        # A name of a file is no path: it has no slash, and Linux has no NUL.
        name = f"{number}{text}.png"
        (folder / f"{number:05d}.png").rename(folder / name)
        rows.append({"prompt": text, "seed": number % 2, "file_name": name, f"group{text}": text})
        rows[-1]["group"] = text
    (folder / rows[-1]["file_name"]).write_bytes(b"no picture")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines)
    return folder


@pytest.fixture
def clean(cli: Cli) -> Callable[..., Done]:
    """The command line, whose every line is looked at."""

    def run(*arguments: object) -> Done:
        done = cli(*arguments)
        assert not controls(done.out + done.err), (arguments, done)
        # A forged line would begin as one of ours.
        assert not any(line.startswith("align-gen: all is well") for line in done.err.splitlines())
        return done

    return run


@pytest.mark.slow
def test_hostile_texts_reach_no_terminal(clean: Callable[..., Done], tmp_path: Path) -> None:
    """Names, prompts, groups, columns and folders, in figures and in errors."""
    a = hostile(tmp_path / "a", 0.2)
    b = hostile(tmp_path / f"b{EVIL[1]}", 0.1)
    for gallery in (a, b):
        done = clean(
            "score", gallery, "--reward", "green=mean_hue:hue=120", "--reward", "jpeg_size"
        )
        assert done.code == 0 and "11 of 12 pictures scored" in done.out
        assert "\\x7f" in done.err  # the corrupt picture, by its name

    done = clean("compare", a, b, "--by", "group", "--fail-if", "green.delta < 1")
    assert (
        done.code == 1 and "fell most in green" in done.out and "[\\x1b]0;PWNED\\x07]" in done.out
    )
    assert clean("compare", a, b, "--on", "file_name,group").code == 0
    for options in (["--json"], ["--by", "nosuch"], ["--on", "nosuch"], ["--fail-if", EVIL[0]]):
        clean("compare", a, b, *options)

    assert clean("report", a, b, "--out", tmp_path / f"{EVIL[4]}.html").code == 0
    assert clean("report", a, "--out", tmp_path / "r.html", "--json").code == 0
    assert clean("pairs", a, "--out", tmp_path / f"{EVIL[0]}.parquet").code == 0
    for command in (
        ["pairs", a, "--out", tmp_path / "p.parquet", "--column", "nosuch"],
        ["pairs", a, "--out", tmp_path / "p.parquet", "--by", EVIL[1]],
        ["report", tmp_path / EVIL[2]],
        ["score", tmp_path / EVIL[3], "--reward", "jpeg_size"],
        ["score", a, "--reward", EVIL[0]],
        ["compare", a, tmp_path / EVIL[5]],
        [EVIL[1]],
    ):
        assert clean(*command).code == 2


@pytest.mark.slow
def test_members_of_a_shard_reach_no_terminal(clean: Callable[..., Done], tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    with tarfile.open(shard, "w") as tar:
        for number, text in enumerate(EVIL):
            member = tarfile.TarInfo(f"{number}{text}.png")
            member.size = 3
            tar.addfile(member, io.BytesIO(b"bad"))
    done = clean("score", shard, "--reward", "jpeg_size", "--out", tmp_path / "s.parquet")
    assert "0 of 6 pictures scored" in done.out and "PWNED" in done.err


@pytest.mark.slow
def test_columns_of_a_scores_file_reach_no_terminal(
    clean: Callable[..., Done], tmp_path: Path
) -> None:
    """Heads with evil names: in the table, and in the lines of what fell."""
    rows = [{"prompt": text, "seed": 0} for text in EVIL]
    for name, value in (("a", 1.0), ("b", 0.0)):
        heads: dict[str, list[float | None]] = {text: [value] * len(EVIL) for text in EVIL}
        table = ScoresTable(rows, heads, [None] * len(rows), {}, {})
        table.save(tmp_path / f"{name}.parquet")
    done = clean("compare", tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert done.code == 0 and done.out.count("fell most in ") == 3 * len(EVIL)


@pytest.mark.slow
def test_a_run_names_no_folder_of_this_machine(
    clean: Callable[..., Done], recipe: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    """The folders of the model, the prompts, a reward of one's own and the run itself. The recipe
    keeps them, as the run goes on by it; and a reward's column has the name it was given.
    """
    (tmp_path / "own.py").write_text(
        "def near(media, prompts):\n    return media.mean((1, 2, 3))\n"
    )
    (tmp_path / "eval.txt").write_text(f"an elk {EVIL[0]}\n```\n# a comment\n")
    own = f"{tmp_path}/own.py:near"
    text = recipe.read_text().replace("rewards: {mean", f"rewards: {{'{own}': 1.0, mean")
    recipe.write_text(text)
    run = tmp_path / "run"
    done = clean("finetune", recipe, "--allow-code", "--out", run)
    assert done.code == 0 and "\nToo few prompts to say (2 of at least 10): " in done.out

    # Whatever of these paths stands in a file is a path of this machine.
    private = [str(tmp_path), str(tiny_folder.parent), str(Path.home()) + "/"]

    def leaks(content: str) -> list[str]:
        return [path for path in private if path in content]

    assert leaks((run / "recipe.yaml").read_text())
    passed_on = [path for path in (run / "export").iterdir() if path.is_file()]
    assert {path.name for path in passed_on} > {"README.md"}
    passed_on += [run / "report.html", run / "before/metadata.jsonl"]
    for path in passed_on:
        content = path.read_bytes().decode("utf-8", "replace")
        assert not leaks(content) and path.stat().st_size > 0, path
    card = (run / "export/README.md").read_text()
    assert "own.py:near" in card and "# tiny-sd, fine-tuned by PRDP" in card

    # Of the rows, nothing; of the columns, what the user called the reward.
    for gallery in (run / "before", run / "samples/final"):
        table = ScoresTable.load(gallery / SCORES)
        assert not leaks(json.dumps(table.rows)) and table.rows[0]["made"]["model"] == "tiny-sd"
        assert [name for name in table.heads if leaks(name)] == [own]

    # Written again from elsewhere, and of its two galleries.
    for source in ([run], [run / "before", run / "samples/final"]):
        page = tmp_path / "again.html"
        assert clean("report", *source, "--out", page).code == 0
        assert not leaks(page.read_text()) and "own.py:near" in page.read_text()


@pytest.mark.slow
def test_a_sampled_gallery_names_no_folder_of_this_machine(
    clean: Callable[..., Done], tiny_folder: Path, tmp_path: Path
) -> None:
    """Of the model, and of the best-of reward's option."""
    command: list[Any] = ["sample", tiny_folder, "--prompt", "a", "--size", "16x16", "--steps", 2]
    assert clean(*command, "--out", tmp_path / "g").code == 0
    rows = (tmp_path / "g" / "metadata.jsonl").read_text()
    assert '"model": "tiny-sd"' in rows and str(tiny_folder.parent) not in rows
