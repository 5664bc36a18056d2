"""A tiny Stable Diffusion 3."""

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from .parts import autoencoder, clip_text_model, clip_tokenizer, t5_encoder, t5_tokenizer


def stable_diffusion_3(
    seed: int = 0, t5: bool = True, **scheduler: Any
) -> StableDiffusion3Pipeline:
    """Latents (4, 8, 8), pictures 16 x 16; both CLIP encoders, T5 or none, a VAE with a shift."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, t5_words = clip_tokenizer(), t5_tokenizer()
        vae = autoencoder()
        vae.register_to_config(scaling_factor=1.5, shift_factor=0.06)
        network = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        ).eval()
        network.proj_out.weight.data *= 8
        pipeline = StableDiffusion3Pipeline(
            transformer=network,
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
            vae=vae,
            text_encoder=clip_text_model(tokenizer, projection=True),
            tokenizer=tokenizer,
            text_encoder_2=clip_text_model(tokenizer, projection=True),
            tokenizer_2=tokenizer,
            text_encoder_3=t5_encoder(t5_words) if t5 else None,
            tokenizer_3=t5_words if t5 else None,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
