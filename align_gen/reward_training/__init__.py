"""Train a reward head on preference pairs. Names resolve on first use.

- ``train``: the whole way, from pairs to a folder.
- ``options``: what can be chosen, with bounds and meanings.
- ``targets``: what the pairs say. ``learners``: who learns from them.
- ``agreement``: how well scores fit labels. ``export``: what is written.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .options import RewardTraining
    from .train import train_reward

_NAMES = {"RewardTraining": "options", "train_reward": "train"}

__all__ = ["RewardTraining", "train_reward"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"{__name__} has no {name!r}; have {sorted(_NAMES)}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
