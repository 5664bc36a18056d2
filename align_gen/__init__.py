"""Align image and video diffusion and flow models: sample, score, compare, fine-tune.

Importing the package costs nothing: names resolve on first use, and torch is loaded with the first
name that needs torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .galleries.comparison import compare
    from .galleries.sampling import sample
    from .galleries.scoring import score
    from .pipelines import guidance
    from .training.engine import finetune
    from .training.recipe import Recipe

__version__ = "0.1.0"

_NAMES = {  # name -> module:attribute, or a module
    "Recipe": "training.recipe:Recipe",
    "compare": "galleries.comparison:compare",
    "finetune": "training.engine:finetune",
    "guidance": "pipelines.guidance",
    "sample": "galleries.sampling:sample",
    "score": "galleries.scoring:score",
}

__all__ = ["Recipe", "__version__", "compare", "finetune", "guidance", "sample", "score"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"{__name__} has no {name!r}; have {sorted(_NAMES)}")
    module, _, attribute = _NAMES[name].partition(":")
    resolved = import_module(f"{__name__}.{module}")
    return getattr(resolved, attribute) if attribute else resolved


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
