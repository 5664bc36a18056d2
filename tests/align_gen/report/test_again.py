"""The command that makes a picture again: what a row may put into it."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from align_gen.report.again import Again, adapter_of, command_for

MADE: dict[str, Any] = {
    "model": "emoji-sd",
    "steps": 8,
    "guidance": 2.5,
    "eta": 0.0,
    "size": "64x64",
    "dtype": "bf16",
}


def row(prompt: Any = "a red dog", seed: Any = 7, **made: Any) -> dict[str, Any]:
    return {"prompt": prompt, "seed": seed, "made": {**MADE, **made}}


def test_a_row_of_a_bundled_or_hub_model_has_its_whole_command() -> None:
    for model in ("emoji-sd", "owner/model-1.5", "toy-flow"):
        found = command_for(row(model=model))
        assert found.command is not None and found.note is None
        assert found.command == (
            f"align-gen sample {model} --prompt 'a red dog' --seed 7 --dtype bf16 --eta 0.0 "
            "--guidance 2.5 --size 64x64 --steps 8 --out again"
        )


def test_of_a_folder_there_is_the_name_and_a_word_of_that(tmp_path: Path) -> None:
    """Also in rows that hold the whole path, of a version that wrote such."""
    for model in ("tiny", str(tmp_path / "tiny")):
        found = command_for(row(model=model, adapter="/home/me/runs/a/export"))
        assert found.command is not None and found.note is not None
        assert shlex.split(found.command)[2] == "tiny" and "--adapter export" in found.command
        assert found.note == "Only the name of a folder is kept, not its path: tiny, export."
        assert str(tmp_path) not in found.command and "/home" not in found.command


def test_a_runs_own_export_replaces_the_rows_adapter() -> None:
    found = command_for(row(adapter="old"), "runs/mine/export")
    assert found.command is not None and "--adapter runs/mine/export" in found.command
    assert found.note is None


def test_a_runs_export_is_named_from_here_or_by_its_last_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert adapter_of(Path("runs/a/export")) == "runs/a/export"
    assert adapter_of(tmp_path / "here" / "runs/a/export") == "runs/a/export"
    assert adapter_of(tmp_path / "runs/a/export") == "a/export"


@pytest.mark.parametrize(
    "reward",
    [
        "jpeg_size",
        "green=mean_hue:hue=120",
        "clip:path=emoji-clip,goal=an emoji of (a) fox",
        "clip:path=emoji-clip,goal=[red, blue]",
    ],
)
def test_a_reward_of_the_table_is_offered(reward: str) -> None:
    found = command_for(row(reward=reward, **{"best-of": "4"}))
    assert found.command is not None
    words = shlex.split(found.command)
    assert words[words.index("--reward") + 1] == reward and "--best-of" in words


@pytest.mark.parametrize(
    "reward",
    [
        "x=subprocess:Popen:args=[touch, F]",
        "subprocess:Popen",
        "x.py:near",
        "os.system",
        "nosuch",
        "clip:name=os.system",
        "clip:path=a, name=subprocess",
        "ensemble:members=[x.py:near, jpeg_size]",
        'ensemble:members=["x.py\\x3anear", jpeg_size]',
        "views:head={name: x}",
        "views:head=os:system",
        "--help",
        "jpeg_size\n",
        "",
        ["jpeg_size"],
        None,
    ],
    ids=repr,
)
def test_a_reward_that_could_name_code_is_not(reward: Any) -> None:
    found = command_for(row(reward=reward, **{"best-of": "4"}))
    assert found == Again(note="No command is offered: its reward is none of align_gen's own.")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"out": "/etc/passwd"}, "out is no setting of a picture"),
        ({"help": ""}, "help is no setting of a picture"),
        ({"device": "x"}, "device is no setting of a picture"),
        ({"a\x1b]0;x\x07": 1}, "a\\x1b]0;x\\x07 is no setting of a picture"),
        ({"steps": "8 --out x"}, "its steps is not of its kind"),
        ({"steps": True}, "its steps is not of its kind"),
        ({"eta": float("nan")}, "its eta is not of its kind"),
        ({"size": "64x64\n"}, "its size is not of its kind"),
        ({"dtype": "int8"}, "its dtype is not of its kind"),
        ({"adapter": "--help"}, "its adapter is not of its kind"),
        ({"best-of": "2;ls"}, "its best-of is not of its kind"),
        ({"model": "--help"}, "the model's name is no plain text"),
        ({"model": "a\x1b[2Jb"}, "the model's name is no plain text"),
        ({"model": None}, "the model's name is no plain text"),
        ({"prompt": "a\nrm -r ."}, "the prompt is no plain text"),
        ({"prompt": "a\u202eb"}, "the prompt is no plain text"),
        ({"prompt": "a\x9b2Jb"}, "the prompt is no plain text"),
        ({"prompt": "--out=x"}, "the prompt is no plain text"),
        ({"prompt": ["a"]}, "the prompt is no plain text"),
        ({"seed": "7; ls"}, "the seed is no number"),
        ({"seed": None}, "the seed is no number"),
        ({"rewards": ["h"]}, "the picture was chosen by a reward in Python"),
    ],
    ids=str,
)
def test_what_is_no_plain_setting_has_no_command(changed: dict[str, Any], reason: str) -> None:
    found = command_for(row(**changed))
    assert found == Again(note=f"No command is offered: {reason}.")


def test_a_row_that_says_nothing_of_its_making_has_no_word_on_it() -> None:
    assert command_for({"prompt": "a", "seed": 1}) == Again()
    assert command_for({"prompt": "a", "made": MADE}) == Again()
    assert command_for({"prompt": "a", "seed": 1, "made": "emoji-sd"}) == Again()
