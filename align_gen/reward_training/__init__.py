"""From preference pairs to a reward head. Names resolve on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .train import train_reward

_NAMES = {"train_reward": "train"}

__all__ = ["train_reward"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"{__name__} has no {name!r}; have {sorted(_NAMES)}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
