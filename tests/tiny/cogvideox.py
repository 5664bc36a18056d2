"""A tiny CogVideoX: sines for positions as in 2B, rotations as in 5B, or pairs of frames as in
1.5.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)

from .parts import t5_encoder, t5_tokenizer


def cogvideox(seed: int = 0, snr_shift_scale: float = 1.0, **options: Any) -> CogVideoXPipeline:
    """Latents (4, 3, 4, 6) of 9 frames of 16 x 24; zero terminal SNR, a shifted schedule or not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = t5_tokenizer()
        network = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=32,
            num_layers=2,
            sample_width=6,
            sample_height=4,
            sample_frames=9,
            max_text_seq_length=32,
            **options,
        ).eval()
        network.proj_out.weight.data *= 8
        pipeline = CogVideoXPipeline(
            tokenizer=tokenizer,
            text_encoder=t5_encoder(tokenizer),
            vae=AutoencoderKLCogVideoX(
                block_out_channels=(8, 8, 8),
                down_block_types=("CogVideoXDownBlock3D",) * 3,
                up_block_types=("CogVideoXUpBlock3D",) * 3,
                latent_channels=4,
                layers_per_block=1,
                norm_num_groups=2,
                scaling_factor=0.7,
            ).eval(),
            transformer=network,
            scheduler=CogVideoXDDIMScheduler(
                prediction_type="v_prediction",
                rescale_betas_zero_snr=True,
                snr_shift_scale=snr_shift_scale,
                timestep_spacing="trailing",
            ),
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
