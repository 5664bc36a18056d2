"""Noise schedules and time grids, read from a pipeline's scheduler, which is left as it was."""

from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler
from torch import Tensor

from .process import Diffusion


def ddim(scheduler: Any) -> Any:
    """DDIM on the pipeline's own noise schedule, spacing and offset, whatever sampler it came with.

    Latent models do not clip samples; DDIM's default would, where the pipeline's own scheduler has
    no such option. CogVideoX's schedule is shifted, which its own DDIM alone knows; that one never
    clips, whatever its files say.
    """
    if "snr_shift_scale" in scheduler.config:
        return CogVideoXDDIMScheduler.from_config(scheduler.config, clip_sample=False)
    options = {} if "clip_sample" in scheduler.config else {"clip_sample": False}
    sampler: DDIMScheduler = DDIMScheduler.from_config(scheduler.config, **options)
    if sampler.config.thresholding:
        raise ValueError("scheduler: dynamic thresholding is not supported")
    return sampler


def ddim_process(scheduler: Any) -> Diffusion:
    """The noise process of a pipeline's scheduler; abar is its own tensor."""
    sampler = ddim(scheduler)
    config = sampler.config
    return Diffusion(
        sampler.alphas_cumprod,
        float(sampler.final_alpha_cumprod),
        config.prediction_type,
        config.clip_sample_range if config.clip_sample else None,
    )


def ddim_times(scheduler: Any, num_inference_steps: int) -> Tensor:
    """(t, s) of every step, (n, 2). DDIM goes by a constant stride, not to the next grid point."""
    sampler = ddim(scheduler)
    trained = sampler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= trained:
        raise ValueError(f"num_inference_steps: want 1 to {trained}, got {num_inference_steps}")
    sampler.set_timesteps(num_inference_steps)
    t = sampler.timesteps.double()
    return torch.stack([t, t - trained // num_inference_steps], 1)


def resolution_shift(config: Any, tokens: int) -> float:
    """mu of dynamic shifting, linear in the number of image tokens.

    Esser et al. 2024, section 5.3.2.
    """
    few = config.get("base_image_seq_len", 256)
    many = config.get("max_image_seq_len", 4096)
    low = config.get("base_shift", 0.5)
    high = config.get("max_shift", 1.15)
    return low + (high - low) * (tokens - few) / (many - few)


def euler(scheduler: Any) -> Any:
    """A flow scheduler on the same grid that takes Euler's steps, which are what eta = 0 takes."""
    first_order: dict[str, Any] = {}
    if "solver_order" in scheduler.config:
        first_order = {"solver_order": 1, "disable_corrector": list(range(1000))}
    return type(scheduler).from_config(scheduler.config, **first_order)


def even_sigmas(num_inference_steps: int) -> list[float]:
    """1, …, 1/n: the grid of pipelines that leave the shift, and the end, to the scheduler."""
    n = num_inference_steps
    return torch.linspace(1.0, 1 / n, n, dtype=torch.float64).tolist()


def flow_times(
    scheduler: Any, num_inference_steps: int, tokens: int, sigmas: list[float] | None = None
) -> Tensor:
    """(t, s) of every step, (n, 2) float64: t is the scheduler's sigma, 1 is noise.

    Args:
        scheduler: a flow scheduler of the pipeline, of any order: only its grid is read.
        tokens: of the image in the network, for dynamic shifting.
        sigmas: the grid before shifting, for pipelines that bring their own.
    """
    # A fresh one: the pipeline's scheduler stays as it was.
    fresh = type(scheduler).from_config(scheduler.config)
    options: dict[str, Any] = {}
    if fresh.config.get("use_dynamic_shifting"):
        options["mu"] = resolution_shift(fresh.config, tokens)
    if sigmas is not None and not fresh.config.get("use_flow_sigmas"):
        options["sigmas"] = sigmas
    fresh.set_timesteps(num_inference_steps, **options)
    grid = fresh.sigmas.double()
    return torch.stack([grid[:-1], grid[1:]], 1)


def network_time(scheduler: Any, t: Tensor) -> Tensor:
    """The time that a flow pipeline gives its network at t in [0, 1].

    Multistep schedulers cut it to an integer.

    At flow_shift 1, which no published model has, whole thousandths occur, and rounding decides
    which side they fall.
    """
    time = scheduler.config.num_train_timesteps * t
    return time.floor() if scheduler.config.get("use_flow_sigmas") else time
