"""A tiny LTX-Video, whose VAE is told a time, as since 0.9.1, or is not."""

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)

from .parts import t5_encoder, t5_tokenizer


def ltx(seed: int = 0, timestep_conditioning: bool = False) -> LTXPipeline:
    """Latents (4, 2, 2, 4) of 5 frames of 32 x 64; the published schedule, but for the numbers of
    its tokens.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = t5_tokenizer()
        vae = AutoencoderKLLTXVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            down_block_types=("LTXVideoDownBlock3D",) * 3,
            layers_per_block=(1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False),
            decoder_spatio_temporal_scaling=(True, True, False),
            decoder_inject_noise=(False, False, False, False),
            upsample_residual=(False, False, False),
            upsample_factor=(1, 1, 1),
            timestep_conditioning=timestep_conditioning,
        ).eval()
        vae.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
        vae.latents_std.copy_(torch.tensor([1.5, 0.8, 1.2, 2.0]))
        network = LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            num_layers=2,
            caption_channels=32,
        ).eval()
        network.proj_out.weight.data *= 8
        for name, weight in network.named_parameters():
            if "attn2.to_out" in name:
                weight.data *= 8
        pipeline = LTXPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.95,
                max_shift=2.05,
                base_image_seq_len=4,
                max_image_seq_len=64,
                shift_terminal=0.1,
            ),
            vae=vae,
            text_encoder=t5_encoder(tokenizer),
            tokenizer=tokenizer,
            transformer=network,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
