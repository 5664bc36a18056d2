"""Parts that tiny pipelines share: text encoders, a VAE, a U-Net, schedulers."""

import json
import tempfile
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

TOKENS = 24  # that a prompt may have, with its two ends
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LATENT_MODEL = {
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}  # as Stable Diffusion 1.5 has them
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def clip_tokenizer(max_length: int = TOKENS) -> CLIPTokenizer:
    """CLIP's tokenizer over letters: one token a character, as there are no merges."""
    letters = [chr(i) for i in range(33, 127)]
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(
            json.dumps({token: i for i, token in enumerate(tokens)})
        )
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=max_length)


def clip_text_model(tokenizer: CLIPTokenizer, width: int = 16, projection: bool = False) -> Any:
    """A text encoder of two layers, with the projection of its pooled output where a family reads
    that.
    """
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
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_tokenizer(max_length: int = TOKENS) -> T5TokenizerFast:
    """T5's tokenizer over letters: one token a character."""
    letters = [(chr(i), -1.0) for i in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0), *letters]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=max_length)


def t5_encoder(tokenizer: T5TokenizerFast, width: int = 32) -> T5EncoderModel:
    """A text encoder of two layers."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    return T5EncoderModel(config).eval()


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


def unet(**options: Any) -> UNet2DConditionModel:
    """In which the text, and with it guidance, matters though it is untrained."""
    network = UNet2DConditionModel(**UNET | options).eval()
    for name, weight in network.named_parameters():
        if "attn2.to_out" in name:
            weight.data *= 8
    return network
