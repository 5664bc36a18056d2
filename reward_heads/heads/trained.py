"""Heads trained on preferences over the features of a frozen open_clip model.

A folder holds them: ``head.safetensors`` and ``head.json``, which names the base model, by a path
relative to the folder, as a bundled model or as one of the hub's.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..backbones import weights as weight_files
from ..backbones.open_clip_model import OpenClip
from ..base import RewardHead, check_images
from .clip import resize

FORMAT = 1  # of the folder; raised when an older reader would misread it
WEIGHTS, ABOUT = "head.safetensors", "head.json"
PREPROCESSING = "trained-1"  # raise when scores of the same picture change
BUNDLED = Path(__file__).parent.parent.parent / "assets" / "models"


def tower(width: int, hidden: int) -> nn.Module:
    """(B, width) -> (B, 1): a linear map, or one hidden layer."""
    if hidden == 0:
        return nn.Linear(width, 1)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))


class Scorer(nn.Module):
    """Features of a frozen model -> one score a dimension, by a tower each.

    Features are blocks of D numbers, the width of the base's embeddings; each dimension reads only
    the blocks that ``reads`` gives it. The last block is image times text, whose sum is D times
    their cosine.
    """

    media: ClassVar[Literal["image", "video"]]

    def __init__(self, width: int, dimensions: Sequence[str], hidden: int = 0):
        super().__init__()
        self.width, self.dimensions, self.hidden = width, tuple(dimensions), hidden
        self.towers = nn.ModuleList(
            tower(len(self.reads(name)) * width, hidden) for name in dimensions
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, blocks * D) -> (B, dimensions)."""
        blocks = features.unflatten(-1, (-1, self.width))
        seen = [blocks[..., self.reads(name), :].flatten(-2) for name in self.dimensions]
        return torch.cat([each(x) for each, x in zip(self.towers, seen, strict=True)], -1)

    @classmethod
    def reads(cls, dimension: str) -> list[int]:
        """The blocks that a dimension sees; ValueError where there is none of that name."""
        raise NotImplementedError

    @classmethod
    def features(
        cls, clip: OpenClip, media: Tensor, prompts: Sequence[str], mode: str = "squash"
    ) -> Tensor:
        """Media in [0, 1] and their prompts -> (B, blocks * D) float32; differentiable in the
        media.
        """
        raise NotImplementedError


class ImageScorer(Scorer):
    """Blocks: image, text, image times text. Every dimension reads all three, whatever it is
    called.
    """

    media = "image"

    @classmethod
    def reads(cls, dimension: str) -> list[int]:
        return [0, 1, 2]

    @classmethod
    def features(
        cls, clip: OpenClip, media: Tensor, prompts: Sequence[str], mode: str = "squash"
    ) -> Tensor:
        check_images(media)
        image = clip.embed_images(resize(media.to(clip.device, torch.float32), clip.size, mode))
        return blocks_of(image, text=clip.embed_texts(prompts))


def blocks_of(image: Tensor, *more: Tensor, text: Tensor) -> Tensor:
    """[image, more …, text, image * text], (B, blocks * D), scaled so that entries are of the order
    of one.
    """
    root = math.sqrt(image.shape[-1])
    return torch.cat(
        [root * image, *(root * each for each in more), root * text, root**2 * image * text], -1
    )


class TrainedHead(RewardHead):
    """A head of pictures that ``align-gen train-reward`` wrote in its frozen mode.

    Each dimension is normalised by its mean and standard deviation over the validation set; the
    score is their weighted sum, or one of them.

    Args:
        path: the folder.
        dimension: the one to score by; None: all.
        weights: of the dimensions, by name; 1 each without. A dimension that is not named counts
            for nothing.
        base: another place of the same base model.
        dtype: of the base model, "float32", "bfloat16" or "float16".
    """

    differentiable = True
    scorer_type: ClassVar[type[Scorer]] = ImageScorer

    def __init__(
        self,
        path: str,
        dimension: str | None = None,
        weights: Mapping[str, float] | None = None,
        base: str | None = None,
        dtype: str = "float32",
    ):
        folder = Path(path).expanduser()
        about = read_about(folder)
        if about["media"] != self.media:
            raise ValueError(
                f"path {path}: a head that judges a {about['media']}, want one that judges a {self.media}"
            )
        self.scorer = (
            self.scorer_type(about["width"], about["dimensions"], about["hidden"])
            .requires_grad_(False)
            .eval()
        )
        weight_files.fill(self.scorer, weight_files.read(folder / WEIGHTS), folder / WEIGHTS)
        self.mean, self.std = torch.tensor(about["mean"]), torch.tensor(about["std"])
        self.share = _shares(self.scorer.dimensions, dimension, weights)
        self.resize = about["resize"]
        self.about = about
        self.clip = OpenClip.load(
            base or find_base(folder, about["base"]), about["pretrained"], dtype
        )
        if dtype == "float32" and self.clip.sha256 != about["base_sha256"]:
            raise ValueError(
                f"path {path}: was trained on another {about['base']} than the one found; want its own base"
            )

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        scores = self.scores(media, prompts)
        return scores @ self.share.to(scores)

    def scores(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """Every dimension, normalised, (B, K) in the order of ``scorer.dimensions``."""
        found = self.scorer(self.features(media, prompts))
        return (found - self.mean.to(found)) / self.std.to(found)

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

    def to(self, device: torch.device | str) -> "TrainedHead":
        self.clip.to(device)
        self.scorer.to(device)
        return self


def _shares(
    dimensions: Sequence[str], dimension: str | None, weights: Mapping[str, float] | None
) -> Tensor:
    """How much of each dimension the score takes, (K,)."""
    if dimension is not None and weights is not None:
        raise ValueError("dimension, weights: want one of the two")
    wanted = (
        {dimension: 1.0}
        if dimension is not None
        else dict.fromkeys(dimensions, 1.0)
        if weights is None
        else weights
    )
    for name, value in wanted.items():
        if name not in dimensions:
            raise ValueError(f"dimension {name!r}: this head has {', '.join(dimensions)}")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"weights: {name}: want a number, got {value!r}")
    return torch.tensor([float(wanted.get(name, 0.0)) for name in dimensions])


# --- the folder -----------------------------------------------------------------------------------


def save_head(folder: Path, scorer: Scorer, about: Mapping[str, Any]) -> None:
    """Write both files; ``about`` brings base, pretrained, base_sha256, resize, mean and std."""
    from safetensors.torch import save_file

    save_file(
        {name: value.cpu().contiguous() for name, value in scorer.state_dict().items()},
        folder / WEIGHTS,
    )
    own = {"format": FORMAT, "media": scorer.media, "dimensions": list(scorer.dimensions)}
    own |= {"width": scorer.width, "hidden": scorer.hidden}
    (folder / ABOUT).write_text(json.dumps(own | dict(about), indent=1) + "\n")


def read_about(folder: Path) -> dict[str, Any]:
    """head.json, checked; ValueError names the folder and the key."""
    file = folder / ABOUT
    if not file.is_file():
        raise ValueError(
            f"path {folder}: no {ABOUT} in it; want a folder as `align-gen train-reward` writes it"
        )
    try:
        about = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{file}: want a head of format {FORMAT}")
    for key, kind in _KEYS.items():
        if key not in about or not isinstance(about[key], kind) or isinstance(about[key], bool):
            raise ValueError(f"{file}: {key} is {about.get(key)!r}, which is none")
    count = len(about["dimensions"])
    names = all(isinstance(name, str) for name in about["dimensions"])
    numbers = [value for key in ("mean", "std") for value in about[key]]
    if not (names and count and len(about["mean"]) == len(about["std"]) == count):
        raise ValueError(f"{file}: want as many names of dimensions as mean and std have numbers")
    if (
        not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
        or min(about["std"]) <= 0
    ):
        raise ValueError(f"{file}: mean, std: want finite numbers, std above 0")
    if about["resize"] not in ("squash", "shortest"):
        raise ValueError(f"{file}: resize is {about['resize']!r}, want squash or shortest")
    if not (0 < about["width"] <= 2**16 and 0 <= about["hidden"] <= 2**16):
        raise ValueError(
            f"{file}: width, hidden: want sizes of layers, got {about['width']}, {about['hidden']}"
        )
    return about


_KEYS: dict[str, Any] = {
    "media": str, "dimensions": list, "width": int, "hidden": int, "mean": list, "std": list, "resize": str,
    "base": str, "base_sha256": str, "pretrained": str | None,
}  # fmt: skip


def find_base(folder: Path, base: str) -> str:
    """The base model of a head: beside it, bundled, or by the name itself."""
    for place in (folder / base, BUNDLED / base):
        if (place / "open_clip_config.json").is_file():
            return str(place)
    return base
