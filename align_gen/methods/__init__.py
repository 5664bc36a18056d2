"""Learning methods by name, resolved lazily; what they are is in ``base``.

- ``base``: the contract, options and cost; ``NAME``: one algorithm each;
- ``batches``: what a step is given; ``state``: what changes while a run learns;
- ``trajectories``: drawing, and likelihoods; ``denoising``: noising given latents.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import MethodOptions, Step

METHODS = ("ddpo", "dpo", "grpo", "nft", "prdp", "raft", "rwr", "sft")


def load(name: str) -> ModuleType:
    """The module of a method.

    Raises:
        ValueError: no such method; lists what exists.
    """
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; have {sorted(METHODS)}")
    return import_module(f"{__name__}.{name}")


def options_of(name: str) -> "type[MethodOptions]":
    """The options of a method, as a model to validate them with."""
    options: type[MethodOptions] = load(name).Options
    return options


def step_of(name: str) -> "Step":
    """The training step of a method."""
    step: Step = load(name).step
    return step
