"""Where the files lie that a recipe names: beside it, or in the working directory."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import bundled

# Sections with names of the user's own as keys: replaced as a whole, not key by key.
OPEN = ("rewards", "eval_rewards")
# Keys that may name a file or a folder.
FILES = {
    "model": ("path", "adapter"),
    "prompts": ("train", "eval"),
    "data": ("pairs", "media"),
    "combine": ("calibrate",),
}


def look_beside(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe's plain data, its files that lie in ``folder`` named from the working directory.

    What is no such file stays as it is: a bundled name, a hub name, or a path from the working
    directory.
    """
    known = {*bundled.models(), *bundled.prompts()}

    def located(value: Any) -> Any:
        if not isinstance(value, str) or value in known or Path(value).is_absolute():
            return value
        return str(folder / value) if value and _exists(folder / value) else value

    def code(value: Any) -> Any:
        """A reward of the user's own: file.py:attribute."""
        file, colon, attribute = value.partition(".py:") if isinstance(value, str) else ("", "", "")
        return f"{located(file + '.py')}:{attribute}" if colon else value

    # Keys that are files by their names; then rewards, whose options may be files.
    resolved = dict(data)
    for section, keys in FILES.items():
        part = data.get(section)
        if isinstance(part, Mapping):
            resolved[section] = {k: located(v) if k in keys else v for k, v in part.items()}
    for section in OPEN:
        part = data.get(section)
        if isinstance(part, Mapping):
            resolved[section] = {
                code(name): _reward_files(options, located, code) for name, options in part.items()
            }
    return resolved


def _reward_files(options: Any, located: Callable[[Any], Any], code: Callable[[Any], Any]) -> Any:
    """A reward's options, its weights and its code located."""
    if not isinstance(options, Mapping):
        return options
    ways = {"path": located, "name": code}
    return {key: ways[key](value) if key in ways else value for key, value in options.items()}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no file name at all: a NUL byte, or too long for the disk
        return False
