"""`align-gen sample`: galleries, and pictures made again from their rows."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from align_gen import bundled
from align_gen.galleries.gallery import Gallery
from tests.kits.command_line import Cli, mistake


def test_sample_writes_a_gallery(cli: Cli, recipe: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """2 prompts x 2 seeds; a row's prompt and seed make its picture again, alone."""
    options = ["--steps", 2, "--guidance", 2.0, "--size", "16x16"]
    done = cli(
        "sample",
        tiny_folder,
        "--prompts",
        tmp_path / "train.txt",
        "--seeds",
        "0,5",
        *options,
        "--out",
        tmp_path / "g",
    )
    assert done.code == 0 and "4 pictures" in done.out, done.err
    gallery = Gallery.load(tmp_path / "g")
    assert [row["prompt"] for row in gallery.rows] == ["a red dog", "a red dog", "a bird", "a bird"]
    assert len({row["seed"] for row in gallery.rows}) == 4
    row = gallery.rows[3]
    again = [
        "--prompt",
        row["prompt"],
        "--seed",
        row["seed"],
        *options,
        "--out",
        tmp_path / "again",
    ]
    assert cli("sample", tiny_folder, *again).code == 0
    torch.testing.assert_close(
        Gallery.load(tmp_path / "again").image(0), gallery.image(3), rtol=0, atol=1.01 / 255
    )


@pytest.mark.slow
def test_best_of_never_scores_less(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """Candidate 0 is the plain sample, so the best of 3 has at least its score."""
    scores = []
    for n, more in ((1, []), (3, ["--best-of", 3, "--reward", "mean_hue:hue=120"])):
        out = tmp_path / f"best-{n}"
        options = ["--prompt", "a bird", "--steps", 2, "--size", "16x16", "--out", out]
        assert cli("sample", tiny_folder, *options, *more).code == 0
        found = cli("score", out, "--reward", "mean_hue:hue=120", "--json")
        scores.append(json.loads(found.out)["means"]["mean_hue"])
    assert scores[1] >= scores[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--prompts"),
        (["--prompt", "a", "--prompts", "b"], "--prompts"),
        (["--prompt", "a", "--best-of", "3"], "--reward"),
        (["--prompt", "a", "--size", "big"], "HEIGHTxWIDTH"),
        (["--prompt", "a", "--seeds", "one"], "--seeds"),
        (["--prompt", "a", "--seed", "1", "--seeds", "0"], "want one"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--prompts", "emoji-heldout", "--seed", "3"], "--seed goes with --prompt"),
        (["--prompt", "a", "--steps", "x"], "--steps"),
        (["--prompt", "a", "--adapter", "nowhere"], "nowhere"),
        (["--prompt", "a", "--size", "17x17", "--steps", "1"], "17"),
        (["--prompt", "a", "--eta", "2", "--steps", "1"], "eta"),
        (["--prompt", "a", "--best-of", "2", "--reward", "shine"], "'shine'"),
    ],
    ids=" ".join,
)
def test_a_mistake_in_sampling_is_one_line(
    cli: Cli, tiny_folder: Path, tmp_path: Path, options: list[str], named: str
) -> None:
    assert named in mistake(cli("sample", tiny_folder, *options, "--out", tmp_path / "g"))
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("option", ["--steps", "--batch-size"])
def test_counts_start_at_one(cli: Cli, tiny_folder: Path, tmp_path: Path, option: str) -> None:
    line = mistake(cli("sample", tiny_folder, "--prompt", "a", option, 0, "--out", tmp_path / "g"))
    assert option in line and "align-gen sample --help" in line


@pytest.mark.slow
def test_the_reports_command_makes_the_picture_again(
    cli: Cli, recipe: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run's last gallery with its export, of its first without; and of a gallery that was
    sampled. Of the model's folder the rows keep the name, which is found from beside the folder.
    """
    from align_gen.report.again import command_for

    run = tmp_path / "run"
    assert cli("finetune", recipe, "--out", run).code == 0
    monkeypatch.chdir(tiny_folder.parent)
    for folder, adapter in (("samples/final", str(run / "export")), ("before", None)):
        gallery = Gallery.load(run / folder)
        command = command_for(gallery.rows[0], adapter)
        assert command.command is not None
        assert command.note == "Only the name of a folder is kept, not its path: tiny-sd."
        _, *words = shlex.split(command.command)
        words[-1] = str(tmp_path / "again")
        assert cli(*words).code == 0
        again = Gallery.load(tmp_path / "again")
        assert torch.equal(again.image(0), gallery.image(0))
        assert command_for(again.rows[0], adapter) == command  # and says the same of itself


def test_a_folder_of_something_else_is_refused_before_sampling(
    cli: Cli, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("")
    monkeypatch.setattr("align_gen.pipelines.sample", None)  # it must not come so far
    assert "thesis.tex" in mistake(cli("sample", tiny_folder, "--prompt", "a", "--out", tmp_path))


def test_a_gallery_is_made_again_from_its_own_rows(
    cli: Cli, tiny_folder: Path, tmp_path: Path
) -> None:
    """One prompt with two seeds is two pictures, and the rows say which."""
    options = ("--steps", 1, "--guidance", 1)
    assert (
        cli(
            "sample",
            tiny_folder,
            "--prompt",
            "a",
            "--seeds",
            "0,1",
            *options,
            "--out",
            tmp_path / "g",
        ).code
        == 0
    )
    rows = tmp_path / "g/metadata.jsonl"
    assert (
        cli("sample", tiny_folder, "--prompts", rows, *options, "--out", tmp_path / "again").code
        == 0
    )
    for name in ("00000.png", "00001.png"):
        assert (tmp_path / "g" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_model_that_draws_nothing_lists_the_bundled_ones_that_do(
    cli: Cli, tmp_path: Path
) -> None:
    for model in ("emoji-sdd", "emoji-clip"):
        line = mistake(cli("sample", model, "--prompt", "a", "--out", tmp_path / "g"))
        assert str(bundled.generators()) in line


@pytest.mark.slow
def test_one_picture_is_one_and_json_counts_it(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    options = ["--prompt", "a", "--steps", 1, "--size", "16x16", "--out", tmp_path / "g"]
    done = cli("sample", tiny_folder, *options)
    assert done.out == f"1 picture in {tmp_path / 'g'}\n"
    done = cli("sample", tiny_folder, *options, "--json")
    assert json.loads(done.out) == {"pictures": 1, "out": str(tmp_path / "g")}
