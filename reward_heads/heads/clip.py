"""CLIP as a zero-shot reward: cosine similarity, and VLM-RM's goal-baseline regularisation.

Rocamonde et al., ICLR 2024, arXiv 2310.12921, eq. 2-3.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.dtypes import DtypeName
from ..backbones.open_clip_model import OpenClip
from ..backbones.preprocess import fit_square
from ..base import RewardHead, check_images

# Raise when scores of the same picture change.
PREPROCESSING = "clip-1"


def goal_baseline(image: Tensor, goal: Tensor, baseline: Tensor, alpha: float) -> Tensor:
    """R = 1 - |(s - g) P|^2 / 2 with P = alpha d d^T/|d|^2 + (1 - alpha) I and d = g - b.

    image (B, D), goal and baseline (D,) or (B, D), all of unit norm. alpha=0 is the cosine to the
    goal; alpha=1 keeps only the component along the line from baseline to goal. (B,), at most 1.
    Expanded along and across d, no D x D matrix: (s - g) P = along + (1 - alpha) across.
    """
    direction = F.normalize(goal - baseline, dim=-1)
    offset = image - goal
    along = (offset * direction).sum(-1, keepdim=True) * direction
    return 1 - 0.5 * (along + (1 - alpha) * (offset - along)).square().sum(-1)


class ClipHead(RewardHead):
    """Scores how well a picture fits its prompt, or a goal in words, by any open_clip model.

    Preprocessing, differentiable throughout: bicubic resize with antialias to the model's size (a
    picture of that size is not touched), then the model's mean and std. Text and image embeddings
    have unit norm; the mean of several sentences is normalised again, so that alpha=0 is a cosine
    however many there are (VLM-RM's code does not). No logit scale.

    Args:
        path: an open_clip folder (with open_clip_config.json), "hf-hub:owner/model", or an
            architecture ("ViT-H-14").
        pretrained: for an architecture: a tag of open_clip or a checkpoint file.
        goal: what to move towards; None: the sample's own prompt. "{prompt}" inside a sentence is
            the prompt.
        baseline: a neutral description of the same scene; None: no regularisation, plain cosine to
            the goal.
        alpha: strength of the goal-baseline regularisation, in [0, 1].
        resize: how a picture comes to the model's size: squash ignores the aspect ratio, as VLM-RM
            does; shortest resizes the shorter side and crops the centre, as CLIP's own.
        dtype: precision of the weights: float32 (fp32), bfloat16 (bf16) or float16 (fp16).
    """

    differentiable = True
    range = (-1.0, 1.0)
    parallel = True

    def __init__(
        self,
        path: str,
        pretrained: str | None = None,
        goal: Sequence[str] | str | None = None,
        baseline: Sequence[str] | str | None = None,
        alpha: float = 0.5,
        resize: Literal["squash", "shortest"] = "squash",
        dtype: DtypeName = "float32",
    ):
        if not 0 <= alpha <= 1:
            raise ValueError(f"clip alpha: want a number in [0, 1], got {alpha}")
        if baseline is not None and goal is None:
            raise ValueError("clip baseline: needs a goal")
        if resize not in ("squash", "shortest"):
            raise ValueError(f"clip resize: want squash or shortest, got {resize!r}")
        self.goal = _sentences(goal, "goal")
        self.baseline = _sentences(baseline, "baseline")
        sentences = [*(self.goal or ["{prompt}"]), *(self.baseline or [])]
        self.reads_prompt = any("{prompt}" in sentence for sentence in sentences)
        self.alpha = alpha
        self.resize = resize
        self.path = path
        self.clip = OpenClip.load(path, pretrained, dtype)

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_images(media)
        image = self.embed_images(media)
        if self.goal is None:
            return (image * self.embed_texts(prompts)).sum(-1)
        goal = self._mean_embedding(self.goal, prompts)
        if self.baseline is None:
            return (image * goal).sum(-1)
        return goal_baseline(image, goal, self._mean_embedding(self.baseline, prompts), self.alpha)

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> unit embeddings (B, D) float32; differentiable."""
        images = images.to(self.clip.device, torch.float32)
        return self.clip.embed_images(fit_square(images, self.clip.size, self.resize))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Sentences -> unit embeddings (B, D) float32; each distinct one is encoded once."""
        return self.clip.embed_texts(texts)

    def _mean_embedding(self, sentences: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """Normalised mean over sentences: (D,), or (B, D) where they quote the prompt."""
        if not any("{prompt}" in sentence for sentence in sentences):
            return F.normalize(self.embed_texts(sentences).mean(0), dim=-1)
        filled = [
            sentence.replace("{prompt}", prompt) for prompt in prompts for sentence in sentences
        ]
        embeds = self.embed_texts(filled).unflatten(0, (len(prompts), len(sentences)))
        return F.normalize(embeds.mean(1), dim=-1)

    def provenance(self) -> dict[str, Any]:
        options = {"goal": self.goal, "baseline": self.baseline, "alpha": self.alpha}
        return {
            "weights_sha256": self.clip.sha256,
            "preprocessing": f"{PREPROCESSING}-{self.resize}",
            "dtype": self.clip.dtype,
            "options": options,
        }

    def to(self, device: torch.device | str) -> "ClipHead":
        self.clip.to(device)
        return self


def _sentences(value: Sequence[str] | str | None, key: str) -> list[str] | None:
    if value is None:
        return None
    sentences = [value] if isinstance(value, str) else list(value)
    if not sentences or not all(isinstance(s, str) and s for s in sentences):
        raise ValueError(f"clip {key}: want one or more sentences, got {value!r}")
    return sentences
