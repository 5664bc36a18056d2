"""How to sample: model adapters, diffusion and flow processes, rollouts, guidance.

Names resolve on first use.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Condition, Model
    from .lora_targets import LoraOptions
    from .process import Diffusion, Flow, FlowSDE, Process, gaussian_log_prob
    from .registry import load
    from .sampling import Rollout, rollout, sample

# xformers has no kernels for a CPU, and says so as soon as diffusers imports it: an error follows
# where somebody asks for these kernels.
logging.getLogger("xformers").addFilter(
    lambda record: "can't load C++/CUDA extensions" not in record.getMessage()
)

_NAMES = {
    "Condition": "base",
    "LoraOptions": "lora_targets",
    "Model": "base",
    "Diffusion": "process",
    "Flow": "process",
    "FlowSDE": "process",
    "Process": "process",
    "gaussian_log_prob": "process",
    "load": "registry",
    "Rollout": "sampling",
    "rollout": "sampling",
    "sample": "sampling",
}

__all__ = [
    "Condition",
    "Diffusion",
    "Flow",
    "FlowSDE",
    "LoraOptions",
    "Model",
    "Process",
    "Rollout",
    "gaussian_log_prob",
    "load",
    "rollout",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"{__name__} has no {name!r}; have {sorted(_NAMES)}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
