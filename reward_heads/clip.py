"""CLIP as a zero-shot reward: cosine similarity, and VLM-RM's goal-baseline regularisation.

Rocamonde et al., ICLR 2024, arXiv 2310.12921, eq. 2-3.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import RewardHead, check_images

PREPROCESSING = "clip-1"  # raise when scores of the same picture change


def goal_baseline(image: Tensor, goal: Tensor, baseline: Tensor, alpha: float) -> Tensor:
    """R = 1 - |(s - g) P|^2 / 2 with P = alpha d d^T/|d|^2 + (1 - alpha) I and d = g - b.

    image (B, D), goal and baseline (D,) or (B, D), all of unit norm. alpha=0 is the cosine to the goal; alpha=1 keeps
    only the component along the line from baseline to goal. (B,), at most 1. Expanded along and across d, no D x D
    matrix: (s - g) P = along + (1 - alpha) across.
    """
    direction = F.normalize(goal - baseline, dim=-1)
    offset = image - goal
    along = (offset * direction).sum(-1, keepdim=True) * direction
    return 1 - 0.5 * (along + (1 - alpha) * (offset - along)).square().sum(-1)


class ClipHead(RewardHead):
    """Any open_clip model as a reward.

    Preprocessing, differentiable throughout: bicubic resize with antialias to the model's size (``squash`` ignores the
    aspect ratio as VLM-RM does; ``shortest`` resizes the shorter side and crops the centre, as CLIP's own; a picture of
    the right size is not touched), then the model's mean and std. Text and image embeddings have unit norm; the mean of
    several sentences is normalised again, so that alpha=0 is a cosine however many there are (VLM-RM's code does not).
    No logit scale.

    Args:
        path: an open_clip folder (with open_clip_config.json), "hf-hub:owner/model", or an architecture ("ViT-H-14").
        pretrained: for an architecture: a tag of open_clip or a checkpoint file.
        goal: what to move towards; None: the sample's own prompt. "{prompt}" inside a sentence is the prompt.
        baseline: a neutral description of the same scene; None: no regularisation, plain cosine to the goal.
        alpha: strength of the goal-baseline regularisation, in [0, 1].
        dtype: of the weights, "float32", "bfloat16" or "float16".
    """

    differentiable = True
    range = (-1.0, 1.0)

    def __init__(
        self,
        path: str,
        pretrained: str | None = None,
        goal: Sequence[str] | str | None = None,
        baseline: Sequence[str] | str | None = None,
        alpha: float = 0.5,
        resize: Literal["squash", "shortest"] = "squash",
        dtype: str = "float32",
    ):
        if not 0 <= alpha <= 1:
            raise ValueError(f"clip alpha: want a number in [0, 1], got {alpha}")
        if baseline is not None and goal is None:
            raise ValueError("clip baseline: needs a goal")
        if resize not in ("squash", "shortest"):
            raise ValueError(f"clip resize: want squash or shortest, got {resize!r}")
        self.goal = _sentences(goal, "goal")
        self.baseline = _sentences(baseline, "baseline")
        self.alpha, self.resize, self.path = alpha, resize, path
        self.model, self.tokenizer, self.size, self.mean, self.std = _load_open_clip(path, pretrained, dtype)
        self._texts: dict[str, Tensor] = {}
        self._sha256: str | None = None

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
        weight = next(self.model.parameters())
        x = resize(images.to(weight.device, torch.float32), self.size, self.resize)
        x = (x - self.mean.to(x).view(3, 1, 1)) / self.std.to(x).view(3, 1, 1)
        return F.normalize(self.model.encode_image(x.to(weight.dtype)).float(), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Sentences -> unit embeddings (B, D) float32; each distinct one is encoded once."""
        device = next(self.model.parameters()).device
        new = sorted(set(texts) - self._texts.keys())
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            embeddings = F.normalize(self.model.encode_text(self.tokenizer(part).to(device)).float(), dim=-1)
            self._texts.update(zip(part, embeddings, strict=True))
        return torch.stack([self._texts[text] for text in texts]).to(device)

    def _mean_embedding(self, sentences: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """Normalised mean over sentences: (D,), or (B, D) where they quote the prompt."""
        if any("{prompt}" in sentence for sentence in sentences):
            filled = [sentence.replace("{prompt}", prompt) for prompt in prompts for sentence in sentences]
            return F.normalize(self.embed_texts(filled).unflatten(0, (len(prompts), len(sentences))).mean(1), dim=-1)
        return F.normalize(self.embed_texts(sentences).mean(0), dim=-1)

    def provenance(self) -> dict[str, Any]:
        if self._sha256 is None:
            self._sha256 = _weights_sha256(self.model)
        options = {"goal": self.goal, "baseline": self.baseline, "alpha": self.alpha}
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return {
            "weights_sha256": self._sha256,
            "preprocessing": f"{PREPROCESSING}-{self.resize}",
            "dtype": dtype,
            "options": options,
        }

    def to(self, device: torch.device | str) -> "ClipHead":
        self.model.to(device)
        self._texts.clear()
        return self


def resize(images: Tensor, size: int, mode: str) -> Tensor:
    """To (B, 3, size, size), bicubic with antialias; a picture of the right size is returned as it is."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if mode == "shortest":
        scale = size / min(height, width)
        height, width = max(size, round(height * scale)), max(size, round(width * scale))
    else:
        height = width = size
    resized = F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (height - size) // 2, (width - size) // 2
    return resized[..., top : top + size, left : left + size]


def _sentences(value: Sequence[str] | str | None, key: str) -> list[str] | None:
    if value is None:
        return None
    sentences = [value] if isinstance(value, str) else list(value)
    if not sentences or not all(isinstance(s, str) and s for s in sentences):
        raise ValueError(f"clip {key}: want one or more sentences, got {value!r}")
    return sentences


def _load_open_clip(path: str, pretrained: str | None, dtype: str) -> tuple[Any, Any, int, Tensor, Tensor]:
    """(frozen model in eval mode, tokenizer, input size, mean, std)."""
    import open_clip

    if Path(path).is_dir() or path.startswith((".", "/", "~")):
        folder = Path(path).expanduser()
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(f"clip path {path}: want an open_clip folder (open_clip_config.json is missing)")
        path = f"local-dir:{folder}"
    elif not path.startswith(("hf-hub:", "local-dir:")) and path not in open_clip.list_models():
        raise ValueError(f"clip path {path!r}: want a folder, hf-hub:owner/model, or an architecture of open_clip")
    elif not path.startswith(("hf-hub:", "local-dir:")) and pretrained is None:
        raise ValueError(f"clip path {path!r}: an architecture needs pretrained (a tag of open_clip or a file)")
    precision = {"float32": "fp32", "bfloat16": "pure_bf16", "float16": "pure_fp16"}
    if dtype not in precision:
        raise ValueError(f"clip dtype: want one of {sorted(precision)}, got {dtype!r}")
    try:
        model = open_clip.create_model(path, pretrained=pretrained, precision=precision[dtype], require_pretrained=True)
    except RuntimeError as error:
        raise ValueError(f"clip path {path}: {error}") from error
    model.requires_grad_(False).eval()
    size = model.visual.image_size
    mean = torch.tensor(model.visual.preprocess_cfg["mean"])
    std = torch.tensor(model.visual.preprocess_cfg["std"])
    return model, open_clip.get_tokenizer(path), size[0] if isinstance(size, tuple | list) else size, mean, std


def _weights_sha256(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
