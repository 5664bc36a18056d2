"""HPS v2 and v2.1: how much people would like a picture for its prompt.

Wu et al., 2023, arXiv 2306.09341: CLIP ViT-H-14, fine-tuned on people's choices between pictures of
one prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones import weights
from ..backbones.dtypes import DtypeName
from ..backbones.open_clip_model import OpenClip
from ..base import RewardHead, check_images

# Raise when scores of the same picture change.
PREPROCESSING = "hps-1"
REPOSITORY = "xswu/HPSv2"
# The published file of each version, in the repository.
FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


def scaled_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) with the longer side ``size``, the other in proportion, from 1 pixel."""
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_and_pad(images: Tensor, size: int, antialias: bool = True) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size): resize, then black bars; differentiable.

    The resize is bicubic, to ``scaled_size``; the picture is centred between the bars.

    An odd row or column of the bars goes to the bottom or right. Bicubic overshoots [0, 1] at edges
    and stays so. A picture whose longer side is ``size`` is not resized, but padded like any other
    (the published code leaves it as it is, and cannot batch or encode it unless it is square).
    """
    height, width = scaled_size(images.shape[-2], images.shape[-1], size)
    if (height, width) != tuple(images.shape[-2:]):
        images = F.interpolate(
            images, (height, width), mode="bicubic", antialias=antialias, align_corners=False
        )
    top = (size - height) // 2
    left = (size - width) // 2
    return F.pad(images, (left, size - width - left, top, size - height - top))


class HpsHead(RewardHead):
    """Scores how much people would like a picture for its prompt, by HPS v2 or v2.1.

    The cosine of picture and prompt under their CLIP, as ``hpsv2.score`` has it: no logit scale,
    and no factor of 100, with which benchmark tables print it. Pictures are fitted into a square of
    the model's size (``resize_and_pad``), then normalised, the black bars too. The weights' dtype
    is the only one there is: no autocast, which the published code uses on a GPU. Scores of v2.0
    and v2.1 do not compare, nor do scores of different prompts.

    Args:
        path: a checkpoint (.pt or .safetensors), a folder or hub repository with the published file
            of the version, or an open_clip folder (with open_clip_config.json); None: the published
            checkpoint, from xswu/HPSv2.
        version: which of the two ``path`` holds.
        dtype: precision of the weights: float32 (fp32), bfloat16 (bf16) or float16 (fp16).
        architecture: what open_clip calls the model of a checkpoint; an open_clip folder says its
            own.
        antialias: whether the resize smooths before it shrinks. The published code leaves this to
            torchvision, which did not before 0.17 and does since; scores differ in the third
            decimal.

    Raises:
        ValueError: no such file, version or architecture; weights of another shape.
    """

    differentiable = True
    reads_prompt = True
    range = (-1.0, 1.0)
    parallel = True

    def __init__(
        self,
        path: str | None = None,
        version: Literal["v2.0", "v2.1"] = "v2.0",
        dtype: DtypeName = "float32",
        architecture: str = "ViT-H-14",
        antialias: bool = True,
    ):
        if version not in FILES:
            raise ValueError(f"hps version: want one of {sorted(FILES)}, got {version!r}")
        if not isinstance(antialias, bool):
            raise ValueError(f"hps antialias: want true or false, got {antialias!r}")
        self.version = version
        self.antialias = antialias
        # An open_clip folder says its own architecture.
        folder = None if path is None else Path(path).expanduser()
        self.architecture: str | None
        if folder is not None and (folder / "open_clip_config.json").is_file():
            self.architecture = None
            self.clip = OpenClip.load(str(path), dtype=dtype)
        else:
            self.architecture = architecture
            _require_architecture(architecture)
            self.clip = OpenClip.load(architecture, str(_checkpoint(path, version)), dtype)

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_images(media)
        return (self.embed_images(media) * self.embed_texts(prompts)).sum(-1)

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> unit embeddings (B, D) float32; differentiable."""
        images = images.to(self.clip.device, torch.float32)
        return self.clip.embed_images(resize_and_pad(images, self.clip.size, self.antialias))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Sentences -> unit embeddings (B, D) float32; each distinct one is encoded once."""
        return self.clip.embed_texts(texts)

    def provenance(self) -> dict[str, Any]:
        return {
            "weights_sha256": self.clip.sha256,
            "preprocessing": f"{PREPROCESSING}-{'antialias' if self.antialias else 'no-antialias'}",
            "dtype": self.clip.dtype,
            "options": {
                "version": self.version,
                "architecture": self.architecture,
                "antialias": self.antialias,
            },
        }

    def to(self, device: torch.device | str) -> "HpsHead":
        self.clip.to(device)
        return self


def _checkpoint(path: str | None, version: str) -> Path:
    """The file of weights, once its name does not belong to the other version."""
    checkpoint = weights.find(path or REPOSITORY, FILES[version])
    for other, file in FILES.items():
        if other != version and Path(path or "").name == file:
            raise ValueError(
                f"hps version: {version}, but {path} is the file of {other}; want version {other}"
            )
    return checkpoint


def _require_architecture(architecture: str) -> None:
    import open_clip

    if architecture not in open_clip.list_models():
        raise ValueError(
            f"hps architecture: want one that open_clip lists, as ViT-H-14, got {architecture!r}"
        )
