"""The time grid of flow models, as their pipelines set it."""

from typing import Any

import torch
from torch import Tensor


def resolution_shift(config: Any, tokens: int) -> float:
    """mu of dynamic shifting: linear in the number of image tokens (Esser et al. 2024, section 5.3.2)."""
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) * (tokens - few) / (many - few)


def flow_times(scheduler: Any, num_inference_steps: int, tokens: int, sigmas: list[float] | None = None) -> Tensor:
    """(t, s) of every step, (n, 2) float64: t is the scheduler's sigma, 1 is noise; it is left as it was.

    Args:
        scheduler: a flow scheduler of the pipeline, of any order: only its grid is read.
        tokens: of the image in the network, for dynamic shifting.
        sigmas: the grid before shifting, for pipelines that bring their own.
    """
    own = type(scheduler).from_config(scheduler.config)
    options: dict[str, Any] = {}
    if own.config.get("use_dynamic_shifting"):
        options["mu"] = resolution_shift(own.config, tokens)
    if sigmas is not None and not own.config.get("use_flow_sigmas"):
        options["sigmas"] = sigmas
    own.set_timesteps(num_inference_steps, **options)
    grid = own.sigmas.double()
    return torch.stack([grid[:-1], grid[1:]], 1)
