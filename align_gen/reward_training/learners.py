"""The two learners: a CLIP with low-rank changes, and a small head on frozen features."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UserError
from ..galleries.formats import UnreadablePicture
from ..galleries.pairs import SIDES, MediaFile
from ..pipelines.seeding import generator, seed_of
from ..progress import ProgressCallback
from ..reward_heads.backbones.open_clip_model import OpenClip
from ..reward_heads.backbones.preprocess import fit_square
from ..reward_heads.backbones.scorer import Scorer
from .options import RewardTraining
from .targets import Row

READERS = 4  # threads that decode pictures


class Learner(Protocol):
    """Scores the pairs that it was constructed from, by their indices."""

    def scores(self, index: Tensor) -> Tensor:
        """(P,) -> (P, 2, K): scores of the chosen and the rejected side in every dimension."""

    def cosines(self, index: Tensor) -> Tensor:
        """(P,) -> (P,): how far the base prefers the chosen side, in its own logits."""

    def parameters(self) -> Iterator[nn.Parameter]: ...


# --- low-rank changes of a CLIP -------------------------------------------------------------------


class LowRank(nn.Module):
    """W -> W + up @ down, zero at the start; alpha = rank (Hu et al., arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, rank: int, g: torch.Generator):
        super().__init__()
        rows, columns = weight.flatten(1).shape
        down = torch.randn(rank, columns, generator=g) / math.sqrt(columns)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add_lora(model: nn.Module, rank: int, seed: int) -> list[LowRank]:
    """Add low-rank changes to all weight matrices and convolutions of a frozen model.

    Embeddings are left out. The changes are parametrisations, not layers: CLIP hands the matrices
    themselves to functions of attention, which would pass by a wrapped layer.
    """
    # All names are listed first: registering a parametrisation adds modules to the walk.
    matrices = [
        (module, name, f"{path}.{name}")
        for path, module in model.named_modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.ndim >= 2 and not isinstance(module, nn.Embedding) and "embedding" not in name
    ]
    added = []
    for module, name, path in matrices:
        low_rank = LowRank(getattr(module, name), rank, generator(seed, "lora", 0, path))
        parametrize.register_parametrization(module, name, low_rank)
        added.append(low_rank)
    return added


def merge_lora(model: nn.Module) -> None:
    """Make the changed weights the model's plain weights, and freeze them."""
    for module in list(model.modules()):
        for name in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    model.requires_grad_(False)


def logit_scale(clip: OpenClip) -> float:
    """What the model multiplies cosines by, at most 100 as CLIP bounds it."""
    return clip.model.logit_scale.detach().exp().clamp(max=100).item()


class TunedClip:
    """The cosine of picture and prompt times the model's logit scale, as HPS; one dimension."""

    def __init__(self, clip: OpenClip, rows: Sequence[Row], options: RewardTraining):
        self.clip = clip
        self.rows = rows
        self.resize = options.resize
        self.changes = nn.ModuleList(add_lora(clip.model, options.rank, options.seed))

    def scores(self, index: Tensor) -> Tensor:
        """(P,) -> (P, 2, 1): logits of both sides, chosen first."""
        rows = [self.rows[i] for i in index.tolist()]
        media = [row[side] for row in rows for side in SIDES]
        pictures = _pictures(media, self.clip, self.resize)

        # Each prompt is encoded once, however many pairs of the batch share it.
        prompts = list(dict.fromkeys(row["prompt"] for row in rows))
        tokens = self.clip.tokenizer(prompts).to(self.clip.device)
        text = F.normalize(self.clip.model.encode_text(tokens).float(), dim=-1)
        text = text[[prompts.index(row["prompt"]) for row in rows]]  # (P, D)
        image = self.clip.embed_images(pictures).unflatten(0, (-1, 2))  # (P, 2, D)
        return logit_scale(self.clip) * (image * text[:, None]).sum(-1, keepdim=True)

    @torch.no_grad()
    def cosines(self, index: Tensor) -> Tensor:
        """(P,) -> (P,): the lead of the chosen side; the base's as long as nothing was learned."""
        both = torch.cat([self.scores(part)[..., 0] for part in index.split(64)])
        return both[:, 0] - both[:, 1]

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.changes.parameters()

    @torch.no_grad()
    def merge(self, dtype: torch.dtype) -> None:
        """Merge the changes into the weights, rounded to the dtype that will be written."""
        merge_lora(self.clip.model)
        for weight in self.clip.model.state_dict().values():
            if weight.is_floating_point():
                weight.copy_(weight.to(dtype))


# --- a head on frozen features --------------------------------------------------------------------


class FrozenHead:
    """A scorer on features that are computed once."""

    def __init__(
        self,
        clip: OpenClip,
        rows: Sequence[Row],
        scorer_type: type[Scorer],
        options: RewardTraining,
        progress: ProgressCallback,
    ):
        self.scale = logit_scale(clip)
        features = []
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            features += [_features(clip, row, scorer_type, options.resize) for row in part]
            progress("features", start + len(part), len(rows), {})
        self.features = torch.stack(features)  # (P, 2, W)
        self.width = clip.embed_texts([""]).shape[-1]
        # nn.Linear draws its weights from the global generator: fork it, then seed the fork.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(options.seed, "head"))
            scorer = scorer_type(self.width, options.dimensions, options.hidden)
            self.scorer = scorer.to(clip.device)

    def scores(self, index: Tensor) -> Tensor:
        """(P,) -> (P, 2, K): scores of both sides, chosen first."""
        return self.scorer(self.features[index])

    def cosines(self, index: Tensor) -> Tensor:
        """(P,) -> (P,): the base's lead of the chosen side, from the last block of features."""
        both = self.scale * self.features[index, :, -self.width :].mean(-1)
        return both[:, 0] - both[:, 1]

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.scorer.parameters()


@torch.no_grad()
def _features(clip: OpenClip, row: Row, scorer_type: type[Scorer], mode: str) -> Tensor:
    """Features of both sides of a pair, (2, W); one at a time, as sizes may differ."""
    both = [_read(row[side]) for side in SIDES]
    prompts = [row["prompt"]]
    return torch.cat([scorer_type.features(clip, one[None], prompts, mode) for one in both])


# --- media of a pair ------------------------------------------------------------------------------


def _read(media: MediaFile | Tensor) -> Tensor:
    """A picture (3, H, W) or video (F, 3, H, W) in [0, 1]; UserError where it cannot be read."""
    if isinstance(media, Tensor):
        return media
    try:
        return media.read()
    except UnreadablePicture as error:
        name = media.path or media.name
        raise UserError(f"{name}: {error}; want every picture of a pair readable") from error


def _pictures(media: Sequence[MediaFile | Tensor], clip: OpenClip, mode: str) -> Tensor:
    """Decode pictures and bring them to the model's size: (N, 3, size, size)."""
    if isinstance(media[0], Tensor):
        decoded = [_read(one) for one in media]
    else:
        with ThreadPoolExecutor(READERS) as pool:
            decoded = list(pool.map(_read, media))
    moved = [one[None].to(clip.device, torch.float32) for one in decoded]
    return torch.cat([fit_square(one, clip.size, mode) for one in moved])
