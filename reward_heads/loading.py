"""Heads by name, by dotted path, by file, or any callable; and sets of them."""

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from .base import CallableHead, RewardHead, label, require_new_names
from .options import check_options, options_of
from .registry import HEADS, head_class
from .sets import RewardSet


def load(name: str | Callable[..., Any], **options: Any) -> RewardHead:
    """A head by table name, "package.module:attribute", "file.py:attribute", or any callable.

    Raises:
        ValueError: unknown name or option; the message lists what exists.
    """
    if isinstance(name, RewardHead):
        return name
    if not isinstance(name, str):
        if not callable(name):
            raise ValueError(f"reward {name!r}: want a name or a callable")
        return CallableHead(name)

    if ":" in name:
        _require_no_head_before_colon(name)
        source = _import(name)
    else:
        check_options(name, options)
        source = head_class(name)
    # A function or a head is used as it is; a class, or a function with options, makes a head.
    if not inspect.isclass(source) and not options:
        return source if isinstance(source, RewardHead) else CallableHead(source, name)

    try:
        # Bound before it is called: a TypeError from inside would look like a wrong option.
        inspect.signature(source).bind(**options)
    except TypeError as error:
        accepted = sorted(inspect.signature(source).parameters)
        raise ValueError(f"reward {name!r}: {error}; options are {accepted}") from None
    try:
        head = source(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {name!r}: {error}") from error
    if not isinstance(head, RewardHead):
        return CallableHead(head, name)
    require_new_names(head, name)
    return head


def reward_set(spec: RewardSet | Sequence[Any] | Mapping[Any, Any]) -> RewardSet:
    """A RewardSet from names, callables, or a mapping to weights or options.

    ``["clip"]``, ``{"clip": 1.0, my_function: 0.2}`` and ``{"shiny": {"name": "clip", "weight":
    2.0, "path": …}}`` are all accepted; ``name`` defaults to the key. ``offload: true`` lets a head
    wait on the CPU between its turns.
    """
    if isinstance(spec, RewardSet):
        return spec

    # A list is a mapping to weights of 1.
    rows = spec.items() if isinstance(spec, Mapping) else [(entry, 1.0) for entry in spec]
    heads: dict[str, RewardHead] = {}
    weights: dict[str, float] = {}
    offload: set[str] = set()
    for key, value in rows:
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        weight = options.pop("weight", None)
        # YAML has ``weight:`` with nothing behind it as null.
        weight = 1.0 if weight is None else weight
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"reward {key!r}: weight: want a number, got {weight!r}")
        name = label(key)
        waits = options.pop("offload", False)
        if not isinstance(waits, bool):
            raise ValueError(f"reward {name!r}: offload: want true or false, got {waits!r}")

        head = load(options.pop("name", key), **options)
        if name in heads:
            raise ValueError(f"reward {name!r} is named twice")
        heads[name] = head
        weights[name] = float(weight)
        if waits:
            offload.add(name)
    if not heads:
        raise ValueError("no reward given")
    return RewardSet(heads, weights, frozenset(offload))


def _require_no_head_before_colon(name: str) -> None:
    """Refuse ``clip:emoji-clip``: what follows a head's name is options, key=value."""
    head, _, text = name.partition(":")
    if head in HEADS:
        keys = [option.name for option in options_of(head)]
        if not keys:
            raise ValueError(f"reward {name!r}: {head} takes no options; want {head}")
        key = text if text in keys else keys[0]
        raise ValueError(f"reward {name!r}: want {head}:{key}=…; options are {sorted(keys)}")


def _import(path: str) -> Any:
    """The object at "package.module:attribute" or "file.py:attribute"."""
    module_name, _, attribute = path.rpartition(":")
    try:
        is_file = module_name.endswith(".py")
        module = _run_file(path, Path(module_name)) if is_file else import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"reward {path!r}: cannot import {module_name}: {error}") from error
    if not hasattr(module, attribute):
        have = sorted(name for name in vars(module) if not name.startswith("_"))
        raise ValueError(f"reward {path!r}: {module_name} has no {attribute!r}; have {have}")
    return getattr(module, attribute)


def _run_file(reward: str, file: Path) -> ModuleType:
    """Import a user's file as a module of its own."""
    if not file.is_file():
        raise ValueError(f"reward {reward!r}: no file {file}")
    spec = importlib.util.spec_from_file_location(f"align_gen_user_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
