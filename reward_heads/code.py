"""Rewards that are named by their code: where a file names some, and what of it is accepted."""

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from .base import RewardHead
from .registry import HEADS
from .source import file_sha256

OURS = __name__.partition(".")[0]


def is_code(name: Any) -> bool:
    """Whether a reward's name is that of code: "package.module:attribute", "file.py:attribute"."""
    return isinstance(name, str) and ":" in name


def code_in(spec: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """Where a mapping of rewards names code, as (dotted key, name); nothing is imported."""
    for key, value in spec.items():
        options = value if isinstance(value, Mapping) else {}
        if "name" in options:
            yield from _code_of(options["name"], options, f"{key}.name")
        else:
            yield from _code_of(key, options, str(key))


def text_names_code(text: str) -> bool:
    """Whether a reward in the command line's spelling, [LABEL=]NAME[:key=value,…], names code.

    Of a wrapper, any colon in its options counts, as one of them may be a name. So does a text of
    another form.
    """
    match = re.fullmatch(r"(?:[\w-]+=)?([^=]+?)(?::(\w+=.*))?", text, re.DOTALL)
    if match is None or is_code(match[1]):
        return True
    return HEADS.get(match[1], "").startswith("wrappers.") and ":" in (match[2] or "")


def _code_of(name: Any, options: Mapping[Any, Any], where: str) -> Iterator[tuple[str, str]]:
    """A reward's own name, where that is code, and the names of heads inside of a wrapper."""
    if is_code(name):
        yield where, name
    if not isinstance(name, str) or not HEADS.get(name, "").startswith("wrappers."):
        return

    # A wrapper's further options are those of the head inside, which may be a wrapper again.
    label = where.removesuffix(".name")
    others = {key: value for key, value in options.items() if key not in ("head", "name")}
    yield from _code_of(options.get("head"), others, f"{label}.head")
    members = options.get("members")
    for number, member in enumerate(members if isinstance(members, list | tuple) else ()):
        inner = member if isinstance(member, Mapping) else {"name": member}
        yield from _code_of(inner.get("name"), inner, f"{label}.members.{number}")


def import_code(path: str) -> tuple[Any, str | None]:
    """The reward at "package.module:attribute" or "file.py:attribute", and its source's hash.

    The hash is that of the whole file; None for code of this package.

    Raises:
        ValueError: there is none, its module cannot be imported, or it is no reward.
    """
    module_name, _, attribute = path.rpartition(":")
    is_file = module_name.endswith(".py")
    if is_file and not Path(module_name).is_file():
        raise ValueError(f"reward {path!r}: no file {module_name}")
    try:
        module, content = _run_file(Path(module_name)) if is_file else _import(module_name)
    except ImportError as error:
        raise ValueError(f"reward {path!r}: cannot import {module_name}: {error}") from error
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"reward {path!r}: cannot import {module_name}: {said}") from error
    if not hasattr(module, attribute):
        have = sorted(name for name in vars(module) if not name.startswith("_"))
        raise ValueError(f"reward {path!r}: {module_name} has no {attribute!r}; have {have}")
    reward = getattr(module, attribute)
    _require_reward(reward, path)
    is_ours = module.__name__.partition(".")[0] == OURS
    return reward, None if is_ours or content is None else file_sha256(content)


def _require_reward(reward: Any, name: str) -> None:
    """Refuse, before it is called, what is neither a head nor a function written in Python.

    A program's start, a builtin or a method of some object is none, and no reward stands in
    Python's own library.
    """
    if isinstance(reward, RewardHead):
        return
    is_class = inspect.isclass(reward)
    is_head = is_class and issubclass(reward, RewardHead) and not inspect.isabstract(reward)
    is_pythons = str(getattr(reward, "__module__", "")).partition(".")[0] in sys.stdlib_module_names
    if is_head or (isinstance(reward, FunctionType) and not is_pythons):
        return
    kind = reward.__name__ if is_class else type(reward).__name__
    found = f"the class {kind}" if is_class else f"a {kind}"
    if isinstance(reward, FunctionType):
        found = "a function of Python's own library"
    raise ValueError(
        f"reward {name!r}: is {found}; want a function (media, prompts) -> (B,), or a RewardHead"
    )


def _import(name: str) -> tuple[ModuleType, bytes | None]:
    """An installed module, and its source file; None where there is none, as of an extension."""
    module = import_module(name)
    try:
        file = inspect.getsourcefile(module)
    except TypeError:
        return module, None
    is_there = file is not None and Path(file).is_file()
    return module, Path(str(file)).read_bytes() if is_there else None


def _run_file(file: Path) -> tuple[ModuleType, bytes]:
    """Run a user's file as a module of its own; the module, and the bytes that were run.

    Read here and not by the import system, which may take an older compiled copy: two versions
    of one second and one length look alike to it.
    """
    spec = importlib.util.spec_from_file_location(f"align_gen_user_{file.stem}", file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    content = file.read_bytes()
    exec(compile(content, str(file), "exec"), vars(module))
    return module, content
