"""Heads by name, by dotted path, by file, or any callable; and sets of them."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .base import CallableHead, RewardHead, label, require_new_names
from .code import import_code, is_code
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

    sha256 = None
    if is_code(name):
        _require_no_head_before_colon(name)
        source, sha256 = import_code(name)
    else:
        check_options(name, options)
        source = head_class(name)
    # A function or a head is used as it is; a class, or a function with options, makes a head.
    made = _make(source, name, options) if inspect.isclass(source) or options else source
    if not isinstance(made, RewardHead):
        return CallableHead(made, name, sha256)
    if made is not source:
        require_new_names(made, name)
    # Of a named file the whole of it counts, not the class alone. Past a frozen dataclass.
    if sha256 is not None:
        vars(made)["code_sha256"] = sha256
    return made


def _make(source: Any, name: str, options: Mapping[str, Any]) -> Any:
    """What a class, or a function that makes a reward, gives for these options."""
    try:
        # Bound before it is called: a TypeError from inside would look like a wrong option.
        inspect.signature(source).bind(**options)
    except TypeError as error:
        accepted = sorted(inspect.signature(source).parameters)
        raise ValueError(f"reward {name!r}: {error}; options are {accepted}") from None
    try:
        made = source(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {name!r}: {error}") from error
    if not callable(made):
        raise ValueError(
            f"reward {name!r}: with options it made a {type(made).__name__}; "
            "want a reward: a head, or a function (media, prompts) -> (B,)"
        )
    return made


def reward_set(spec: Any) -> RewardSet:
    """A RewardSet from a name or a callable, several of them, or a mapping to weights or options.

    ``["clip"]``, ``{"clip": 1.0, my_function: 0.2}`` and ``{"shiny": {"name": "clip", "weight":
    2.0, "path": …}}`` are all accepted; ``name`` defaults to the key. ``offload: true`` lets a head
    wait on the CPU between its turns.
    """
    if isinstance(spec, RewardSet):
        return spec
    if isinstance(spec, str) or callable(spec):
        spec = [spec]
    if not isinstance(spec, Mapping | Sequence):
        raise ValueError(
            f"rewards: want names, callables, or a mapping to weights or options, got {spec!r}"
        )

    # A list is a mapping to weights of 1.
    rows: Iterable[tuple[Any, Any]]
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
