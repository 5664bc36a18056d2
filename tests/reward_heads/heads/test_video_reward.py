"""Videos by a few frames: InstructVideo's numbers, laws of sampling; and what each trained
dimension may see.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from align_gen.reward_heads import load, reward_set
from align_gen.reward_heads.backbones.head_folder import save_head
from align_gen.reward_heads.backbones.open_clip_model import OpenClip
from align_gen.reward_heads.base import CallableHead
from align_gen.reward_heads.frames import segment_frames, temporal_weights
from align_gen.reward_heads.heads.clip import ClipHead
from align_gen.reward_heads.heads.video_reward import VideoReward, VideoScorer
from align_gen.reward_heads.wrappers.segments import Segments
from align_gen.reward_training.train import train_reward
from tests.reward_heads.heads.test_clip import media, write_clip


def numbered(frames: int, count: int = 1) -> Tensor:
    """Videos (count, F, 3, 2, 2) whose frame number can be read from their pixels: b + f / 1000."""
    levels = torch.arange(frames)[None] / 1000 + torch.arange(count)[:, None] / 10
    return levels[..., None, None, None].expand(-1, -1, 3, 2, 2).contiguous()


def level(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    return pictures.mean((1, 2, 3))


level.differentiable = True  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "base", "vit")


# --- which frames, and what they weigh ------------------------------------------------------------


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


# --- any head on a few frames ---------------------------------------------------------------------


def test_the_formula_by_hand() -> None:
    """F = 16, S = 4: frames 0, 4, 8, 12 at .000, .004, .008, .012, weights e^-8, e^-4, 1, e^-4;
    over 4.
    """
    found = Segments(CallableHead(level), decay=1.0)(numbered(16), [""])
    expected = (0.004 * math.exp(-4) + 0.008 + 0.012 * math.exp(-4)) / 4
    assert found.tolist() == pytest.approx([expected])


def test_without_decay_on_all_frames_it_is_the_mean(base: Path) -> None:
    """What a RewardSet does with a head of pictures, by a head that is CLIP."""
    videos = torch.stack([media(5, seed=1), media(5, seed=2)])
    found = Segments("clip", segments=5, decay=0.0, path=str(base))(videos, ["a dog", "a cat"])
    expected = reward_set({"clip": {"path": str(base)}})(videos, ["a dog", "a cat"]).combined
    torch.testing.assert_close(found, expected)


def test_only_chosen_frames_are_judged_with_their_own_prompts() -> None:
    seen: list[tuple[Tensor, list[str]]] = []

    def watched(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append((pictures, list(prompts)))
        return level(pictures, prompts)

    Segments(CallableHead(watched), segments=2)(numbered(6, count=2), ["a", "b"])
    ((pictures, prompts),) = seen
    assert prompts == ["a", "a", "b", "b"]
    assert pictures.mean((1, 2, 3)).tolist() == pytest.approx([0.0, 0.003, 0.1, 0.103])


def test_gradients_reach_the_chosen_frames_alone() -> None:
    """d R / d pixel = f_i / (S n) on frames 0, 2, 4 of 6, n pixels each; nothing elsewhere."""
    videos = numbered(6).requires_grad_()
    head = Segments(CallableHead(level), segments=3, decay=0.5)
    assert head.differentiable
    head(videos, [""]).sum().backward()
    assert videos.grad is not None
    per_frame = videos.grad.sum((0, 2, 3, 4))
    expected = [math.exp(-1.5) / 3, 0, math.exp(-0.5) / 3, 0, math.exp(-0.5) / 3, 0]
    assert per_frame.tolist() == pytest.approx(expected)
    assert not Segments("jpeg_size").differentiable


def test_a_seed_draws_other_frames_each_time_and_the_same_again() -> None:
    videos = numbered(16, count=3)
    once, again, other = (Segments(CallableHead(level), decay=0.0, seed=seed) for seed in (5, 5, 6))
    first, second = once(videos, [""] * 3), once(videos, [""] * 3)
    assert not torch.equal(first, second)
    torch.testing.assert_close(again(videos, [""] * 3), first)
    assert not torch.equal(other(videos, [""] * 3), first)
    assert (first - torch.arange(3) / 10).unique().numel() > 1  # each video draws its own


def test_context_goes_with_its_video() -> None:
    """A tensor with a row a video is repeated for its frames; what is none of each passes as
    it is.
    """

    class Told(CallableHead):
        required_context = ("control", "t")

        def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
            assert context["t"] == 7
            return context["control"][:, 0].float()

    head = Segments(Told(level), segments=2, decay=0.0)
    head.head.required_context = ("control", "t")
    found = head(numbered(4, count=2), ["", ""], control=torch.tensor([[1.0], [3.0]]), t=7)
    assert found.tolist() == [1.0, 3.0]


def test_range_and_provenance_say_what_was_done() -> None:
    """Weights lie in (0, 1]: a JPEG's (-inf, 0) stays; (.5, 1) becomes (0, 1), for a small weight
    takes it near 0.
    """
    assert Segments("jpeg_size").range == (float("-inf"), 0.0)
    high = CallableHead(level)
    high.range = (0.5, 1.0)
    assert Segments(high).range == (0.0, 1.0)
    options = Segments("jpeg_size", segments=3, decay=0.5).provenance()["options"]
    assert (options["segments"], options["decay"], options["seed"], options["quality"]) == (
        3,
        0.5,
        None,
        95,
    )
    assert options["head"] == "JpegSize"


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"segments": 0}, "segments: want 1 or more"),
        ({"decay": -1.0}, "decay: want a number from 0"),
        ({"head": "nonesuch"}, "no reward 'nonesuch'"),
        ({"head": Segments("jpeg_size")}, "scores a video; want one that scores pictures"),
        ({"colour": 1}, "options are"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_a_mistake_is_named(options: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        Segments(**{"head": "jpeg_size", **options})


def test_pictures_are_no_videos() -> None:
    with pytest.raises(ValueError, match="videos: want float"):
        Segments("jpeg_size")(torch.zeros(4, 3, 8, 8), [""] * 4)


# --- the trained head -----------------------------------------------------------------------------

DIMENSIONS = ["visual_quality", "motion_quality", "text_alignment"]


def untrained(base: Path, hidden: int = 0) -> Path:
    """Random towers, so that whatever a dimension can see it answers to."""
    torch.manual_seed(1)
    folder = base.parent / f"video-{hidden}"
    folder.mkdir(exist_ok=True)
    about: dict[str, Any] = {
        "base": f"../{base.name}",
        "pretrained": None,
        "base_sha256": OpenClip.load(str(base)).sha256,
    }
    about |= {"resize": "squash", "mean": [0.0] * 3, "std": [1.0] * 3}
    save_head(folder, VideoScorer(16, DIMENSIONS, hidden), about)
    return folder


def moving(seed: int = 0, frames: int = 6) -> Tensor:
    """(1, F, 3, 32, 32), every frame another picture."""
    return media(frames, seed=seed)[None]


@pytest.mark.parametrize("hidden", [0, 7])
def test_no_prompt_can_speak_for_a_picture(base: Path, hidden: int) -> None:
    """Two prompts on one video: both qualities answer alike to the last bit, the alignment does
    not.
    """
    head = VideoReward(str(untrained(base, hidden)))
    one, other = (
        head.scores(moving(), ["a dog"])[0],
        head.scores(moving(), ["superb, masterpiece"])[0],
    )
    assert torch.equal(one[:2], other[:2]) and (one[2] - other[2]).abs() > 1e-4


@pytest.mark.parametrize(
    ("block", "answer"),
    [(0, [0, 1, 2]), (1, [1]), (2, [1]), (3, [2]), (4, [2])],
    ids=["mean", "first", "second", "text", "product"],
)
def test_each_dimension_reads_its_own_blocks(block: int, answer: list[int]) -> None:
    """Mean frame: all three. First and second differences: motion alone. Text, and its product:
    alignment alone.
    """
    torch.manual_seed(0)
    scorer, features = VideoScorer(4, DIMENSIONS), torch.zeros(1, 5, 4)
    before = scorer(features.flatten(1))
    features[:, block] = 1.0
    assert (scorer(features.flatten(1)) - before)[0].nonzero()[:, 0].tolist() == answer


def test_only_motion_sees_the_order_of_frames(base: Path) -> None:
    """Shuffled frames have the same mean; played backwards, differences have the same size too."""
    head, video = VideoReward(str(untrained(base))), moving()
    scores = head.scores(video, ["a"])[0]
    shuffled = head.scores(video[:, [0, 3, 1, 4, 2, 5]], ["a"])[0]
    torch.testing.assert_close(shuffled[[0, 2]], scores[[0, 2]])
    assert (shuffled[1] - scores[1]).abs() > 1e-4
    torch.testing.assert_close(head.scores(video.flip(1), ["a"])[0], scores)


def test_a_still_has_no_motion(base: Path) -> None:
    """Repeated frames, or only one: the blocks of differences are zero, and finite."""
    clip = OpenClip.load(str(base))
    still = media(1)[None].expand(-1, 5, -1, -1, -1)
    for video in (still, still[:, :1], moving(frames=2)):
        features = VideoScorer.features(clip, video, ["a"]).view(5, 16)
        assert bool(features.isfinite().all())
        assert bool(features[2].abs().max() < 1e-5)
        assert bool(features[1].abs().max() < 1e-5) == (video.shape[1] != 2)


def test_features_by_hand(base: Path) -> None:
    """Three frames a, b, c of unit vectors: mean, (|b - a| + |c - b|) / 2, |c - 2b + a|; times sqrt
    16.
    """
    video = moving(frames=3)
    a, b, c = ClipHead(str(base)).embed_images(video[0])
    text = ClipHead(str(base)).embed_texts(["a dog"])[0]
    mean = (a + b + c) / 3
    expected = [
        4 * mean,
        2 * ((b - a).abs() + (c - b).abs()),
        4 * (c - 2 * b + a).abs(),
        4 * text,
        16 * mean * text,
    ]
    found = VideoScorer.features(OpenClip.load(str(base)), video, ["a dog"])[0]
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)


def test_long_videos_are_seen_at_eight_frames(base: Path) -> None:
    """Of 24 frames every third: what lies between does not count."""
    head, video = VideoReward(str(untrained(base))), moving(frames=24)
    scores = head(video, ["a"])
    other = video.clone()
    other[:, torch.arange(24) % 3 != 0] = 0.5
    torch.testing.assert_close(head(other, ["a"]), scores)


def test_overall_is_the_sum_and_weights_choose(base: Path) -> None:
    folder = str(untrained(base))
    visual, motion, text = VideoReward(folder).scores(moving(), ["a"])[0]
    torch.testing.assert_close(VideoReward(folder)(moving(), ["a"])[0], visual + motion + text)
    torch.testing.assert_close(
        VideoReward(folder, dimension="motion_quality")(moving(), ["a"])[0], motion
    )
    weighted = VideoReward(folder, weights={"visual_quality": 0.1, "text_alignment": 0.8})
    torch.testing.assert_close(weighted(moving(), ["a"])[0], 0.1 * visual + 0.8 * text)


def test_a_head_of_videos_is_none_of_pictures(base: Path) -> None:
    with pytest.raises(
        ValueError, match="dimension 'beauty': videos have visual_quality, motion_quality"
    ):
        VideoScorer(16, ["beauty"])
    head = load(VideoReward(str(untrained(base))))
    assert head.media == "video" and head.differentiable
    with pytest.raises(ValueError, match="videos: want float"):
        head(media(), ["a"] * 4)


def smooth_or_jumpy(count: int, seed: int) -> list[dict[str, Any]]:
    """Of two videos of one picture the steady one moves better, the bright one looks better; text
    says nothing.
    """
    g, rows = torch.Generator().manual_seed(seed), []
    for n in range(count):
        picture = F.interpolate(torch.rand(1, 3, 4, 4, generator=g) * 0.5, (32, 32))[0]
        bright = torch.rand(2, generator=g) * 0.5
        jumpy = int(torch.randint(2, (1,), generator=g))
        videos = []
        for k in range(2):
            flicker = (torch.rand(6, 1, 1, 1, generator=g) - 0.5) * (0.4 if k == jumpy else 0.02)
            videos.append((picture + bright[k] + flicker - flicker.mean()).clamp(0, 1))
        rows.append(
            {
                "prompt": f"p{n % 8}",
                "chosen": videos[0],
                "rejected": videos[1],
                "label/visual_quality": 1 if bright[0] > bright[1] else -1,
                "label/motion_quality": -1 if jumpy == 0 else 1,
                "label/text_alignment": None,
            }
        )
    return rows


def test_it_learns_motion_apart_from_looks(base: Path, tmp_path: Path) -> None:
    """Through the path of several dimensions and ties; alignment, of which nobody knows, is left
    out and finite.
    """
    found = train_reward(smooth_or_jumpy(96, 0), str(base), tmp_path / "head", mode="frozen", loss="btt", lr=1e-2,
                         dimensions=DIMENSIONS, epochs=25)  # fmt: skip
    assert found["trained"]["motion_quality"]["accuracy"] > 0.85
    assert found["trained"]["visual_quality"]["accuracy"] > 0.75
    assert found["trained"]["text_alignment"]["accuracy"] is None
    head = VideoReward(str(tmp_path / "head"), dimension="motion_quality")
    rows = smooth_or_jumpy(32, 9)
    lead = [head(row["chosen"][None], ["p1"]) - head(row["rejected"][None], ["p1"]) for row in rows]
    right = [
        each.item() * row["label/motion_quality"] > 0 for each, row in zip(lead, rows, strict=True)
    ]
    assert sum(right) / len(right) > 0.85
    assert bool(
        VideoReward(str(tmp_path / "head"))(rows[0]["chosen"][None], ["p1"]).isfinite().all()
    )
