"""Sharpness: variance of the Laplacian. No weights, differentiable.

Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..base import RewardHead, check_images

# Weights of red, green and blue, ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class Sharpness(RewardHead):
    """Scores how sharp a picture is; noise scores high too.

    Variance over the picture of the Laplacian of its luminance. In units of [0, 1]: times 255^2 it
    is what libraries print for bytes. A flat picture scores 0, a chessboard of single pixels 16,
    the most. Contrast c times as strong scores c^2 times as much; brightness does not matter.
    """

    differentiable = True
    parallel = True
    range = (0.0, 16.0)

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_images(media)
        if min(media.shape[-2:]) < 3:
            raise ValueError(
                f"sharpness: want pictures of at least 3 x 3, got {tuple(media.shape[-2:])}"
            )
        return laplacian_variance(media.float())

    def provenance(self) -> dict[str, Any]:
        return super().provenance() | {"preprocessing": "sharpness-1"}


def laplacian_variance(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B,); pixels on the edge have no Laplacian and do not count."""
    luminance = (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    laplacian = F.conv2d(luminance, images.new_tensor(LAPLACIAN)[None, None])
    return laplacian.var((1, 2, 3), correction=0)
