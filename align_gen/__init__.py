"""Align image and video diffusion and flow models: sample, score, compare, fine-tune.

Importing this costs nothing: names resolve on first use, and torch is loaded with the first of them that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import compare
    from .engine import finetune
    from .pipelines import guidance
    from .recipe import Recipe
    from .sampling import sample
    from .scoring import score

__version__ = "0.1.0"

_NAMES = {  # name -> module:attribute, or a module
    "Recipe": "recipe:Recipe",
    "compare": "comparison:compare",
    "finetune": "engine:finetune",
    "guidance": "pipelines.guidance",
    "sample": "sampling:sample",
    "score": "scoring:score",
}

__all__ = ["Recipe", "__version__", "compare", "finetune", "guidance", "sample", "score"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"{__name__} has no {name!r}; have {sorted(_NAMES)}")
    module, _, attribute = _NAMES[name].partition(":")
    found = import_module(f"{__name__}.{module}")
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
