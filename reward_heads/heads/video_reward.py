"""Heads of videos: any head of pictures on a few weighted frames, and a trained one of three
dimensions.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..backbones.open_clip_model import OpenClip
from ..base import RewardHead, label
from .clip import resize
from .trained import Scorer, TrainedHead, blocks_of


def segment_frames(frames: int, segments: int, generator: torch.Generator | None = None) -> Tensor:
    """SegVR of InstructVideo (Yuan et al., CVPR 2024, arXiv 2312.12490): a frame of each of S equal
    parts, (S,) int64.

    The first of each part; with a generator, any of them alike. Where S does not divide F, parts
    differ by one frame.
    """
    if not 1 <= segments <= frames:
        raise ValueError(f"segments: want 1 to {frames}, the number of frames, got {segments}")
    edges = torch.arange(segments + 1) * frames // segments
    if generator is None:
        return edges[:-1]
    return edges[:-1] + (torch.rand(segments, generator=generator) * edges.diff()).long()


def temporal_weights(indices: Tensor, frames: int, decay: float) -> Tensor:
    """TAR, eq. 7: f_i = exp(-decay |g(i) - F // 2|), of the indices' shape: the middle counts most;
    0: all alike.
    """
    return torch.exp(-decay * (indices - frames // 2).abs())


class Segments(RewardHead):
    """A head of pictures lifted to videos: R = (1/S) sum_i f_i r(frame g(i)), InstructVideo's eq.
    8.

    The weights do not sum to one: at decay 1 nearly all of R is what the middle frame gives. Only
    the chosen frames are judged, and only they get a gradient.

    Args:
        head: a name of the table, or a head; of pictures.
        segments: S, how many frames are judged.
        decay: lambda, how fast a frame counts less away from the middle.
        seed: draw the frames at random, other ones at each call, as in training; None: the first of
            each segment.
        options: of the head, where it is a name.
    """

    media = "video"

    def __init__(
        self,
        head: str | RewardHead = "clip",
        segments: int = 4,
        decay: float = 1.0,
        seed: int | None = None,
        **options: Any,
    ):
        from ..registry import load

        if segments < 1:
            raise ValueError(f"segments: want 1 or more, got {segments}")
        if not 0 <= decay < math.inf:
            raise ValueError(f"decay: want a number from 0, got {decay}")
        self.head = load(head, **options)
        self.segments = segments
        self.decay = decay
        self.seed = seed
        if self.head.media != "image":
            raise ValueError(
                f"head {label(head)}: judges a {self.head.media}; want one that judges pictures"
            )
        self.differentiable = self.head.differentiable
        self.needs = self.head.needs
        low, high = self.head.range
        self.range = (min(low, 0.0), max(high, 0.0))
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_videos(media)
        count, frames = media.shape[:2]
        chosen = torch.stack(
            [segment_frames(frames, self.segments, self.generator) for _ in range(count)]
        )  # (B, S)
        pictures = media[torch.arange(count)[:, None], chosen].flatten(0, 1)  # (B S, 3, H, W)
        told = [prompt for prompt in prompts for _ in range(self.segments)]
        rewards = self.head(
            pictures,
            told,
            **{key: self._for_frames(value, count) for key, value in context.items()},
        )
        weights = temporal_weights(chosen, frames, self.decay).to(rewards)
        return (weights * rewards.unflatten(0, (count, self.segments))).mean(1)

    def _for_frames(self, value: Any, count: int) -> Any:
        """What is told of each video, told of each of its frames."""
        of_each = isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
        return value.repeat_interleave(self.segments, 0) if of_each else value

    def provenance(self) -> dict[str, Any]:
        inner = self.head.provenance()
        own = {"segments": self.segments, "decay": self.decay, "seed": self.seed}
        return inner | {"options": {**inner["options"], **own, "head": type(self.head).__name__}}

    def to(self, device: torch.device | str) -> "Segments":
        self.head.to(device)
        return self


class VideoScorer(Scorer):
    """VideoReward's three dimensions (Liu et al., arXiv 2501.13918) on the embeddings of a few
    frames.

    Blocks: mean frame; mean size of the first differences of frames, and of the second; text; mean
    frame times text. Neither quality reads a block with text in it, so that no prompt can speak for
    a picture ("context leakage").
    """

    media = "video"
    frames: ClassVar[int] = 8  # of a longer video, evenly spaced
    READS: ClassVar[dict[str, list[int]]] = {
        "visual_quality": [0],
        "motion_quality": [0, 1, 2],
        "text_alignment": [0, 3, 4],
    }

    @classmethod
    def reads(cls, dimension: str) -> list[int]:
        if dimension not in cls.READS:
            raise ValueError(f"dimension {dimension!r}: videos have {', '.join(cls.READS)}")
        return cls.READS[dimension]

    @classmethod
    def features(
        cls, clip: OpenClip, media: Tensor, prompts: Sequence[str], mode: str = "squash"
    ) -> Tensor:
        check_videos(media)
        media = media[:, segment_frames(media.shape[1], min(cls.frames, media.shape[1]))]
        pictures = resize(media.flatten(0, 1).to(clip.device, torch.float32), clip.size, mode)
        frames = clip.embed_images(pictures).unflatten(0, media.shape[:2])  # (B, F, D)
        first = frames.diff(dim=1)
        motion = [_mean_size(first), _mean_size(first.diff(dim=1))]
        return blocks_of(frames.mean(1), *motion, text=clip.embed_texts(prompts))


def _mean_size(differences: Tensor) -> Tensor:
    """(B, F, D) -> (B, D); 0 where there is none, as in a video of one frame."""
    return differences.abs().sum(1) / max(differences.shape[1], 1)


class VideoReward(TrainedHead):
    """A head of videos that ``align-gen train-reward`` wrote: visual quality, motion quality, text
    alignment.

    Overall is the sum of the normalised dimensions; ``dimension`` and ``weights`` as of
    TrainedHead.
    """

    media = "video"
    scorer_type = VideoScorer


def check_videos(videos: Tensor) -> None:
    """Reward input: float (B, F, 3, H, W), RGB, [0, 1]."""
    if videos.ndim != 5 or videos.shape[2] != 3 or not videos.is_floating_point():
        raise ValueError(
            f"videos: want float (B, F, 3, H, W), got {videos.dtype} {tuple(videos.shape)}"
        )
