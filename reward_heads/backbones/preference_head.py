"""Base of the heads that ``align-gen train-reward`` writes in its frozen mode."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..base import RewardHead
from . import weights as weight_files
from .dtypes import DtypeName, dtype_name
from .head_folder import WEIGHTS, find_base, read_about
from .open_clip_model import OpenClip
from .scorer import Scorer

# Raise when scores of the same picture change.
PREPROCESSING = "trained-1"


class PreferenceHead(RewardHead):
    """A head that ``align-gen train-reward`` wrote in its frozen mode.

    Each dimension is normalised by its mean and standard deviation over the validation set; the
    score is their weighted sum, or one of them.

    Args:
        path: the folder that train-reward wrote.
        dimension: name of the one dimension to score by; None: all.
        weights: how much each named dimension counts, others not at all; None: 1 each.
        base: the base model, where it is not beside the head: a folder or a hub name.
        dtype: precision of the base model: float32 (fp32), bfloat16 (bf16) or float16 (fp16).
    """

    differentiable = True
    scorer_type: ClassVar[type[Scorer]]

    def __init__(
        self,
        path: str,
        dimension: str | None = None,
        weights: Mapping[str, float] | None = None,
        base: str | None = None,
        dtype: DtypeName = "float32",
    ):
        folder = Path(path).expanduser()
        about = read_about(folder)
        if about["media"] != self.media:
            raise ValueError(
                f"path {path}: a head that scores a {about['media']}, "
                f"want one that scores a {self.media}"
            )
        scorer = self.scorer_type(about["width"], about["dimensions"], about["hidden"])
        self.scorer = scorer.requires_grad_(False).eval()
        weight_files.fill(self.scorer, weight_files.read(folder / WEIGHTS), folder / WEIGHTS)
        self.mean = torch.tensor(about["mean"])
        self.std = torch.tensor(about["std"])
        self.share = _shares(self.scorer.dimensions, dimension, weights)
        counted = [name for name, share in zip(scorer.dimensions, self.share, strict=True) if share]
        self.reads_prompt = any({*scorer.reads(name)} & {*scorer.text} for name in counted)
        self.resize = about["resize"]
        self.about = about

        base = base or find_base(folder, about["base"])
        self.clip = OpenClip.load(base, about["pretrained"], dtype)
        # The hash is of float32 weights: in half precision the base cannot be compared.
        if dtype_name(dtype) == "float32" and self.clip.sha256 != about["base_sha256"]:
            raise ValueError(
                f"path {path}: was trained on another {about['base']} than the one found; "
                "want its own base"
            )

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        scores = self.scores(media, prompts)
        return scores @ self.share.to(scores)

    def scores(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """Every dimension, normalised, (B, K) in the order of ``scorer.dimensions``."""
        raw = self.scorer(self.features(media, prompts))
        return (raw - self.mean.to(raw)) / self.std.to(raw)

    def features(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.scorer.features(self.clip, media, prompts, self.resize)

    def provenance(self) -> dict[str, Any]:
        shares = dict(zip(self.scorer.dimensions, self.share.tolist(), strict=True))
        return {
            "weights_sha256": weight_files.sha256(self.scorer),
            "preprocessing": f"{PREPROCESSING}-{self.resize}",
            "dtype": self.clip.dtype,
            "options": {
                "base_sha256": self.clip.sha256,
                "weights": shares,
                "mean": self.about["mean"],
                "std": self.about["std"],
            },
        }

    def to(self, device: torch.device | str) -> "PreferenceHead":
        self.clip.to(device)
        self.scorer.to(device)
        return self


def _shares(
    dimensions: Sequence[str], dimension: str | None, weights: Mapping[str, float] | None
) -> Tensor:
    """How much of each dimension the score takes, (K,)."""
    if dimension is not None and weights is not None:
        raise ValueError("dimension, weights: want one of the two")
    shares: Mapping[str, float] = dict.fromkeys(dimensions, 1.0)
    if dimension is not None:
        shares = {dimension: 1.0}
    elif weights is not None:
        shares = weights
    for name, value in shares.items():
        if name not in dimensions:
            raise ValueError(f"dimension {name!r}: this head has {', '.join(dimensions)}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise ValueError(f"weights: {name}: want a number, got {value!r}")
    return torch.tensor([float(shares.get(name, 0.0)) for name in dimensions])
