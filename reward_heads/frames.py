"""Which frames of a video are scored, and how much each counts."""

import torch
from torch import Tensor


def segment_frames(frames: int, segments: int, generator: torch.Generator | None = None) -> Tensor:
    """One frame of each of S equal parts of a video, (S,) int64.

    SegVR of InstructVideo (Yuan et al., CVPR 2024, arXiv 2312.12490).

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
    """TAR, eq. 7: f_i = exp(-decay |g(i) - F // 2|), of the indices' shape.

    The middle frame counts most; at decay 0 all count alike.
    """
    return torch.exp(-decay * (indices - frames // 2).abs())
