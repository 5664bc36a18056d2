"""A tiny Lumina-Image 2.0."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

from tests.tiny.gemma import gemma_model, gemma_tokenizer
from tests.tiny.parts import autoencoder


def lumina_2(seed: int = 0, **scheduler: Any) -> Lumina2Pipeline:
    """Latents (4, 8, 8), pictures 16 x 16; a VAE with a shift."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = gemma_tokenizer()
        vae = autoencoder()
        vae.register_to_config(scaling_factor=1.5, shift_factor=0.06)
        network = Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(300, 16, 16),
            cap_feat_dim=16,
        ).eval()
        network.norm_out.linear_2.weight.data *= 8
        pipeline = Lumina2Pipeline(
            transformer=network,
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **scheduler}),
            vae=vae,
            text_encoder=gemma_model(tokenizer),
            tokenizer=tokenizer,
        )
    pipeline.vae_scale_factor = 2  # a constant of the class, which knows one VAE
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
