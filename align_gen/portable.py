"""Names for files that people pass on: without the folders of this machine."""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

# The folders of an absolute path that stands at the start or after a mark: all but its last name.
FOLDERS = re.compile(
    r"""(?<![^\s=,:;<>()\[{'"`])      # the start, a space, or a mark
    (?:file:/{2,3}(?=[^/])|/(?!/)|[A-Za-z]:[\\/]|\\\\)
    (?:[^/\\\s,;:'"`<>()\[\]{}]+[/\\])+
    (?=[^/\\\s])""",
    re.VERBOSE,
)


def portable_name(name: str) -> str:
    """The last name of an absolute path, with what follows it: /home/me/r.py:near is r.py:near.

    Any other name stays, without the folders of paths in it, as in ``clip:path=/home/me/clip``.
    """
    plain = name.removeprefix("file://").rstrip("/\\")
    if PurePosixPath(plain).is_absolute():
        return PurePosixPath(plain).name
    if PureWindowsPath(plain).is_absolute():
        return PureWindowsPath(plain).name
    return portable_text(name)


def portable_text(text: str) -> str:
    """A sentence whose absolute paths are cut down to their last names."""
    return FOLDERS.sub("", text)


def portable_names(names: Iterable[str]) -> dict[str, str]:
    """Each name with its portable form; forms that would be equal are numbered."""
    found: dict[str, str] = {}
    for name in names:
        short = portable_name(name)
        count = 1
        while short in found.values():
            count += 1
            short = f"{portable_name(name)} ({count})"
        found[name] = short
    return found


def portable_data(value: Any) -> Any:
    """Plain data whose texts, keys among them, are portable names."""
    if isinstance(value, Mapping):
        names = portable_names(map(str, value))
        return {names[str(key)]: portable_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable_data(item) for item in value]
    return portable_name(value) if isinstance(value, str) else value


def portable_yaml(text: str) -> str:
    """A document of YAML with portable names."""
    import yaml

    data = portable_data(yaml.safe_load(text))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
