"""Colourfulness: arithmetic, laws, and finite differences in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from align_gen.reward_heads.heads.colour import Colourfulness, colourfulness


def noise(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 6, 7, generator=torch.Generator().manual_seed(0))


def plain(*rgb: float) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 4, 5)


def score(images: Tensor) -> Tensor:
    return Colourfulness()(images, [""] * len(images))


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        (
            (1, 0, 0),
            0.3 * math.hypot(255, 127.5),
        ),  # r - g = 255, (r + g) / 2 - b = 127.5, no spread
        ((0, 0, 1), 0.3 * 255),
        ((1, 1, 0), 0.3 * 255),
        ((0.2, 0.4, 0.6), 0.3 * math.hypot(51, 76.5)),
    ],
)
def test_a_plain_picture_by_hand(rgb: tuple[float, ...], expected: float) -> None:
    assert score(plain(*rgb)).item() == pytest.approx(expected, rel=1e-6)


def test_half_red_half_cyan_by_hand() -> None:
    """(255, 127.5) and its opposite: mean 0, spread hypot(255, 127.5)."""
    images = torch.cat([plain(1, 0, 0), plain(0, 1, 1)], -1)
    assert score(images).item() == pytest.approx(math.hypot(255, 127.5), rel=1e-6)


def test_the_range_is_reached_and_not_left() -> None:
    """A share p of red in cyan has mean |2p - 1| R and spread 2 sqrt(p (1 - p)) R, R = hypot(255,
    127.5).

    sqrt(1 - m^2) + 0.3 m is largest at m = 0.3 / sqrt(1.09) = 0.2873, p = 0.6437: 64 of 100 columns
    come within 0.02.
    """
    images = torch.zeros(1, 3, 1, 100)
    images[:, 0, :, :64] = 1
    images[:, 1:, :, 64:] = 1
    top = Colourfulness.range[1]
    assert top == pytest.approx(297.65, abs=0.01) and top - 0.02 < score(images).item() <= top
    corners = (torch.rand(200, 3, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    assert score(corners).max() <= top and score(corners).min() >= 0


def test_equals_the_formula_in_numpy() -> None:
    """sqrt(var rg + var yb) + 0.3 sqrt(mean rg^2 + mean yb^2) of bytes."""
    for image, found in zip(noise(), score(noise()), strict=True):
        red, green, blue = 255 * image.double().numpy()
        rg, yb = red - green, (red + green) / 2 - blue
        expected = np.sqrt(rg.var() + yb.var()) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
        assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 4, 4), plain(0.5, 0.5, 0.5), noise()[:, :1].expand(-1, 3, -1, -1)]
)
def test_grey_scores_zero_with_a_finite_gradient(images: Tensor) -> None:
    """At a plain or grey picture both roots are at 0, where a square root's own slope is
    infinite.
    """
    images = images.clone().requires_grad_()
    scores = score(images)
    torch.testing.assert_close(scores, torch.zeros(len(images)), rtol=0, atol=1e-5)
    scores.sum().backward()
    assert images.grad is not None and bool(images.grad.isfinite().all())


def test_a_plain_colour_has_a_finite_gradient() -> None:
    """No spread: only the mean's part has a slope, and it points away from grey."""
    images = plain(0.8, 0.3, 0.3).clone().requires_grad_()
    score(images).sum().backward()
    assert (
        images.grad is not None
        and bool(images.grad.isfinite().all())
        and images.grad[0, 0].min() > 0
    )


def test_places_and_brightness_do_not_matter_and_saturation_is_linear() -> None:
    """Pixels may be shuffled; the same amount on all channels cancels; c times further from grey is
    c times as much.
    """
    images, scores = noise(), score(noise())
    shuffled = images.flatten(2)[..., torch.randperm(42)].view_as(images)
    for same in (shuffled, images.flip(-1), images.transpose(-1, -2), images + 0.2):
        torch.testing.assert_close(score(same), scores, rtol=1e-5, atol=0)
    grey = images.mean(1, keepdim=True)
    torch.testing.assert_close(score(grey + 0.4 * (images - grey)), 0.4 * scores, rtol=1e-4, atol=0)


def test_gradients_equal_finite_differences() -> None:
    images = noise(2)[..., :3, :3].double().requires_grad_()
    assert torch.autograd.gradcheck(colourfulness, (images,)) and Colourfulness.differentiable


def test_one_picture_is_a_batch() -> None:
    alone = torch.cat([score(image[None]) for image in noise()])
    assert score(noise(1)).shape == (1,) and score(noise(1)).dtype == torch.float32
    torch.testing.assert_close(alone, score(noise()))


def test_other_media_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images: want float \(B, 3, H, W\)"):
        score(torch.zeros(3, 8, 8))
