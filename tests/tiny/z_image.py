"""A tiny Z-Image."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from .parts import autoencoder
from .qwen import LANGUAGE_MODEL, qwen_tokenizer


def z_image(seed: int = 0) -> ZImagePipeline:
    """Latents (4, 8, 8), pictures 16 x 16; sequences of a multiple of 32, filled with tokens that
    are not zero.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = qwen_tokenizer()
        vae = autoencoder()
        vae.register_to_config(scaling_factor=1.5, shift_factor=0.06)
        network = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 4, 8],
            axes_lens=[128, 16, 16],
        ).eval()
        for token in (network.x_pad_token, network.cap_pad_token):
            token.data.normal_()
        pipeline = ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae,
            text_encoder=Qwen3Model(
                Qwen3Config(**LANGUAGE_MODEL, vocab_size=len(tokenizer), head_dim=16)
            ).eval(),
            tokenizer=tokenizer,
            transformer=network,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
