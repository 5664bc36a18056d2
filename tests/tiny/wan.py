"""A tiny Wan 2.1, or 2.2 with two transformers."""

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from .parts import t5_tokenizer

UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def wan(seed: int = 0, boundary_ratio: float | None = None, euler: bool = False) -> WanPipeline:
    """Latents (4, 2, 4, 4) of 5 frames of 32 x 32; one transformer, or two with a boundary.

    The published scheduler is UniPC, which gives the network whole timesteps; ``euler``: another.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = t5_tokenizer()
        text = UMT5Config(
            vocab_size=len(tokenizer),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.8, 1.2, 2.0],
        ).eval()

        def network() -> WanTransformer3DModel:
            made = WanTransformer3DModel(
                patch_size=(1, 2, 2),
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=4,
                text_dim=32,
                freq_dim=16,
                ffn_dim=32,
                num_layers=2,
                rope_max_seq_len=32,
            ).eval()
            made.proj_out.weight.data *= 8
            return made

        pipeline = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(text).eval(),
            vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)
            if euler
            else UniPCMultistepScheduler(**UNIPC),
            transformer=network(),
            transformer_2=network() if boundary_ratio else None,
            boundary_ratio=boundary_ratio,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
