"""Videos by a few frames: InstructVideo's numbers, laws of sampling; and what each trained
dimension may see.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from align_gen.reward_heads import load
from align_gen.reward_heads.backbones.head_folder import save_head
from align_gen.reward_heads.backbones.open_clip_model import OpenClip
from align_gen.reward_heads.heads.clip import ClipHead
from align_gen.reward_heads.heads.video_reward import VideoReward, VideoScorer
from align_gen.reward_training.train import train_reward
from tests.kits.clips import media, write_clip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "base", "vit")


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


@pytest.mark.slow
def test_it_learns_motion_apart_from_looks(base: Path, tmp_path: Path) -> None:
    """Through the path of several dimensions and ties; alignment, of which nobody knows, is left
    out and finite.
    """
    found = train_reward(
        smooth_or_jumpy(96, 0),
        str(base),
        tmp_path / "head",
        mode="frozen",
        loss="btt",
        lr=1e-2,
        dimensions=DIMENSIONS,
        epochs=25,
    )
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


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [*DIMENSIONS, None])
def test_a_dimension_says_whether_it_reads_the_prompt(base: Path, dimension: str | None) -> None:
    """Alignment does, and so does the sum; the qualities do not."""
    head = VideoReward(str(untrained(base)), dimension=dimension)
    answers = not torch.equal(head(moving(), ["a dog"]), head(moving(), ["two cats"]))
    assert head.reads_prompt == answers == (dimension in ("text_alignment", None))
