"""The command line as a whole: help, names, logging, mistakes as one line with exit code 2."""

import json
import logging
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import align_gen
from align_gen import bundled
from align_gen.commands.log import log_to_stderr
from align_gen.commands.resuming import HINT, resumable, resume_hint
from align_gen.errors import UserError
from tests.kits.command_line import Cli, mistake

COMMANDS = (
    "demo", "finetune", "sample", "score", "pairs", "train-reward", "check", "bench", "compare",
    "report", "list", "recipe",
)  # fmt: skip
HEAVY = ("torch", "diffusers", "transformers", "pyarrow", "open_clip")


def light(code: str, *arguments: str) -> Any:
    """What the code leaves in ``result``, in a fresh interpreter that must not load a library that
    takes seconds.
    """
    end = f"\nheavy = sorted({set(HEAVY)!r} & set(sys.modules))\nprint(json.dumps([result, heavy]))"
    start = "import io, json, sys\nfrom contextlib import redirect_stderr, redirect_stdout\n"
    command = [sys.executable, "-c", start + code + end, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result, heavy = json.loads(done.stdout)
    assert not heavy
    assert not done.stderr
    return result


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_help_is_cheap_and_has_an_example() -> None:
    """One fresh interpreter asks for all of them; none brings torch or diffusers in."""
    code = (
        "from align_gen.cli import main\n"
        "result = {}\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    sys.argv[1:] = [*command, '-h']\n"
        "    with redirect_stdout(io.StringIO()) as page:\n"
        "        try: main()\n"
        "        except SystemExit as error: assert not error.code\n"
        "    result[' '.join(command)] = page.getvalue()\n"
    )
    pairs = [("bench", name) for name in ("steps", "attention", "rewards", "sizes", "scoring")]
    commands = [*((name,) for name in COMMANDS), *pairs, ("recipe", "new")]
    pages = light(code, json.dumps(commands))
    assert len(pages) == len(commands)
    for name, page in pages.items():
        text = " ".join(page.split())
        assert f"Example: align-gen {name}" in text, name
        assert "--debug shows where an error comes from." in text, name
        assert "-h, --help" in text, name


def test_every_command_is_there(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    _, _, listed = done.out.partition("Commands:\n")
    assert {line.split()[0] for line in listed.splitlines() if line.strip()} == set(COMMANDS)
    assert "--debug" in done.out
    assert cli("-h").out == done.out


def test_the_version_is_the_packages(cli: Cli) -> None:
    done = cli("--version")
    assert (done.code, done.out) == (0, f"align-gen {align_gen.__version__}\n")


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["finetune"], ["sampel"], ["demo", "--nothing"]], ids=" ".join)
def test_words_that_are_not_understood_are_one_line(cli: Cli, words: list[str]) -> None:
    assert "--help)" in mistake(cli(*words))


@pytest.mark.slow
def test_a_mistake_is_told_before_a_library_is_loaded() -> None:
    code = (
        "from align_gen.cli import main\n"
        "result = []\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    sys.argv[1:] = words\n"
        "    with redirect_stderr(io.StringIO()) as page:\n"
        "        try: main()\n"
        "        except SystemExit as error: assert error.code == 2\n"
        "    result.append(page.getvalue())\n"
    )
    mistakes = {
        "sample emoji-sd": "--prompts",
        "sample emoji-sd --prompt a --size big": "HEIGHTxWIDTH",
        "sample emoji-sd --prompt a --seeds one": "--seeds",
        "sample emoji-sd --prompt a --seed 1 --seeds 0,1": "--seed is",
        "sample emoji-sd --prompt a --best-of 2": "--best-of",
        "sample emoji-sd --prompt a --dtype int8": "fp32, bf16, fp16",
        "check emoji-sd --attention flush": "flash",
        "score nowhere --reward clip": "nowhere",
        "report nowhere": "nowhere",
        "train-reward p --base b --out o --label-smoothing x": "--label-smoothing",
        "bench speed": "steps",
        "list reward": "rewards",
    }
    lines = light(code, json.dumps([words.split() for words in mistakes]))
    for line, (words, named) in zip(lines, mistakes.items(), strict=True):
        assert line.count("\n") == 1, words
        assert named in line, (words, line)


# --- what goes to stdout and to stderr ------------------------------------------------------------


@pytest.mark.slow
def test_every_line_is_logged_once_and_json_stands_alone(tiny_folder: Path, tmp_path: Path) -> None:
    """A whole run with a reward of open_clip, which logs through the root and so gives it a
    handler.
    """
    (tmp_path / "train.txt").write_text("a red dog\na bird\n")
    (tmp_path / "eval.txt").write_text("an elk\n")
    (tmp_path / "recipe.yaml").write_text(f"""\
model: {{path: {tiny_folder}, lora: {{rank: 2}}}}
method: {{name: prdp, images_per_prompt: 2, prompts_per_step: 1}}
prompts: {{train: {tmp_path}/train.txt, eval: {tmp_path}/eval.txt}}
rewards: {{clip: {{path: emoji-clip}}}}
sampling: {{num_inference_steps: 2, guidance_scale: 2.0, height: 16, width: 16}}
evaluate: {{num_inference_steps: 2, seeds: [0]}}
run: {{steps: 1, out: {tmp_path}/run}}
""")
    # The real entry point; then the root logger must be as it was before.
    code = (
        "import logging, sys\n"
        "from align_gen.cli import main\n"
        "main()\n"
        "assert 'open_clip' in sys.modules and not logging.getLogger().handlers\n"
    )
    command = [sys.executable, "-c", code, "finetune", str(tmp_path / "recipe.yaml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["columns"].keys() == {"clip"}
    lines = Counter(done.stderr.splitlines())
    assert [line for line in lines if line.startswith("attention: ")]
    assert set(lines.values()) == {1}, done.stderr
    # Besides what the package logs there is progress: "phase done/total", and numbers.
    logged = ("run directory: ", "attention: ", "sampling: ")
    others = [line for line in lines if not line.startswith(logged)]
    assert all(line.split()[0] in ("before", "train", "final") for line in others), done.stderr


@pytest.mark.parametrize("debug", [False, True])
def test_libraries_log_and_warn_with_debug_alone(
    debug: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    handlers = list(root.handlers)
    for handler in handlers:  # pytest's own
        root.removeHandler(handler)
    try:
        with log_to_stderr(debug):
            logging.warning("theirs")  # gives a root without handlers one
            logging.getLogger("align_gen.training.engine").info("ours")
        assert not root.handlers
    finally:
        for handler in handlers:
            root.addHandler(handler)
    lines = capsys.readouterr().err.splitlines()
    assert lines == (["theirs", "ours"] if debug else ["ours"])


def test_a_warning_of_ours_is_printed_and_one_of_a_library_is_not() -> None:
    code = (
        "import warnings\n"
        "from align_gen.commands.log import log_to_stderr\n"
        "with log_to_stderr():\n"
        "    warnings.warn_explicit('theirs', FutureWarning, 'diffusers/x.py', 1, 'diffusers.x')\n"
        "    warnings.warn_explicit('ours', UserWarning, 'x.py', 1, 'align_gen.methods.prdp')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ours" in done.stderr
    assert "theirs" not in done.stderr


def test_logging_is_left_as_it_was() -> None:
    logger = logging.getLogger("align_gen")
    before = (logger.level, logger.propagate, list(logger.handlers), list(warnings.filters))
    with log_to_stderr():
        assert not logger.propagate
    assert before == (logger.level, logger.propagate, logger.handlers, warnings.filters)


# --- how to go on ---------------------------------------------------------------------------------


def test_a_hint_to_resume_needs_a_checkpoint_and_no_mistake(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as fresh, resumable(tmp_path):
        raise RuntimeError
    assert resume_hint(fresh.value) == ""
    (tmp_path / "checkpoints/step-000010").mkdir(parents=True)
    with pytest.raises(RuntimeError) as begun, resumable(tmp_path):
        raise RuntimeError
    assert resume_hint(begun.value) == HINT
    with pytest.raises(UserError) as mistaken, resumable(tmp_path):
        raise UserError
    assert resume_hint(mistaken.value) == ""


# --- what is bundled ------------------------------------------------------------------------------


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


def test_bundled_models_draw_or_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, file in (("pipe", "model_index.json"), ("clip", "open_clip_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    monkeypatch.setattr(bundled, "MODELS", tmp_path)
    assert (bundled.generators(), bundled.clips()) == (["pipe"], ["clip"])
    assert bundled.generator_path("pipe") == str(tmp_path / "pipe")
    for name in ("owner/model", "toy-flow", str(tmp_path), "/nowhere"):
        assert bundled.generator_path(name) == name
    with pytest.raises(UserError, match=r"clip: a CLIP scores .* have \['pipe'\]"):
        bundled.generator_path("clip")
    with pytest.raises(UserError, match=r"'pipes': no such pipeline; have \['pipe'\]"):
        bundled.generator_path("pipes")
