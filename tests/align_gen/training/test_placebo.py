"""The placebo keeps everything of a reward but its tie to the picture."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from align_gen.reward_heads import reward_set
from align_gen.training.placebo import Shuffled

PROMPTS = ["a"] * 8 + ["b"] * 8


def brightness(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return media.mean((1, 2, 3)) + 10.0 * torch.tensor([prompt == "b" for prompt in prompts])


def shuffled(seed: int = 0) -> Shuffled:
    real = reward_set({"bright": {"name": brightness, "weight": 2.0}})
    return Shuffled(real.heads, real.weights, seed=seed)


def pictures(seed: int = 0) -> Tensor:
    return torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_each_prompt_keeps_its_own_rewards() -> None:
    """The same multiset within every prompt, in another order, with the heads' own scores left
    alone.
    """
    real = reward_set({"bright": {"name": brightness, "weight": 2.0}})(pictures(), PROMPTS)
    dealt = shuffled()(pictures(), PROMPTS)
    for rows in (slice(0, 8), slice(8, 16)):
        assert Counter(dealt.combined[rows].tolist()) == Counter(real.combined[rows].tolist())
    assert not torch.equal(dealt.combined, real.combined)
    torch.testing.assert_close(dealt.heads["bright"], real.heads["bright"])


def test_interleaved_prompts_are_kept_apart() -> None:
    prompts = ["a", "b"] * 8
    dealt = shuffled()(pictures(), prompts).combined
    assert bool((dealt[::2] < 5).all()) and bool((dealt[1::2] > 5).all())


def test_dealt_alike_again_and_otherwise_with_another_seed_or_other_pictures() -> None:
    """A function of (seed, scores): a resumed run deals as the uninterrupted one."""
    first = shuffled()(pictures(), PROMPTS).combined
    assert torch.equal(first, shuffled()(pictures(), PROMPTS).combined)
    again = shuffled()
    again(pictures(7), PROMPTS)  # no history either
    assert torch.equal(first, again(pictures(), PROMPTS).combined)
    assert not torch.equal(first, shuffled(seed=1)(pictures(), PROMPTS).combined)


def test_in_the_background_too() -> None:
    """Methods call start(); it must not go past the shuffle."""
    dealt = shuffled().start(pictures(), PROMPTS).result()
    assert torch.equal(dealt.combined, shuffled()(pictures(), PROMPTS).combined)


def test_rewards_no_longer_follow_the_picture() -> None:
    """Correlation with the real score within a prompt: 1 before, 0 after; the mean of 50 has std
    1/sqrt(50 * 7).
    """
    total = 0.0
    for seed in range(50):
        media = pictures(seed)
        real, dealt = brightness(media, PROMPTS)[:8], shuffled()(media, PROMPTS).combined[:8]
        total += torch.corrcoef(torch.stack([real, dealt]))[0, 1].item()
    assert abs(total / 50) < 3.5 / (50 * 7) ** 0.5
