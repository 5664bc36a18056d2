"""A tiny Qwen-Image."""

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from .qwen import LANGUAGE_MODEL, qwen_tokenizer


def qwen_image(seed: int = 0) -> QwenImagePipeline:
    """Latents (4, 8, 8), pictures 16 x 16; packed two by two, dynamic shift that ends above zero,
    as published.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = qwen_tokenizer()
        text = Qwen2_5_VLConfig(
            text_config={
                **LANGUAGE_MODEL,
                "vocab_size": len(tokenizer),
                "rope_parameters": {
                    "rope_type": "default",
                    "mrope_section": [2, 3, 3],
                    "rope_theta": 1e6,
                },
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 32,
            },
        )
        vae = AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.8, 1.2, 2.0],
        ).eval()
        network = QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
        ).eval()
        network.proj_out.weight.data *= 8
        vae.decoder.conv_out.weight.data *= 4
        pipeline = QwenImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                max_image_seq_len=8192,
                max_shift=0.9,
                shift_terminal=0.02,
            ),
            vae=vae,
            text_encoder=Qwen2_5_VLForConditionalGeneration(text).eval(),
            tokenizer=tokenizer,
            transformer=network,
        )
    before, _ = pipeline.prompt_template_encode.split("{}")
    pipeline.prompt_template_encode_start_idx = len(tokenizer.tokenize(before))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
