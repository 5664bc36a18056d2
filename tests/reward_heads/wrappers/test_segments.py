"""A head of pictures on a few weighted frames of a video: the formula, gradients, and mistakes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen.reward_heads import reward_set
from align_gen.reward_heads.base import CallableHead
from align_gen.reward_heads.wrappers.segments import Segments
from tests.kits.clips import media, write_clip


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
