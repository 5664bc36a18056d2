"""A tiny Stable Diffusion."""

from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from .parts import autoencoder, clip_text_model, clip_tokenizer, ddim, unet


def stable_diffusion(
    seed: int = 0, scheduler: Any = None, **options: Any
) -> StableDiffusionPipeline:
    """Latents (4, 8, 8), pictures 16 x 16, every component random but the same at equal ``seed``.

    ``scheduler`` is put in after construction: the pipeline's constructor rewrites steps_offset and
    clip_sample.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer()
        network = unet(**options)
        pipeline = StableDiffusionPipeline(
            vae=autoencoder(),
            text_encoder=clip_text_model(tokenizer),
            tokenizer=tokenizer,
            unet=network,
            scheduler=ddim(),
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
        )
    if scheduler is not None:
        pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
