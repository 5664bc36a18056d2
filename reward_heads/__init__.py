"""How to score pictures: reward heads, and weighted sets of them. Names resolve on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import RewardHead
    from .loading import load, reward_set
    from .sets import MissingContext, RewardFailure, RewardSet, Scores

_NAMES = {
    "RewardHead": "base",
    "MissingContext": "sets",
    "RewardFailure": "sets",
    "RewardSet": "sets",
    "Scores": "sets",
    "load": "loading",
    "reward_set": "loading",
}

__all__ = [
    "MissingContext",
    "RewardFailure",
    "RewardHead",
    "RewardSet",
    "Scores",
    "load",
    "reward_set",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"{__name__} has no {name!r}; have {sorted(_NAMES)}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
