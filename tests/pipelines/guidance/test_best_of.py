"""Best of n: an order statistic of what would have been drawn anyway."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen import pipelines
from align_gen.pipelines.guidance.base import require_guide
from align_gen.pipelines.guidance.best_of import BestOf

SETTINGS: dict[str, Any] = {
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "eta": 0.0,
    "batch_size": 2,
}


def brightness(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return media.mean((1, 2, 3))


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_one_candidate_is_no_guidance(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    condition = model.encode_prompts(["a", "b", "c"])
    plain = pipelines.sample(model, condition, generator=generators(3), **SETTINGS)
    guided = BestOf(brightness, n=1).sample(model, condition, generator=generators(3), **SETTINGS)
    assert torch.equal(plain, guided)


@pytest.mark.slow
def test_every_sample_is_its_own_best_candidate(tiny_model: Callable[..., Any]) -> None:
    """Candidates are consecutive draws of each generator; the brightest, sample by sample, is
    kept.
    """
    model = tiny_model()
    condition = model.encode_prompts(["a", "b", "c"])
    shared = generators(3)
    drawn = torch.stack(
        [pipelines.sample(model, condition, generator=shared, **SETTINGS) for _ in range(3)]
    )
    scores = torch.stack([brightness(media, condition.prompts) for media in drawn])
    best = drawn[scores.argmax(0), torch.arange(3)]
    guided = BestOf(brightness, n=3).sample(model, condition, generator=generators(3), **SETTINGS)
    assert torch.equal(guided, best)
    assert (
        len(set(scores.argmax(0).tolist())) > 1
    )  # else one candidate won everywhere, and rows were not looked at


def test_no_candidates_are_refused(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="at least 1"):
        BestOf(brightness, n=0).sample(
            model, model.encode_prompts(["a"]), generator=generators(1), **SETTINGS
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda media, prompts: media.mean((2, 3)), r"want a score a sample, \(2,\), got \(2, 3\)"),
        (lambda media, prompts: media.mean(), r"got \(\)"),
        (lambda media, prompts: [float("nan"), 1.0], "want finite scores, got .nan, 1.0"),
        ("clip", r"want a callable \(media, prompts\) -> \(B,\) or a reward set, got 'clip'"),
    ],
    ids=["a score a channel", "one score", "no number", "a name"],
)
def test_a_reward_that_gives_no_scores_is_refused(
    tiny_model: Callable[..., Any], reward: Any, said: str
) -> None:
    model = tiny_model()
    condition = model.encode_prompts(["a", "b"])
    with pytest.raises(ValueError, match=f"BestOf reward: .*{said}|BestOf reward: {said}"):
        BestOf(reward, n=2).sample(model, condition, generator=generators(2), **SETTINGS)


@pytest.mark.parametrize(
    ("guide", "got"), [(brightness, "a function"), ("best of 4", "'best of 4'"), (4, "4")]
)
def test_what_cannot_sample_is_no_guide(guide: Any, got: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^guide: want a guide such as guidance.BestOf\(reward, n\), got {got}$"
    ):
        require_guide(guide)
    require_guide(BestOf(brightness))
