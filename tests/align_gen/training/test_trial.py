"""Rewards are tried before anything is drawn, and as if they had not been."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen import Recipe, finetune
from align_gen.errors import UserError
from align_gen.reward_heads import reward_set
from align_gen.training.trial import generators_restored


def scalar(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return media.mean()


def not_finite(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.full((len(media),), torch.nan)


def broken(media: Tensor, prompts: Sequence[str]) -> Tensor:
    raise KeyError("no such column")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (scalar, r"reward 'scalar' returned shape \(\), want \(1,\)"),
        (not_finite, "reward 'not_finite' returned 1 non-finite of 1 scores"),
        (broken, "reward 'broken' failed: KeyError: 'no such column'"),
    ],
    ids=["shape", "NaN", "exception"],
)
def test_a_broken_reward_is_told_before_anything_is_written(
    recipe: Recipe, tmp_path: Path, reward: Callable[..., Any], said: str
) -> None:
    with pytest.raises(UserError, match=f"tried on one random picture: {said}"):
        finetune(recipe.replace(rewards={reward: 1.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reward_that_draws_at_random_goes_on_as_if_it_had_not_been_asked() -> None:
    """Frames of segments come from the head's own generator, one draw a call."""
    video = torch.rand(1, 8, 3, 4, 4)
    first, second = (
        reward_set({"segments": {"head": "mean_hue", "segments": 2, "seed": 3}}) for _ in range(2)
    )
    with generators_restored(first):
        first(video, [""])
    draws = [(first(video, [""]).combined, second(video, [""]).combined) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in draws)
    assert len({a.item() for a, _ in draws}) > 1  # the draws differ, so the order of them shows
