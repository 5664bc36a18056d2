"""Rewards of a guide, opened as those of `score` are."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen.opening import open_guide
from align_gen.pipelines.guidance.best_of import BestOf
from align_gen.reward_heads import RewardHead, RewardSet, load, reward_set

MEDIA = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def brightness(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return media.mean((1, 2, 3))


class Several(RewardHead):
    """A head with an attribute that a reward set has too."""

    heads = ("one", "two")

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        return media.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (brightness, brightness(MEDIA, [])),
        (Several(), brightness(MEDIA, [])),
        ("mean_hue", load("mean_hue")(MEDIA, ["", ""])),
        ([brightness], brightness(MEDIA, [])),
        ({brightness: 2.0, "mean_hue": 0.0}, 2 * brightness(MEDIA, [])),
        ({"bright": {"name": brightness, "weight": -1.0}}, -brightness(MEDIA, [])),
    ],
    ids=["function", "head", "name", "list", "weights", "options"],
)
def test_a_guides_rewards_become_a_set(reward: Any, expected: Tensor) -> None:
    guide = BestOf(reward, 3)
    opened = open_guide(guide)
    assert isinstance(opened, BestOf) and opened.n == 3 and guide.reward is reward
    assert isinstance(opened.reward, RewardSet)
    torch.testing.assert_close(opened.reward(MEDIA, ["", ""]).combined, expected)
    assert open_guide(opened) is opened


def test_a_set_and_another_guide_stay_as_they_are() -> None:
    class Mine:
        def sample(self, *args: Any, **options: Any) -> Any: ...

    mine = Mine()
    guide = BestOf(reward_set([brightness]))
    assert open_guide(guide) is guide and open_guide(mine) is mine and open_guide(None) is None


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("shine", "no reward 'shine'"),
        (3, "rewards: want names"),
        ({"mean_hue": "x"}, "weight: want a num"),
    ],
)
def test_a_guide_of_no_reward_is_refused(reward: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        open_guide(BestOf(reward))


def test_a_reward_that_needs_more_than_pictures_and_prompts_is_refused() -> None:
    def near(media: Tensor, prompts: Sequence[str], control: Tensor) -> Tensor:
        return -(media - control).abs().mean((1, 2, 3))

    near.required_context = ("control",)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="needs 'control'"):
        open_guide(BestOf(near))
