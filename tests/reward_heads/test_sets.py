"""Reward sets: the weighted sum, what heads may ask for, and which head is to blame."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen.reward_heads import MissingContext, RewardFailure, RewardHead, RewardSet, reward_set
from align_gen.reward_heads.base import CallableHead

MEDIA = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).view(2, 3, 2, 2) / 24
PROMPTS = ["a", "bcd"]


def brightness(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return media.mean((1, 2, 3))


def length(media: Tensor, prompts: Sequence[str]) -> list[int]:
    return [len(prompt) for prompt in prompts]


def test_the_weighted_sum_and_every_part() -> None:
    """Means are (0+...+11)/12/24 = 5.5/24 and 17.5/24; lengths 1 and 3; combined = 2 brightness -
    .5 length.
    """
    rewards = reward_set(
        {"bright": {"name": brightness, "weight": 2}, "long": {"name": length, "weight": -0.5}}
    )
    scores = rewards(MEDIA, PROMPTS)
    torch.testing.assert_close(scores.heads["bright"], torch.tensor([5.5 / 24, 17.5 / 24]))
    torch.testing.assert_close(scores.heads["long"], torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(
        scores.combined, torch.tensor([2 * 5.5 / 24 - 0.5, 2 * 17.5 / 24 - 1.5])
    )
    assert scores.combined.dtype == torch.float32 and scores.uncertainty is None


def test_a_head_of_pictures_sees_every_frame_of_a_video() -> None:
    """Two videos of three frames of one grey each: 0, .1, .2 and .3, .4, .5, whose means are .1 and
    .4; each frame has the video's prompt. A head of videos gets them whole.
    """
    video = (torch.arange(6.0) / 10).view(2, 3, 1, 1, 1).expand(-1, -1, 3, 2, 2)

    class Moving(RewardHead):
        media = "video"

        def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
            return (media[:, -1] - media[:, 0]).mean((1, 2, 3))

    def first(media: Tensor, prompts: Sequence[str]) -> Tensor:
        return media[:, 0].mean((1, 2, 3))

    first.media = "video"  # type: ignore[attr-defined]
    heads = {"bright": CallableHead(brightness), "long": CallableHead(length), "moves": Moving()}
    scores = RewardSet({**heads, "first": CallableHead(first)})(video, PROMPTS)
    torch.testing.assert_close(scores.heads["first"], torch.tensor([0.0, 0.3]))
    torch.testing.assert_close(scores.heads["bright"], torch.tensor([0.1, 0.4]))
    torch.testing.assert_close(scores.heads["long"], torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(scores.heads["moves"], torch.tensor([0.2, 0.2]))


def test_many_pictures_are_judged_some_at_a_time() -> None:
    """150 pictures of one grey each, 64, 64 and 22; with a context, which only the head can cut,
    all at once.
    """
    grey, sizes = torch.arange(150.0) / 150, []

    def counted(media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        sizes.append((len(media), len(prompts)))
        return brightness(media, prompts)

    rewards = RewardSet({"bright": CallableHead(counted)})
    scores = rewards(grey.view(-1, 1, 1, 1).expand(-1, 3, 2, 2), [""] * 150)
    torch.testing.assert_close(scores.combined, grey)
    assert sizes == [(64, 64), (64, 64), (22, 22)]
    rewards.heads["bright"].required_context = ("t",)
    rewards(grey.view(-1, 1, 1, 1).expand(-1, 3, 2, 2), [""] * 150, t=torch.zeros(150))
    assert sizes[3:] == [(150, 150)]


def test_weights_default_to_one() -> None:
    assert reward_set([brightness, length]).weights == {"brightness": 1.0, "length": 1.0}
    assert reward_set({brightness: 0.25}).weights == {"brightness": 0.25}


def test_one_sample_is_a_batch() -> None:
    scores = reward_set([brightness, length])(MEDIA[:1], PROMPTS[:1])
    assert scores.combined.shape == scores.heads["length"].shape == (1,)


def test_double_scores_become_single() -> None:
    scores = reward_set([lambda media, prompts: torch.ones(2, dtype=torch.float64)])(MEDIA, PROMPTS)
    assert scores.combined.dtype == torch.float32


def test_gradients_flow_through_a_set() -> None:
    """d(2 mean)/d pixel = 2 / 12."""
    media = MEDIA.clone().requires_grad_()
    reward_set({"bright": {"name": brightness, "weight": 2}})(
        media, PROMPTS
    ).combined.sum().backward()
    assert media.grad is not None
    torch.testing.assert_close(media.grad, torch.full_like(MEDIA, 2 / 12))


@pytest.mark.parametrize(
    "value", [torch.ones(2, 1), torch.ones(3), torch.tensor(1.0), [1.0]], ids=str
)
def test_a_wrong_shape_names_the_head(value: Any) -> None:
    rewards = reward_set(
        {"fine": {"name": brightness}, "odd": {"name": lambda media, prompts: value}}
    )
    with pytest.raises(RewardFailure, match=r"reward 'odd' returned shape .*want \(2,\)"):
        rewards(MEDIA, PROMPTS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_names_the_head(bad: float) -> None:
    rewards = reward_set(
        {"fine": {"name": brightness}, "odd": {"name": lambda media, prompts: [bad, 1.0]}}
    )
    with pytest.raises(RewardFailure, match="reward 'odd' returned 1 non-finite of 2"):
        rewards(MEDIA, PROMPTS)


@pytest.mark.parametrize("value", [None, [None, 1.0]], ids=str)
def test_a_missing_score_names_the_head(value: Any) -> None:
    rewards = reward_set(
        {"fine": {"name": brightness}, "odd": {"name": lambda media, prompts: value}}
    )
    with pytest.raises(RewardFailure, match="reward 'odd'"):
        rewards(MEDIA, PROMPTS)


class LikeTheMap(RewardHead):
    required_context = ("control",)

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        return -(media - context["control"]).abs().mean((1, 2, 3))


def test_missing_context_names_head_and_key() -> None:
    rewards = RewardSet({"map": LikeTheMap()})
    with pytest.raises(
        MissingContext, match=r"reward 'map' needs 'control', which is not given \(given: nothing\)"
    ):
        rewards(MEDIA, PROMPTS)
    with pytest.raises(MissingContext, match=r"\(given: \['source'\]\)"):
        rewards.start(MEDIA, PROMPTS, source=MEDIA)  # at once, not in the background
    rewards.require(("control",))


def test_context_goes_to_the_heads_that_need_it() -> None:
    """A function of (media, prompts) works beside a head that needs more."""
    rewards = RewardSet({"map": LikeTheMap(), "bright": CallableHead(brightness)})
    scores = rewards(MEDIA, PROMPTS, control=MEDIA + 0.5)
    torch.testing.assert_close(scores.heads["map"], torch.tensor([-0.5, -0.5]))
    torch.testing.assert_close(scores.heads["bright"], brightness(MEDIA, PROMPTS))


def test_a_function_declares_its_needs() -> None:
    def near(media: Tensor, prompts: Sequence[str], control: Tensor) -> Tensor:
        return -(media - control).abs().mean((1, 2, 3))

    near.required_context = ("control",)  # type: ignore[attr-defined]
    rewards = reward_set([near])
    with pytest.raises(MissingContext, match="control"):
        rewards(MEDIA, PROMPTS)
    torch.testing.assert_close(rewards(MEDIA, PROMPTS, control=MEDIA).combined, torch.zeros(2))


def test_scoring_in_the_background_overlaps() -> None:
    """The caller is free while the head waits for it: with a call that blocks, this would never
    end.
    """
    freed = threading.Event()

    def patient(media: Tensor, prompts: Sequence[str]) -> Tensor:
        assert freed.wait(timeout=600)
        return brightness(media, prompts)

    rewards = reward_set([patient])
    pending = rewards.start(MEDIA, PROMPTS)
    assert not pending.done()
    freed.set()
    torch.testing.assert_close(
        pending.result(timeout=600).combined, reward_set([brightness])(MEDIA, PROMPTS).combined
    )


def test_scoring_in_the_background_keeps_no_graph() -> None:
    """Gradient mode belongs to a thread: without care a network's graph would live through the
    whole step.
    """
    weight = torch.ones(3, requires_grad=True)
    scores = reward_set({"learnt": {"name": lambda media, prompts: media.mean((2, 3)) @ weight}})
    assert scores(torch.ones(2, 3, 2, 2), ["a", "b"]).combined.requires_grad
    assert not scores.start(torch.ones(2, 3, 2, 2), ["a", "b"]).result().combined.requires_grad


def test_a_failure_in_the_background_arrives_with_the_result() -> None:
    pending = reward_set({"odd": {"name": lambda media, prompts: [float("nan")] * 2}}).start(
        MEDIA, PROMPTS
    )
    with pytest.raises(RewardFailure, match="odd"):
        pending.result(timeout=600)


def test_provenance_is_by_head() -> None:
    found = reward_set({"hue": {"name": "mean_hue", "hue": 30.0}, "jpeg_size": 1.0}).provenance()
    assert found.keys() == {"hue", "jpeg_size"}
    assert found["hue"]["options"] == {"hue": 30.0} and found["hue"]["weights_sha256"] is None


def test_sets_do_not_change_what_they_are_made_of() -> None:
    spec = {"hue": {"name": "mean_hue", "hue": 30.0, "weight": 2.0}}
    reward_set(spec)
    assert spec == {"hue": {"name": "mean_hue", "hue": 30.0, "weight": 2.0}}
    rewards = reward_set(spec)
    assert reward_set(rewards) is rewards


def test_a_set_prints_the_names_of_its_heads() -> None:
    assert repr(reward_set(["mean_hue", "sharpness"])) == "RewardSet(mean_hue, sharpness)"
