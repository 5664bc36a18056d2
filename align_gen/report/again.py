"""The command that makes a picture again, from a row that anyone may have written."""

import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from .. import bundled
from ..errors import printable
from ..portable import portable_name, portable_text
from ..precision import DtypeName
from ..reward_heads.code import text_names_code
from ..reward_heads.registry import HEADS

# [LABEL=]NAME[:key=value,…] without the marks that could name code: a colon, quotes, a backslash.
REWARD = re.compile(r"(?:[\w-]+=)?(?P<name>\w+)(?::(?P<options>\w+=[\w .,=/\[\]()+-]*))?")


@dataclass(frozen=True)
class Again:
    """A command to paste, and what its reader must know of it.

    Attributes:
        command: None where none is offered.
        note: why not, or what the command lacks; None where there is nothing to say.
    """

    command: str | None = None
    note: str | None = None


def command_for(row: Mapping[str, Any], adapter: str | None = None) -> Again:
    """The command that makes a row's picture again, or why there is none.

    The row may be a stranger's and the command is pasted into a shell: its options come from
    ``SETTINGS`` alone, each with a value of its own kind, and a reward is one of this package.

    Args:
        row: of a gallery; without "made", "prompt" and "seed" there is nothing to say.
        adapter: replaces the row's: a run's own export, wherever the run lies by now.
    """
    made = row.get("made")
    if not isinstance(made, Mapping) or "model" not in made or not {"prompt", "seed"} <= row.keys():
        return Again()
    reason = _reason_against(row, made)
    if reason is not None:
        return Again(note=f"No command is offered: {reason}.")

    # Galleries of earlier versions name folders by their whole paths, which a page must not show.
    settings = {key: portable_text(str(value)) for key, value in made.items()}
    model = portable_name(settings.pop("model"))
    if "adapter" in settings:
        settings["adapter"] = portable_name(settings["adapter"])
    local = [name for name in (model, settings.get("adapter", "")) if _is_bare_folder(name)]
    if adapter is not None:
        settings["adapter"] = adapter
        local = local[:1] if _is_bare_folder(model) else []

    words = ["align-gen", "sample", model, "--prompt", row["prompt"], "--seed", row["seed"]]
    # The keys of "made" are the command line's own options.
    for key, value in sorted(settings.items()):
        words += [f"--{key}", value]
    note = None
    if local:
        note = f"Only the name of a folder is kept, not its path: {', '.join(local)}."
    return Again(shlex.join(map(str, [*words, "--out", "again"])), note)


def adapter_of(export: Path) -> str:
    """A run's export as its page names it: from here where it lies below, else by its last names.

    A page is passed on, and must not show the folders of this machine.
    """
    if export.is_absolute() and export.is_relative_to(Path.cwd()):
        return str(export.relative_to(Path.cwd()))
    return str(Path(*export.parts[-2:])) if export.is_absolute() else str(export)


def _reason_against(row: Mapping[str, Any], made: Mapping[str, Any]) -> str | None:
    """Why a row's command is not offered, in a few words; None where it may be."""
    # A guide of Python's, whose rewards the row names without their options.
    if "rewards" in made:
        return "the picture was chosen by a reward in Python"
    if not _is_argument(row["prompt"]):
        return "the prompt is no plain text"
    if not _is_whole(row["seed"]):
        return "the seed is no number"
    if not _is_argument(made["model"]):
        return "the model's name is no plain text"
    for key, value in made.items():
        if key == "model":
            continue
        if key not in SETTINGS:
            return f"{printable(key)} is no setting of a picture"
        if not SETTINGS[key](value):
            kind = "none of align_gen's own" if key == "reward" else "not of its kind"
            return f"its {key} is {kind}"
    return None


def _is_argument(value: Any) -> bool:
    """Whether a value is a text that the command line takes for no option, without controls."""
    is_text = isinstance(value, str) and value != ""
    return is_text and not value.startswith("-") and printable(value) == value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_own_reward(value: Any) -> bool:
    """Whether a text names a reward of the table, with options that can name no code."""
    match = REWARD.fullmatch(value) if _is_argument(value) else None
    if match is None or match["name"] not in HEADS:
        return False
    # An option of this name would stand for another reward.
    renamed = re.search(r"(?:^|,)\s*name\s*=", match["options"] or "")
    return renamed is None and not text_names_code(value)


def _is_bare_folder(name: str) -> bool:
    """Whether a name is the last one of a folder: no bundled model, hub name, toy, or path."""
    is_word = bool(name) and "/" not in name and not name.startswith("toy-")
    return is_word and name not in bundled.models()


# What a row may say of its making, and of which kind each value is.
SETTINGS: dict[str, Callable[[Any], bool]] = {
    "adapter": _is_argument,
    "best-of": lambda value: bool(re.fullmatch(r"[0-9]{1,6}", str(value))),
    "dtype": lambda value: value in get_args(DtypeName),
    "eta": _is_number,
    "frames": _is_whole,
    "guidance": _is_number,
    "reward": _is_own_reward,
    "size": lambda value: bool(re.fullmatch(r"[0-9]{1,6}x[0-9]{1,6}", str(value))),
    "steps": _is_whole,
}
