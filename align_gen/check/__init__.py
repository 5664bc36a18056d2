"""Laws that a model adapter must obey, measured on a checkpoint. Names resolve on first use.

- ``subject``: the model, and how to ask it for something small. ``findings``: one measurement.
- ``laws``: those of sampling, the table of all, and ``check``, which measures them.
- ``learning``: laws of a LoRA, memory and rewards. ``denoising``: the law of a trained network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .findings import Finding
    from .laws import LAWS, MEANING, check
    from .subject import Subject

_NAMES = {
    "Finding": "findings",
    "LAWS": "laws",
    "MEANING": "laws",
    "Subject": "subject",
    "check": "laws",
}

__all__ = ["LAWS", "MEANING", "Finding", "Subject", "check"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"{__name__} has no {name!r}; have {sorted(_NAMES)}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
