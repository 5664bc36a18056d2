"""Sharpness: arithmetic, laws, and finite differences in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from align_gen.reward_heads.heads.sharpness import Sharpness, laplacian_variance


def noise(count: int = 3, height: int = 12, width: int = 15) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def score(images: Tensor) -> Tensor:
    return Sharpness()(images, [""] * len(images))


def test_one_white_pixel_by_hand() -> None:
    """On 5 x 5 black with a white centre the nine Laplacians are -4, four 1 and four 0: variance
    (16 + 4) / 9 - 0.
    """
    images = torch.zeros(1, 3, 5, 5)
    images[..., 2, 2] = 1
    assert score(images).item() == pytest.approx(20 / 9)


def test_a_chessboard_is_the_sharpest() -> None:
    """Every pixel differs by 1 from its four neighbours: Laplacians of 4 and -4, variance 16, the
    range's end.
    """
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    images = board.float().expand(1, 3, 8, 8)
    assert score(images).item() == pytest.approx(16) and Sharpness.range == (0.0, 16.0)


@pytest.mark.parametrize(("channel", "share"), [(0, 0.299), (1, 0.587), (2, 0.114)])
def test_channels_count_as_luminance(channel: int, share: float) -> None:
    """One channel alone scores its luma weight squared."""
    images = torch.zeros_like(noise())
    images[:, channel] = noise()[:, channel]
    grey = noise()[:, channel : channel + 1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(score(images), share**2 * score(grey))


def test_flat_pictures_and_ramps_are_not_sharp() -> None:
    """The Laplacian of a linear function is 0, the edge does not count, and the gradient is
    finite.
    """
    ramp = (torch.linspace(0, 0.5, 9)[:, None] + torch.linspace(0, 0.5, 7)).expand(1, 3, 9, 7)
    images = torch.cat([torch.full((1, 3, 9, 7), 0.4), ramp]).requires_grad_()
    scores = score(images)
    torch.testing.assert_close(scores, torch.zeros(2), rtol=0, atol=1e-12)
    scores.sum().backward()
    assert images.grad is not None and bool(images.grad.isfinite().all())


def test_blur_lowers_sharpness() -> None:
    """The more the less, for every picture."""
    scores = [score(noise())]
    for width in (3, 5):
        kernel = torch.full((3, 1, width, width), 1 / width**2)
        scores.append(score(F.conv2d(noise(), kernel, groups=3)))
    assert bool((torch.stack(scores).diff(dim=0) < 0).all())


def test_brightness_mirror_and_turn_change_nothing_and_contrast_counts_squared() -> None:
    images, scores = noise(), score(noise())
    for same in (
        images + 0.3,
        1 - images,
        images.flip(-1),
        images.flip(-2),
        images.transpose(-1, -2),
    ):
        torch.testing.assert_close(score(same), scores)
    torch.testing.assert_close(score(images * 0.5), scores * 0.25)


def test_gradients_equal_finite_differences() -> None:
    images = noise(2, 5, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(laplacian_variance, (images,)) and Sharpness.differentiable


def test_one_picture_is_a_batch() -> None:
    alone = torch.cat([score(image[None]) for image in noise()])
    assert score(noise(1)).shape == (1,) and score(noise(1)).dtype == torch.float32
    torch.testing.assert_close(alone, score(noise()))


def test_what_has_no_laplacian_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"sharpness: want pictures of at least 3 x 3, got \(2, 8\)"
    ):
        score(torch.zeros(1, 3, 2, 8))
    with pytest.raises(ValueError, match=r"images: want float \(B, 3, H, W\)"):
        score(torch.zeros(3, 8, 8))
