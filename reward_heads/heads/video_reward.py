"""VideoReward: a head of videos, trained on preferences, of three dimensions."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..backbones.open_clip_model import OpenClip
from ..backbones.preference_head import PreferenceHead
from ..backbones.preprocess import fit_square
from ..backbones.scorer import Scorer, blocks_of
from ..base import check_videos
from ..frames import segment_frames


class VideoScorer(Scorer):
    """VideoReward's three dimensions on the embeddings of a few frames.

    Liu et al., arXiv 2501.13918.

    Blocks: mean frame; mean size of the first differences of frames, and of the second; text; mean
    frame times text. Neither quality reads a block with text in it, so that no prompt can speak for
    a picture ("context leakage").
    """

    media = "video"
    text = (3, 4)
    # Of a longer video, evenly spaced.
    frames: ClassVar[int] = 8
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
        pictures = fit_square(media.flatten(0, 1).to(clip.device, torch.float32), clip.size, mode)
        frames = clip.embed_images(pictures).unflatten(0, media.shape[:2])  # (B, F, D)
        first = frames.diff(dim=1)
        motion = [_mean_size(first), _mean_size(first.diff(dim=1))]
        return blocks_of(frames.mean(1), *motion, text=clip.embed_texts(prompts))


def _mean_size(differences: Tensor) -> Tensor:
    """(B, F, D) -> (B, D); 0 where there is none, as in a video of one frame."""
    return differences.abs().sum(1) / max(differences.shape[1], 1)


class VideoReward(PreferenceHead):
    """Scores videos by a head that ``align-gen train-reward`` wrote.

    Its three dimensions are visual quality, motion quality and text alignment.

    Overall is the sum of the normalised dimensions; ``dimension`` and ``weights`` as of
    TrainedHead.
    """

    media = "video"
    scorer_type = VideoScorer
