"""Laws that a model adapter must obey, measured on a checkpoint. Names resolve on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .laws import Finding, Subject, check

_NAMES = {"Subject": "laws", "Finding": "laws", "check": "laws"}

__all__ = ["Finding", "Subject", "check"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"{__name__} has no {name!r}; have {sorted(_NAMES)}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
