"""A tiny PixArt-Sigma."""

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

from tests.tiny.parts import autoencoder, t5_encoder, t5_tokenizer


def pixart_sigma(seed: int = 0, **scheduler: object) -> PixArtSigmaPipeline:
    """Latents (4, 8, 8), pictures 16 x 16; eight channels come out, of which four are read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = t5_tokenizer(300)
        network = PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=32,
            use_additional_conditions=False,
        ).eval()
        for name, weight in network.named_parameters():
            if "attn2.to_out" in name or "proj_out" in name:
                weight.data *= 8
        pipeline = PixArtSigmaPipeline(
            tokenizer=tokenizer,
            text_encoder=t5_encoder(tokenizer),
            vae=autoencoder(),
            transformer=network,
            scheduler=DPMSolverMultistepScheduler(**scheduler),
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
