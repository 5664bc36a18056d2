"""A head of pictures, lifted to videos by a few weighted frames."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import RewardHead, check_videos, label
from ..frames import segment_frames, temporal_weights


class Segments(RewardHead):
    """Scores a video by a reward for pictures, on a few of its frames.

    R = (1/S) sum_i f_i r(frame g(i)), InstructVideo's eq. 8.

    The weights do not sum to one: at decay 1 nearly all of R is what the middle frame gives. Only
    the chosen frames are scored, and only they get a gradient.

    Args:
        head: the reward for pictures: its name, or a head.
        segments: how many frames are scored (S), from 1.
        decay: how fast frames count less away from the middle, from 0: one n frames away counts
            exp(-decay n).
        seed: seed of random frames, other ones at each call, as in training; None: the first
            frame of each segment.
        options: options of the head, where it is a name.
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
        from ..loading import load

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
                f"head {label(head)}: scores a {self.head.media}; want one that scores pictures"
            )
        self.differentiable = self.head.differentiable
        self.reads_prompt = self.head.reads_prompt
        self.required_context = self.head.required_context
        # The weights are at most 1 each and may be tiny, so 0 is always within reach.
        low, high = self.head.range
        self.range = (min(low, 0.0), max(high, 0.0))
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_videos(media)
        count, frames = media.shape[:2]
        drawn = [segment_frames(frames, self.segments, self.generator) for _ in range(count)]
        chosen = torch.stack(drawn)  # (B, S)
        pictures = media[torch.arange(count)[:, None], chosen].flatten(0, 1)  # (B S, 3, H, W)
        repeated = [prompt for prompt in prompts for _ in range(self.segments)]
        of_frames = {key: self._for_frames(value, count) for key, value in context.items()}
        rewards = self.head(pictures, repeated, **of_frames)
        weights = temporal_weights(chosen, frames, self.decay).to(rewards)
        return (weights * rewards.unflatten(0, (count, self.segments))).mean(1)

    def _for_frames(self, value: Any, count: int) -> Any:
        """Context with a row a video, repeated for its frames; any other as it is."""
        of_each = isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
        return value.repeat_interleave(self.segments, 0) if of_each else value

    def provenance(self) -> dict[str, Any]:
        inner = self.head.provenance()
        options = {
            **inner["options"],
            "segments": self.segments,
            "decay": self.decay,
            "seed": self.seed,
            "head": type(self.head).__name__,
        }
        return inner | {"options": options}

    def to(self, device: torch.device | str) -> "Segments":
        self.head.to(device)
        return self
