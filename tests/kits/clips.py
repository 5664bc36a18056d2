"""A random open_clip model on disk, and pictures for it."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny.parts import clip_tokenizer

SIZE = 32


def write_clip(folder: Path, kind: str) -> Path:
    """A model as open_clip's own folders are, whose image tower is a "resnet" or a "vit"."""
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
        "hf_tokenizer_name": "tokenizer",
        "tokenizer_kwargs": {"clean_up_tokenization_spaces": False},
    }
    model_cfg = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    preprocess = {
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.26, 0.28],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))

    # CLIP's initialisation is so small that all pictures look alike.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**model_cfg)
        for weight in model.parameters():
            weight.data += 0.05 * torch.randn_like(weight)

    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def media(count: int = 4, size: int = SIZE, seed: int = 0) -> Tensor:
    """Coarse patches of random colours, in 255ths."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, 256, (count, 3, 4, 4), generator=generator).float() / 255
    return F.interpolate(patches, (size, size), mode="nearest")
