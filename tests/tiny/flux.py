"""A tiny FLUX.1."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from .parts import autoencoder, clip_text_model, clip_tokenizer, t5_encoder, t5_tokenizer


def flux(seed: int = 0, guidance_embeds: bool = True) -> FluxPipeline:
    """Latents (4, 8, 8), pictures 16 x 16; packed two by two, dynamic shift, embedded guidance or
    none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, t5_words = clip_tokenizer(), t5_tokenizer()
        vae = autoencoder()
        vae.register_to_config(scaling_factor=1.5, shift_factor=0.06)
        network = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        ).eval()
        network.proj_out.weight.data *= 8
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=vae,
            text_encoder=clip_text_model(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=t5_encoder(t5_words),
            tokenizer_2=t5_words,
            transformer=network,
        )
    pipeline.default_sample_size = 8
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
