"""Tiny videos of U-Nets: AnimateDiff, and ModelScope's text-to-video."""

import torch
from diffusers import (
    AnimateDiffPipeline,
    MotionAdapter,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
)

from .parts import autoencoder, clip_text_model, clip_tokenizer, ddim
from .stable_diffusion import stable_diffusion


def animatediff() -> AnimateDiffPipeline:
    """Videos of up to 8 frames of 16 x 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        motion = MotionAdapter(
            block_out_channels=(8, 16),
            motion_layers_per_block=1,
            motion_num_attention_heads=2,
            motion_max_seq_length=8,
            motion_norm_num_groups=4,
        ).eval()
        for name, weight in motion.named_parameters():
            if "proj_out" in name:  # zero in an untrained one
                weight.data = torch.randn(weight.shape) / 4
        plain = stable_diffusion()
        parts = {
            name: plain.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet")
        }
        pipeline = AnimateDiffPipeline(**parts, motion_adapter=motion, scheduler=ddim())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def modelscope() -> TextToVideoSDPipeline:
    """Videos of 16 x 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = clip_tokenizer()
        network = UNet3DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        ).eval()
        for name, weight in network.named_parameters():
            if "attn2.to_out" in name:
                weight.data *= 8
        pipeline = TextToVideoSDPipeline(
            vae=autoencoder(),
            text_encoder=clip_text_model(tokenizer),
            tokenizer=tokenizer,
            unet=network,
            scheduler=ddim(),
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
