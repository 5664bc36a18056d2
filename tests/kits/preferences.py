"""Preference pairs with a rule to find, and tiny random CLIPs to train on them."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tiny.parts import clip_tokenizer

SIZE = 32


def write_clip(folder: Path, kind: str) -> Path:
    """A random open_clip folder whose pictures do not all look alike."""
    folder.mkdir(parents=True)
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(folder)
    vision: dict[str, Any] = {"image_size": SIZE, "width": 16, "head_width": 8}
    vision |= {"layers": [1, 1, 1, 1]} if kind == "resnet" else {"layers": 2, "patch_size": 8}
    text: dict[str, Any] = {
        "context_length": 24,
        "vocab_size": len(tokenizer),
        "width": 16,
        "heads": 2,
        "layers": 1,
    }
    text |= {
        "hf_tokenizer_name": "tokenizer",
        "tokenizer_kwargs": {"clean_up_tokenization_spaces": False},
    }
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
    preprocess |= {"resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
        for weight in model.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    from safetensors.torch import save_file

    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


def pictures(count: int, seed: int) -> Tensor:
    """Coarse patches of random colours, as bright as a random number says; (count, 3, 32, 32) in
    [0, 1].
    """
    g = torch.Generator().manual_seed(seed)
    patches = (
        torch.rand(count, 3, 4, 4, generator=g) * 0.5
        + torch.rand(count, 1, 1, 1, generator=g) * 0.5
    )
    return F.interpolate(patches, (SIZE, SIZE), mode="nearest")


def bright_pairs(count: int = 96, seed: int = 0, darker: bool = False) -> list[dict[str, Any]]:
    """Of two pictures the brighter one is chosen, or the darker one; eight pairs a prompt."""
    first, second = pictures(count, seed), pictures(count, seed + 1)
    rows = []
    for n, (a, b) in enumerate(zip(first, second, strict=True)):
        swap = (a.mean() < b.mean()).item() != darker
        rows.append(
            {"prompt": f"thing {n // 8}", "chosen": b if swap else a, "rejected": a if swap else b}
        )
    return rows


def fresh() -> tuple[Tensor, Tensor]:
    """Pictures no training saw, and how bright they are."""
    media = pictures(64, seed=99)
    return media, media.mean((1, 2, 3))


def order(scores: Tensor, brightness: Tensor) -> float:
    """Share of pairs that both put in the same order."""
    i, j = torch.triu_indices(len(scores), len(scores), 1)
    return ((scores[i] > scores[j]) == (brightness[i] > brightness[j])).double().mean().item()
