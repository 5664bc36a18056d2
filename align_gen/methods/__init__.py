"""Learning methods by name, resolved lazily.

A method is a module with ``Options`` (a strict pydantic model) and
``step(state, batch, model, rewards, options, sampling) -> metrics``.
"""

from importlib import import_module
from types import ModuleType

METHODS = {"prdp": "prdp"}


def load(name: str) -> ModuleType:
    """The module of a method; a miss lists what exists."""
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; have {sorted(METHODS)}")
    return import_module(f"{__name__}.{METHODS[name]}")
