"""Which frames of a video are scored, and their weights: InstructVideo's SegVR and TAR, by hand."""

import pytest
import torch

from align_gen.reward_heads.frames import segment_frames, temporal_weights


def test_weights_fall_away_from_the_middle() -> None:
    """|2 - 8| = 6, 3, 0, 5: e^-6, e^-3, 1, e^-5; with r = .25 each, R = .25 (1.059004) / 4 =
    .066188.
    """
    weights = temporal_weights(torch.tensor([2, 5, 8, 13]), 16, 1.0)
    assert weights.tolist() == pytest.approx([0.002479, 0.049787, 1, 0.006738], abs=5e-7)
    assert (0.25 * weights).mean().item() == pytest.approx(0.066188, abs=5e-7)
    assert temporal_weights(torch.arange(9), 9, 0.0).tolist() == [1.0] * 9


def test_frames_to_measure_are_the_first_of_each_segment() -> None:
    assert segment_frames(16, 4).tolist() == [0, 4, 8, 12]
    assert segment_frames(10, 4).tolist() == [0, 2, 5, 7]
    assert segment_frames(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert segment_frames(3, 1).tolist() == [0]


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "segments"), [(16, 4), (10, 4), (7, 3)])
def test_frames_to_train_on_are_uniform_in_their_segments(frames: int, segments: int) -> None:
    """Every frame of a segment about equally often, none of another: 4000 draws, to .05."""
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack([segment_frames(frames, segments, g) for _ in range(4000)])
    edges = [n * frames // segments for n in range(segments + 1)]
    for part in range(segments):
        inside = list(range(edges[part], edges[part + 1]))
        shares = torch.bincount(drawn[:, part], minlength=frames) / len(drawn)
        assert shares[inside].tolist() == pytest.approx([1 / len(inside)] * len(inside), abs=0.05)


@pytest.mark.parametrize("segments", [0, 17])
def test_more_segments_than_frames_are_refused(segments: int) -> None:
    with pytest.raises(
        ValueError, match=f"segments: want 1 to 16, the number of frames, got {segments}"
    ):
        segment_frames(16, segments)
