"""Reward heads by name, resolved lazily; a user's own by dotted path, file or callable."""

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .base import CallableHead, RewardHead, label
from .sets import RewardSet

HEADS = {  # name -> module of this package:class
    "aesthetic": "heads.aesthetic:Aesthetic",
    "clip": "heads.clip:ClipHead",
    "colour": "heads.colour:Colourfulness",
    "ensemble": "wrappers.ensemble:Ensemble",
    "hps": "heads.hps:HpsHead",
    "image_reward": "heads.image_reward:ImageReward",
    "jpeg_size": "heads.jpeg_size:JpegSize",
    "mean_hue": "heads.mean_hue:MeanHue",
    "ocr": "heads.ocr:TextAccuracy",
    "pick_score": "heads.pick_score:PickScore",
    "sharpness": "heads.sharpness:Sharpness",
    "siglip": "heads.siglip:SiglipHead",
    "segments": "wrappers.segments:Segments",
    "trained": "heads.trained:TrainedHead",
    "video_reward": "heads.video_reward:VideoReward",
    "views": "wrappers.views:Views",
}


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
    if name in HEADS:
        module, attribute = HEADS[name].split(":")
        made = getattr(import_module(f".{module}", __package__), attribute)
    elif ":" in name:
        made = _import(name)
    else:
        raise ValueError(
            f"no reward {name!r}; have {sorted(HEADS)}, or package.module:attribute, or file.py:attribute"
        )
    if not inspect.isclass(made) and not options:
        return made if isinstance(made, RewardHead) else CallableHead(made, name)
    try:
        inspect.signature(made).bind(**options)
    except TypeError as error:
        accepted = sorted(inspect.signature(made).parameters)
        raise ValueError(f"reward {name!r}: {error}; options are {accepted}") from None
    try:
        head = made(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {name!r}: {error}") from error
    return head if isinstance(head, RewardHead) else CallableHead(head, name)


def reward_set(spec: RewardSet | Sequence[Any] | Mapping[Any, Any]) -> RewardSet:
    """A RewardSet from names, callables, or a mapping to weights or options.

    ``["clip"]``, ``{"clip": 1.0, my_function: 0.2}`` and ``{"shiny": {"name": "clip", "weight":
    2.0, "path": …}}`` are all accepted; ``name`` defaults to the key. ``offload: true`` lets a head
    wait on the CPU between its turns.
    """
    if isinstance(spec, RewardSet):
        return spec
    rows = spec.items() if isinstance(spec, Mapping) else [(entry, 1.0) for entry in spec]
    heads: dict[str, RewardHead] = {}
    weights: dict[str, float] = {}
    offload: set[str] = set()
    for key, value in rows:
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        weight = options.pop("weight", None)
        if not isinstance(weight, int | float | None) or (
            weight is not None and not math.isfinite(weight)
        ):
            raise ValueError(f"reward {key!r}: weight: want a number, got {weight!r}")
        weight = 1.0 if weight is None else float(weight)
        own = label(key)
        waits = options.pop("offload", False)
        if not isinstance(waits, bool):
            raise ValueError(f"reward {own!r}: offload: want true or false, got {waits!r}")
        offload |= {own} if waits else set()
        head = load(options.pop("name", key), **options)
        if own in heads:
            raise ValueError(f"reward {own!r} is named twice")
        heads[own], weights[own] = head, weight
    if not heads:
        raise ValueError("no reward given")
    return RewardSet(heads, weights, frozenset(offload))


def _import(path: str) -> Any:
    """The object at "package.module:attribute" or "file.py:attribute"."""
    module_name, _, attribute = path.rpartition(":")
    try:
        if module_name.endswith(".py"):
            file = Path(module_name)
            if not file.is_file():
                raise ValueError(f"reward {path!r}: no file {file}")
            spec = importlib.util.spec_from_file_location(f"align_gen_user_{file.stem}", file)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = import_module(module_name)
    except ImportError as error:
        raise ValueError(f"reward {path!r}: cannot import {module_name}: {error}") from error
    if not hasattr(module, attribute):
        have = sorted(name for name in vars(module) if not name.startswith("_"))
        raise ValueError(f"reward {path!r}: {module_name} has no {attribute!r}; have {have}")
    return getattr(module, attribute)
