"""Tiny random pipelines of real diffusers classes: the same code paths as a real checkpoint, in milliseconds."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 24  # that a prompt may have, with its two ends
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LATENT_MODEL = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}  # as Stable Diffusion 1.5 has them


def clip_tokenizer(max_length: int = TOKENS) -> CLIPTokenizer:
    """CLIP's tokenizer over letters: one token a character, as there are no merges."""
    letters = [chr(i) for i in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=max_length)


def clip_text_model(tokenizer: CLIPTokenizer, width: int = 16) -> CLIPTextModel:
    """A text encoder of two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    return CLIPTextModel(config).eval()


def autoencoder(channels: int = 4) -> AutoencoderKL:
    """A VAE that halves height and width."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
    ).eval()


def ddim(**options: Any) -> DDIMScheduler:
    """DDIM on Stable Diffusion's noise schedule."""
    return DDIMScheduler(**SCHEDULE | LATENT_MODEL | options)


def stable_diffusion(seed: int = 0, scheduler: Any = None, **unet: Any) -> StableDiffusionPipeline:
    """Latents (4, 8, 8), pictures 16 x 16, every component random but the same at equal ``seed``.

    ``scheduler`` is put in after construction: the pipeline's constructor rewrites steps_offset and clip_sample.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer()
        options: dict[str, Any] = {
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
        }
        network = UNet2DConditionModel(**options | unet).eval()
        for name, weight in network.named_parameters():
            if "attn2.to_out" in name:  # so that the text, and with it guidance, matters in an untrained network
                weight.data *= 8
        pipeline = StableDiffusionPipeline(
            vae=autoencoder(),
            text_encoder=clip_text_model(tokenizer),
            tokenizer=tokenizer,
            unet=network,
            scheduler=ddim(),
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
        )
    if scheduler is not None:
        pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
