"""A head of pictures, trained on preferences over the features of a frozen open_clip model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.open_clip_model import OpenClip
from ..backbones.preference_head import PreferenceHead
from ..backbones.preprocess import fit_square
from ..backbones.scorer import Scorer, blocks_of
from ..base import check_images


class ImageScorer(Scorer):
    """Blocks: image, text, image times text; every dimension reads all three."""

    media = "image"
    text = (1, 2)

    @classmethod
    def reads(cls, dimension: str) -> list[int]:
        return [0, 1, 2]

    @classmethod
    def features(
        cls, clip: OpenClip, media: Tensor, prompts: Sequence[str], mode: str = "squash"
    ) -> Tensor:
        check_images(media)
        image = clip.embed_images(fit_square(media.to(clip.device, torch.float32), clip.size, mode))
        return blocks_of(image, text=clip.embed_texts(prompts))


class TrainedHead(PreferenceHead):
    """Scores pictures by a head that ``align-gen train-reward`` wrote in its frozen mode."""

    media = "image"
    scorer_type = ImageScorer
