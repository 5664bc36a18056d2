"""A tiny Wan that begins with an image: 2.1 with CLIP, 2.2 with two networks, or 2.2 TI2V."""

from typing import Any

import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from .wan import wan


def wan_image(
    boundary_ratio: float | None = None, expand_timesteps: bool = False
) -> WanImageToVideoPipeline:
    """Latents (4, 2, 4, 6) of 5 frames of 32 x 48."""
    plain = wan(boundary_ratio=boundary_ratio, euler=True)
    sees = boundary_ratio is None and not expand_timesteps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)

        def network(kept: WanTransformer3DModel | None) -> Any:
            if kept is None:
                return None
            channels = 4 if expand_timesteps else 4 + 4 + 4
            options = {"image_dim": 16, "added_kv_proj_dim": 24} if sees else {}
            made = WanTransformer3DModel.from_config(
                kept.config, in_channels=channels, **options
            ).eval()
            made.proj_out.weight.data *= 4
            for name, weight in made.named_parameters():
                if "attn2.to_out" in name:
                    weight.data *= 8
            return made

        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        )
        pipeline = WanImageToVideoPipeline(
            tokenizer=plain.tokenizer,
            text_encoder=plain.text_encoder,
            vae=plain.vae,
            scheduler=plain.scheduler,
            image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
            if sees
            else None,
            image_encoder=CLIPVisionModel(vision).eval() if sees else None,
            transformer=network(plain.transformer),
            transformer_2=network(plain.transformer_2),
            boundary_ratio=boundary_ratio,
            expand_timesteps=expand_timesteps,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
