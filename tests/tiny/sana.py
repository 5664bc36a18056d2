"""A tiny Sana."""

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
)

from tests.tiny.gemma import gemma_model, gemma_tokenizer


def sana(seed: int = 0, euler: bool = False) -> SanaPipeline:
    """Latents (4, 8, 8), pictures 32 x 32; a solver that has whole times, or Euler's, that has
    not.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = gemma_tokenizer()
        vae = AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8, 16),
            decoder_block_out_channels=(8, 8, 16),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), (5,)),
            decoder_qkv_multiscales=((), (), (5,)),
            upsample_block_type="interpolate",
            downsample_block_type="Conv",
            scaling_factor=0.41407,
        ).eval()
        network = SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
            qk_norm="rms_norm_across_heads",
        ).eval()
        network.caption_norm.weight.data *= 8
        network.proj_out.weight.data *= 8
        scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        pipeline = SanaPipeline(
            tokenizer=tokenizer,
            text_encoder=gemma_model(tokenizer),
            vae=vae,
            transformer=network,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0) if euler else scheduler,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
