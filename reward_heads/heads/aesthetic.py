"""LAION's aesthetic predictor, version 2: a picture's mean rating, from its CLIP embedding."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import weights
from ..backbones.dtypes import DtypeName
from ..backbones.linear_layers import linear_layers
from ..backbones.open_clip_model import OpenClip
from ..backbones.preprocess import shortest_side
from ..base import RewardHead, check_images

# Raise when scores of the same picture change.
PREPROCESSING = "aesthetic-1"
# The name under which the hub has sac+logos+ava1-l14-linearMSE.pth.
FILE = "aesthetic-model.pth"


class Aesthetic(RewardHead):
    """Scores how beautiful people find a picture, from about 1 to 10; prompts are ignored.

    Five linear layers on the unit CLIP embedding of the picture. The published weights predict
    ratings from 1 to 10; most pictures lie between 4 and 7, and nothing bounds the score. They
    belong to OpenAI's ViT-L/14, whose activation is QuickGELU: open_clip's "ViT-L-14-quickgelu".

    Preprocessing, differentiable throughout, as CLIP's own: the shorter side is resized to the
    model's size, bicubic with antialias, the centre is cropped, then the model's mean and std.

    Args:
        head: weights of the five layers: a file, a folder with "aesthetic-model.pth", or a hub
            name.
        path: the CLIP model, as the clip head takes it.
        pretrained: for an architecture: a tag of open_clip or a checkpoint file.
        dtype: precision of CLIP's weights: float32 (fp32), bfloat16 (bf16) or float16 (fp16); the
            layers are always float32.
    """

    differentiable = True
    parallel = True

    def __init__(
        self,
        head: str = "trl-lib/ddpo-aesthetic-predictor",
        path: str = "ViT-L-14-quickgelu",
        pretrained: str | None = None,
        dtype: DtypeName = "float32",
    ):
        if path == "ViT-L-14-quickgelu" and pretrained is None:
            pretrained = "openai"
        # The small file before the large one, so that nobody waits for CLIP in vain.
        file = weights.find(head, FILE)
        state = weights.read(file)
        self.clip = OpenClip.load(path, pretrained, dtype)
        self.layers = linear_layers(self.clip.model.visual.output_dim)
        weights.fill(self.layers, state, f"head {head}")
        self.to(self.clip.device)

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_images(media)
        images = media.to(self.clip.device, torch.float32)
        pixels = shortest_side(images, self.clip.size, round)
        return self.layers(self.clip.embed_images(pixels))[:, 0]

    @cached_property
    def sha256(self) -> str:
        return weights.sha256(nn.ModuleDict({"clip": self.clip.model, "head": self.layers}))

    def provenance(self) -> dict[str, Any]:
        return {
            "weights_sha256": self.sha256,
            "preprocessing": PREPROCESSING,
            "dtype": self.clip.dtype,
            "options": {},
        }

    def to(self, device: torch.device | str) -> "Aesthetic":
        self.clip.to(device)
        self.layers.to(device)
        return self
