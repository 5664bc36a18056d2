"""One HTML page to look at. Names resolve on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import build_report

_NAMES = {"build_report": "page"}

__all__ = ["build_report"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"{__name__} has no {name!r}; have {sorted(_NAMES)}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
