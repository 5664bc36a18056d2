"""A tiny Stable Diffusion XL."""

from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline

from .parts import autoencoder, clip_text_model, clip_tokenizer, ddim, unet

XL: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "cross_attention_dim": 32,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}


def stable_diffusion_xl(seed: int = 0, **options: Any) -> StableDiffusionXLPipeline:
    """Latents (4, 8, 8), pictures 16 x 16; both text encoders, sizes as a condition, zeros for no
    negative text.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer()
        pipeline = StableDiffusionXLPipeline(
            unet=unet(**XL | options),
            vae=autoencoder(),
            text_encoder=clip_text_model(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=clip_text_model(tokenizer, projection=True),
            tokenizer_2=tokenizer,
            scheduler=ddim(),
            add_watermarker=False,
        )
    pipeline.scheduler = ddim()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
