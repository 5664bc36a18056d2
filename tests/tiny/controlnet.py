"""Tiny pipelines with a ControlNet."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)

from .parts import ddim
from .stable_diffusion import stable_diffusion
from .stable_diffusion_xl import stable_diffusion_xl


def controlled(base: Callable[[], Any], kind: Any, **options: Any) -> Any:
    """A pipeline with a ControlNet whose maps matter: its last layers are zero in an untrained
    one.
    """
    plain = base()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = ControlNetModel.from_unet(
            plain.unet, conditioning_embedding_out_channels=(4, 8)
        ).eval()
        for name, weight in network.named_parameters():
            if "controlnet_" in name:
                weight.data = torch.randn(weight.shape) / 4
    pipeline = kind(**plain.components, controlnet=network, **options)
    pipeline.scheduler = ddim()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def controlnet() -> StableDiffusionControlNetPipeline:
    return controlled(
        stable_diffusion, StableDiffusionControlNetPipeline, requires_safety_checker=False
    )


def controlnet_xl() -> StableDiffusionXLControlNetPipeline:
    return controlled(
        stable_diffusion_xl, StableDiffusionXLControlNetPipeline, add_watermarker=False
    )
