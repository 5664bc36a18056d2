"""The command line: what it prints, and every mistake as one line with exit code 2."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from align_gen import bundled
from align_gen.cli import main
from align_gen.commands.arguments import parse_reward
from align_gen.galleries.gallery import Gallery, write_gallery
from align_gen.training.recipe import Recipe

COMMANDS = (
    "demo", "finetune", "sample", "score", "pairs", "train-reward", "check", "bench", "compare", "report", "list",
)  # fmt: skip


@dataclass
class Done:
    code: int
    out: str
    err: str


Cli = Callable[..., Done]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The entry point in this process: arguments in, (exit code, stdout, stderr) out."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["align-gen", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as error:
            code = error.code or 0
        return Done(code, *capsys.readouterr())

    return run


def mistake(done: Done) -> str:
    """The one line of a mistake, after progress if there was any."""
    assert done.code == 2, done
    assert (
        done.err.startswith("align-gen: ") and done.err.count("\n") == 1 and len(done.err) < 800
    ), done.err
    assert "Traceback" not in done.err and not done.out
    return done.err


# --- finetune -------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "train.txt").write_text("a red dog\na bird\n")
    (tmp_path / "eval.txt").write_text("an elk\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model_index.json").write_text('{"_class_name": "SoundPipeline"}')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/model_index.json").write_text('{"_class_name": ')
    (tmp_path / "mine.py").write_text(
        "def near(media, prompts, control):\n    return -(media - control).abs().mean((1, 2, 3))\n\n"
        "near.required_context = ('control',)\n"
    )
    text = f"""\
model: {{path: {tiny_folder}, lora: {{rank: 2}}}}
method: {{name: prdp, images_per_prompt: 2, prompts_per_step: 1}}
prompts: {{train: {tmp_path}/train.txt, eval: {tmp_path}/eval.txt}}
rewards: {{mean_hue: {{hue: 120}}}}
eval_rewards: {{jpeg_size: 1}}
sampling: {{num_inference_steps: 2, guidance_scale: 2.0, height: 16, width: 16}}
evaluate: {{num_inference_steps: 2, seeds: [0]}}
run: {{steps: 1}}
"""
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


# What to --set or where to write, and what the line must name. {here} is the recipe's folder.
MISTAKES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "unknown key": (["optim.lrr=1"], ["optim.lrr", "did you mean 'lr'"]),
    "wrong type": (["run.steps=many"], ["run.steps", "integer", "'many'"]),
    "missing model": (["model.path={here}/nowhere"], ["/nowhere"]),
    "folder that is no pipeline": (["model.path={here}/folder"], ["/folder", "model_index.json"]),
    "file that is no pipeline": (["model.path={here}/file"], ["/file", "model_index.json"]),
    "unknown pipeline class": (
        ["model.path={here}/other"],
        ["SoundPipeline", "StableDiffusionPipeline"],
    ),
    "torn pipeline": (["model.path={here}/torn"], ["/torn"]),
    "unknown reward": (["rewards.shine=1"], ["'shine'", "mean_hue"]),
    "unknown held-out reward": (["eval_rewards.shine=1"], ["'shine'", "mean_hue"]),
    "unknown option of a reward": (["rewards.mean_hue.heu=1"], ["mean_hue", "heu"]),
    "no clip folder": (["rewards.clip={{path: {here}/folder}}"], ["/folder", "open_clip"]),
    "unknown method": (["method.name=dpoo"], ["'dpoo'", "prdp"]),
    "missing context": (["rewards={{'{here}/mine.py:near': 1}}"], ["near", "'control'"]),
    "one image a prompt": (["method.images_per_prompt=1"], ["method.images_per_prompt", "2"]),
    "missing prompts": (["prompts.train={here}/nowhere.txt"], ["/nowhere.txt"]),
    "empty prompts": (["prompts.train={here}/empty.txt"], ["/empty.txt", "no prompts"]),
    "overlapping prompts": (["prompts.eval={here}/train.txt"], ["overlap", "'a bird'"]),
    "size": (["sampling.height=17"], ["17"]),
}


@pytest.mark.parametrize("case", sorted(MISTAKES))
def test_a_mistake_is_one_line(cli: Cli, recipe: Path, tmp_path: Path, case: str) -> None:
    settings, named = MISTAKES[case]
    before = sorted(tmp_path.rglob("*"))
    options = [part for text in settings for part in ("--set", text.format(here=tmp_path))]
    line = mistake(cli("finetune", recipe, "--out", tmp_path / "run", *options))
    assert all(word in line for word in named), line
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-written


@pytest.mark.parametrize("out", ["file/run", "file", "/proc/align-gen-run"])
def test_an_unwritable_out_is_one_line(cli: Cli, recipe: Path, tmp_path: Path, out: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    line = mistake(cli("finetune", recipe, "--out", tmp_path / out))
    assert out in line and sorted(tmp_path.rglob("*")) == before


def test_a_run_directory_of_another_recipe_is_one_line(
    cli: Cli, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text(Recipe.load(recipe).to_yaml())
    line = mistake(cli("finetune", recipe, "--out", tmp_path / "run", "--set", "optim.lr=2e-4"))
    assert "another recipe" in line and "-lr: 0.0001; +lr: 0.0002" in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_no_such_recipe_is_one_line(cli: Cli) -> None:
    assert "'emoji-sd-prdp'" in mistake(cli("finetune", "nowhere.yaml"))


def test_a_dry_run_counts_and_writes_nothing(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    """2 pictures x 2 steps, doubled by guidance: 8 a pass; K = 2: 5 passes forward, 2 of them
    backward.
    """
    done = cli("finetune", recipe, "--dry-run", "--out", tmp_path / "run", "--set", "optim.lr=1e-4")
    assert done.code == 0, done.err
    assert "lr: 0.0001" in done.out and "40 rows forward, 16 of them backward" in done.out
    assert "trained parameters" in done.out and not (tmp_path / "run").exists()


def test_a_failing_reward_is_one_line_and_exit_1(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    """Not the user's mistake: a NaN names the head, and where to look."""
    (tmp_path / "sour.py").write_text(
        "def sour(media, prompts):\n    return [float('nan')] * len(media)\n"
    )
    done = cli(
        "finetune",
        recipe,
        "--out",
        tmp_path / "run",
        "--set",
        f"rewards={{'{tmp_path}/sour.py:sour': 1}}",
    )
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert last.startswith("align-gen: RewardFailure: ") and "sour" in last and "--debug" in last
    assert "Traceback" not in done.err


def test_debug_shows_where(cli: Cli, recipe: Path) -> None:
    with pytest.raises(ValueError, match="did you mean"):
        cli("finetune", recipe, "--set", "optim.lrr=1", "--debug")


def test_an_interruption_says_how_to_go_on(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("align_gen.training.engine.finetune", interrupted)
    done = cli("finetune", recipe)
    assert done.code == 130 and "the same command goes on" in done.err


def test_a_demo_of_no_model_is_one_line(cli: Cli, tmp_path: Path) -> None:
    assert "emoji-sd" in mistake(cli("demo", "--model", "sd35", "--out", tmp_path / "run"))


# --- sample ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--prompts"),
        (["--prompt", "a", "--prompts", "b"], "--prompts"),
        (["--prompt", "a", "--best-of", "3"], "--reward"),
        (["--prompt", "a", "--size", "big"], "HEIGHTxWIDTH"),
        (["--prompt", "a", "--seeds", "one"], "--seeds"),
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


@pytest.mark.parametrize("words", [["finetune"], ["sampel"], ["demo", "--nothing"]], ids=" ".join)
def test_words_that_are_not_understood_are_one_line(cli: Cli, words: list[str]) -> None:
    assert "--help)" in mistake(cli(*words))


def test_the_reports_command_makes_the_picture_again(
    cli: Cli, recipe: Path, tmp_path: Path
) -> None:
    """Of a run's last gallery with its export, of its first without; and of a gallery that was
    sampled.
    """
    from align_gen.report.runs import command_for

    run = tmp_path / "run"
    assert cli("finetune", recipe, "--out", run).code == 0
    for folder, other in (("samples/final", {"adapter": str(run / "export")}), ("before", {})):
        gallery = Gallery.load(run / folder)
        command = command_for(gallery.rows[0], **other)
        assert command is not None
        _, *words = shlex.split(command)
        words[-1] = str(tmp_path / "again")
        assert cli(*words).code == 0
        again = Gallery.load(tmp_path / "again")
        assert torch.equal(again.image(0), gallery.image(0))
        assert command_for(again.rows[0]) == command  # and says the same of itself
    assert command_for({"prompt": "a", "seed": 1}) is None


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


# --- score, compare, report, list -----------------------------------------------------------------


def coloured(folder: Path, shift: float) -> Path:
    """Eight plain pictures of four prompts, from grey towards green."""
    levels = torch.linspace(0.2, 0.5, 8).view(8, 1, 1, 1).expand(8, 3, 8, 8).clone()
    levels[:, 1] += shift
    write_gallery(folder, levels, [{"prompt": f"p{i // 2}", "seed": i % 2} for i in range(8)])
    return folder


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
        "pairs": 4, "prompts": 4, "ties": 0, "unreadable": 0, "agreement": 1.0, "out": str(tmp_path / "p.parquet"),
    }  # fmt: skip
    trained = cli(
        "train-reward", tmp_path / "p.parquet", "--base", "emoji-clip", "--mode", "frozen", "--epochs", "2", "--out",
        tmp_path / "head",
    )  # fmt: skip
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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["pairs", "nowhere", "--out", "p.parquet"], "nowhere: no such file"),
        (
            ["score", ".", "--reward", "mean_hue", "--suite", "drawbench"],
            "--suite 'drawbench': have ['hpdv2']",
        ),
        (
            ["score", "a.tar", "--reward", "mean_hue"],
            "a.tar: is no folder to keep the scores in; want --out FILE",
        ),
        (["score", ".", "--reward", "mean_hue", "--combine", "best"], "rule"),
        (["score", ".", "--reward", "mean_hue", "--calibrate", "nowhere"], "nowhere: no such file"),
        (
            ["train-reward", "nowhere", "--base", "emoji-clip", "--out", "o"],
            "nowhere: no such file; want pairs",
        ),
        (
            ["train-reward", "nowhere", "--base", "b", "--out", "o", "--label-smoothing", "x"],
            "--label-smoothing 'x'",
        ),
        (["bench", "speed"], "bench 'speed': have ['attention', 'rewards', 'sizes', 'steps']"),
        (["bench", "sizes", "--model", "emoji-sd"], "--model 'emoji-sd': have ['Qwen/Qwen-Image'"),
    ],
)
def test_a_mistake_around_rewards_is_one_line(cli: Cli, arguments: list[str], named: str) -> None:
    assert named in mistake(cli(*arguments))


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


def test_reporting_what_is_not_scored_is_one_line(cli: Cli, tmp_path: Path) -> None:
    line = mistake(cli("report", coloured(tmp_path / "g", 0.1), "--out", tmp_path / "page.html"))
    assert "align-gen score" in line and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("what", "known"),
    [
        ("rewards", "clip"),
        ("methods", "prdp"),
        ("models", ""),
        ("recipes", "paper/prdp-small"),
        ("prompts", "emoji-train"),
        ("assets", "emoji-train"),
    ],
)
def test_list(cli: Cli, what: str, known: str) -> None:
    plain, as_json = cli("list", what), cli("list", what, "--json")
    assert plain.code == as_json.code == 0
    assert plain.out.split() == json.loads(as_json.out)
    if what != "models":  # they are built, and may be missing here
        assert known in plain.out.split()


def test_list_of_nothing_is_one_line(cli: Cli) -> None:
    assert "rewards" in mistake(cli("list", "reward"))


# --- the surface ----------------------------------------------------------------------------------


def test_help_is_cheap_and_has_an_example() -> None:
    """One fresh interpreter asks for all of them; none brings torch or diffusers in."""
    code = (
        "import io, json, sys\n"
        "from contextlib import redirect_stdout\n"
        "from align_gen.cli import main\n"
        "pages = {}\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    sys.argv[1:] = [command, '--help']\n"
        "    with redirect_stdout(io.StringIO()) as page:\n"
        "        try: main()\n"
        "        except SystemExit as error: assert not error.code\n"
        "    pages[command] = page.getvalue()\n"
        "heavy = sorted({'torch', 'diffusers', 'transformers', 'pyarrow', 'open_clip'} & set(sys.modules))\n"
        "print(json.dumps([pages, heavy]))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(COMMANDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    pages, heavy = json.loads(done.stdout)
    assert not heavy and not done.stderr
    assert pages.keys() == set(COMMANDS)
    for name, page in pages.items():
        assert f"Example: align-gen {name} " in " ".join(page.split()), name


def test_every_command_is_there(cli: Cli) -> None:
    from align_gen.cli import app

    named = (
        command.name or getattr(command.callback, "__name__", "")
        for command in app.registered_commands
    )
    names = {name.replace("_", "-") for name in named}
    assert names == set(COMMANDS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jpeg_size", ("jpeg_size", {"name": "jpeg_size"})),
        ("mean_hue:hue=120", ("mean_hue", {"name": "mean_hue", "hue": 120})),
        ("mean_hue:hue=1e1", ("mean_hue", {"name": "mean_hue", "hue": 10.0})),
        ("red=mean_hue:hue=0,weight=2.5", ("red", {"name": "mean_hue", "hue": 0, "weight": 2.5})),
        ("clip:path=emoji-clip,goal=[a b, c d],alpha=0.5",
         ("clip", {"name": "clip", "path": "emoji-clip", "goal": ["a b", "c d"], "alpha": 0.5})),
        ("clip:path=/some/dir,goal=a glossy 3d emoji",
         ("clip", {"name": "clip", "path": "/some/dir", "goal": "a glossy 3d emoji"})),
        ("clip:path=hf-hub:owner/model", ("clip", {"name": "clip", "path": "hf-hub:owner/model"})),
        ("mine.py:warm", ("mine.py:warm", {"name": "mine.py:warm"})),
        ("w=mine.py:warm:by=2", ("w", {"name": "mine.py:warm", "by": 2})),
        ("a.b.c:Head:path=x", ("a.b.c:Head", {"name": "a.b.c:Head", "path": "x"})),
    ],
)  # fmt: skip
def test_rewards_on_the_command_line(text: str, expected: tuple[str, dict[str, Any]]) -> None:
    assert parse_reward(text) == expected


def test_bundled_models_are_found_by_name_in_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "our-clip").mkdir()
    monkeypatch.setattr(bundled, "MODELS", tmp_path)
    assert bundled.reward_spec({"clip": {"path": "our-clip"}})["clip"]["path"] == str(
        tmp_path / "our-clip"
    )
    assert bundled.reward_spec({"clip": {"path": "owner/name"}, "x": 1.0}) == {
        "clip": {"path": "owner/name"},
        "x": 1.0,
    }
