"""Several heads as one: their mean, their disagreement, and mistakes."""

import pytest
import torch
from torch import Tensor

from align_gen.reward_heads import load
from align_gen.reward_heads.wrappers.ensemble import Ensemble


def pictures(count: int = 3, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def left(media: Tensor, prompts: object) -> Tensor:
    """Brightness of the left half: mirrored, that of the right."""
    return media[..., : media.shape[-1] // 2].mean((1, 2, 3))


def bright(media: Tensor, prompts: object) -> Tensor:
    return media.mean((1, 2, 3))


def test_members_disagree_by_their_deviation() -> None:
    """Opinions b and 3 b / 2 (scaled by 2): mean 1.25 b, deviation .25 b."""
    head = Ensemble([load(bright), load(lambda m, p: 3 * bright(m, p))], scale=[1.0, 2.0])
    media = pictures()
    b = bright(media, ())
    score, spread = head.score_and_std(media, [""] * 3)
    torch.testing.assert_close(score, 1.25 * b)
    torch.testing.assert_close(spread, 0.25 * b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": ["mean_hue"]}, "two or more heads"),
        ({"members": "mean_hue"}, "two or more heads"),
        ({"members": ["mean_hue", "jpeg_size"], "scale": [1.0]}, "scale: want 2 numbers above 0"),
        ({"members": ["mean_hue", {"hue": 3}]}, "no reward ''"),
    ],
)
def test_a_wrong_ensemble_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("ensemble", **options)
