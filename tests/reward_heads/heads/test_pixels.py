"""The two heads without weights, against pictures whose score is arithmetic."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from align_gen.reward_heads import load


def plain(*rgb: float) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("hue", "rgb", "expected"),
    [
        (0, (1, 0, 0), 1.0),
        (120, (0, 1, 0), 1.0),
        (240, (0, 0, 1), 1.0),
        (180, (1, 0, 0), -1.0),
        (0, (0, 1, 0), -0.5),  # cos 120
        (60, (1, 1, 0), 1.0),  # yellow: x = 1/2, y = sqrt(3)/2
        (0, (0.5, 0, 0), 0.5),
        (77, (0.3, 0.3, 0.3), 0.0),  # grey has no hue
    ],
)
def test_mean_hue_is_the_component_on_the_colour_circle(
    hue: float, rgb: tuple[float, ...], expected: float
) -> None:
    """(r - (g+b)/2) cos h + sqrt(3)/2 (g - b) sin h."""
    assert load("mean_hue", hue=hue)(plain(*rgb), ["x"]).item() == pytest.approx(expected, abs=1e-6)


def test_mean_hue_stays_in_its_range_and_is_differentiable() -> None:
    head = load("mean_hue", hue=200.0)
    media = torch.rand(16, 3, 5, 7, requires_grad=True)
    scores = head(media, [""] * 16)
    assert scores.shape == (16,) and head.range == (-1.0, 1.0) and scores.abs().max() <= 1
    scores.sum().backward()
    assert head.differentiable and media.grad is not None
    h = math.radians(200.0)  # d/dr = cos h / pixels
    torch.testing.assert_close(media.grad[:, 0], torch.full((16, 5, 7), math.cos(h) / 35))


def test_jpeg_size_is_what_pillow_writes() -> None:
    """Kilobytes (1000) of Pillow's file at quality 95, negated; a plain picture scores above
    noise.
    """
    media = torch.stack(
        [
            torch.rand(3, 24, 16, generator=torch.Generator().manual_seed(0)),
            torch.full((3, 24, 16), 0.5),
        ]
    )
    scores = load("jpeg_size")(media, ["a", "b"])
    buffer = io.BytesIO()
    pixels = np.asarray((media[0] * 255).round().byte().permute(1, 2, 0))
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    assert scores[0].item() == pytest.approx(-len(buffer.getvalue()) / 1000)
    assert scores[1] > scores[0]
    torch.testing.assert_close(load("jpeg_size", goal="large")(media, ["a", "b"]), -scores)


@pytest.mark.parametrize("name", ["jpeg_size", "mean_hue"])
def test_one_picture_is_a_batch(name: str) -> None:
    scores = load(name)(torch.rand(1, 3, 8, 8), ["a"])
    assert scores.shape == (1,) and scores.dtype == torch.float32


@pytest.mark.parametrize("name", ["jpeg_size", "mean_hue"])
@pytest.mark.parametrize(
    "media",
    [
        torch.rand(3, 8, 8),
        torch.rand(2, 1, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.rand(1, 2, 3, 8, 8),
    ],
    ids=["no batch", "grey", "bytes", "video"],
)
def test_other_media_are_refused(name: str, media: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images: want float \(B, 3, H, W\)"):
        load(name)(media, ["a"] * len(media))


def test_options_are_part_of_the_provenance() -> None:
    assert load("mean_hue", hue=1).provenance() != load("mean_hue", hue=2).provenance()
    assert load("jpeg_size", quality=90).provenance() != load("jpeg_size").provenance()
    assert load("jpeg_size", goal="large").provenance() != load("jpeg_size").provenance()


def test_a_wrong_goal_is_named() -> None:
    with pytest.raises(ValueError, match=r"'jpeg_size': goal: want small or large .*, got 'tiny'"):
        load("jpeg_size", goal="tiny")
