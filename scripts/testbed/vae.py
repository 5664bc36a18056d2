"""The VAE."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import HELD_OUT_STYLE, TRAINED_STYLES
from .loop import generator, train
from .pictures import Pictures, recolour, warp

VAE = {
    "block_out_channels": (24, 48, 64, 96),
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,
}


def build_vae() -> Any:
    from diffusers import AutoencoderKL

    down = ("DownEncoderBlock2D",) * 4
    up = ("UpDecoderBlock2D",) * 4
    return AutoencoderKL(
        down_block_types=down,
        up_block_types=up,
        sample_size=64,
        mid_block_add_attention=False,
        **VAE,
    )


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def train_vae(name: str, data: Path, work: Path, out: Path, steps: int | None) -> None:
    pictures = Pictures.load(data, TRAINED_STYLES)
    torch.manual_seed(3)
    model = build_vae().to(memory_format=torch.channels_last)

    def loss_at(model: Any, step: int) -> Tensor:
        g = generator(3, step)
        pixels = pictures.pixels[torch.randint(len(pictures.rows), (16,), generator=g)]
        pixels = recolour(warp(pixels, g, shift=0.06, scale=0.12, turn=0.1), g, 0.15) * 2 - 1
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=g)
            decoded = model.decode(posterior.mean + posterior.std * noise).sample.float()
        loss = F.l1_loss(decoded, pixels) + 1e-3 * posterior.kl().mean() / posterior.mean[0].numel()
        return loss + sum(
            F.l1_loss(a, b) for a, b in zip(edges(decoded), edges(pixels), strict=True)
        )

    model, seconds = train(name, model, loss_at, steps=steps or 3000, lr=2e-3, work=work, ema=0.995)

    # Measured on a style that it has not seen, by mean latents.
    with torch.no_grad():
        unseen = Pictures.load(data, (HELD_OUT_STYLE,)).pixels * 2 - 1
        decoded = torch.cat(
            [model.decode(model.encode(part).latent_dist.mean).sample for part in unseen.split(64)]
        )
        error = ((decoded.clamp(-1, 1) - unseen) / 2).square().mean((1, 2, 3))
        latents = torch.cat(
            [model.encode(part * 2 - 1).latent_dist.sample() for part in pictures.pixels.split(64)]
        )

    # Diffusion wants latents of variance 1.
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    model.save_pretrained(work / "emoji-vae")
    facts = {"VAE PSNR, unseen style (dB)": round((-10 * error.log10()).mean().item(), 2)}
    facts |= {
        "VAE parameters": sum(p.numel() for p in model.parameters()),
        "VAE training seconds (2 cores)": round(seconds),
    }
    (work / "emoji-vae" / "measured.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts), flush=True)
