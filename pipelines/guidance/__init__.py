"""Sampling by a reward. Names resolve on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Guide, require_guide
    from .best_of import BestOf

_NAMES = {"BestOf": "best_of", "Guide": "base", "require_guide": "base"}

__all__ = ["BestOf", "Guide", "require_guide"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"{__name__} has no {name!r}; have {sorted(_NAMES)}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
