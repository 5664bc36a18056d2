"""Learning methods by name, resolved lazily.

A method is a module with

- ``Options``: a ``Strict`` model of its numbers; ``name``, ``prompts_per_step`` and
  ``images_per_prompt`` are read by others too;
- ``kind(options)``: what a step's batch is: "prompts" to draw for, "pairs" (a unit is a pair) or
  "media" (a unit is ``images_per_prompt`` pictures of one prompt) that are given;
  ``prompts_per_step`` units make a step;
- ``check(options, sampling)``: UserError for what no single key shows;
- ``needs(options)``, where some option wants more: keys of the recipe that must not be null, and
  what wants each;
- ``calls(options, sampling, passes)``: of one step, ``forwards`` and ``backwards``, in rows of the
  denoiser, of which a sample takes ``passes``; and ``images``, how many are learned from;
- ``step(state, batch, model, rewards, options, sampling) -> metrics``.
"""

from importlib import import_module
from types import ModuleType

METHODS = {
    "ddpo": "ddpo",
    "dpo": "dpo",
    "grpo": "grpo",
    "nft": "nft",
    "prdp": "prdp",
    "raft": "raft",
    "rwr": "rwr",
    "sft": "sft",
}


def load(name: str) -> ModuleType:
    """The module of a method; a miss lists what exists."""
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; have {sorted(METHODS)}")
    return import_module(f"{__name__}.{METHODS[name]}")
