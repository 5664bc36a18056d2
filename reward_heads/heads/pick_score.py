"""PickScore: which of two pictures people would choose for a prompt.

Kirstain et al., "Pick-a-Pic", NeurIPS 2023, arXiv 2305.01569.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backbones import weights
from ..backbones.dtypes import DtypeName, dtype_name
from ..backbones.preprocess import normalise_as_clip, shortest_side
from ..backbones.transformers_model import DualEncoder, read_model, read_tokenizer
from ..base import RewardHead, check_images

# Raise when scores of the same picture change.
PREPROCESSING = "pick_score-1"


class PickScore(RewardHead):
    """Scores how much people would like a picture for its prompt, by PickScore.

    exp(logit scale) times the cosine of picture and prompt, by a CLIP ViT-H/14 that was trained on
    people's choices.

    With the published weights the scale is close to 100 and scores lie around 20: papers print the
    score itself, or the bare cosine (0.21), or the score over 26. The probability that a picture is
    chosen from several is the softmax of their scores.

    Preprocessing, differentiable throughout: the shorter side is resized to the model's size,
    bicubic with antialias, and the centre is cropped. On pictures in 255ths it is within 1.5 levels
    of what transformers' processor gives, which rounds to bytes on the way. Texts are cut at the
    model's length (77 tokens).

    Args:
        path: a folder of transformers (config.json, model.safetensors or pytorch_model.bin,
            tokenizer), or a hub name.
        tokenizer: folder or hub name of the tokenizer; None: it lies with the weights.
        dtype: precision of the weights: float32 (fp32), bfloat16 (bf16) or float16 (fp16).
    """

    differentiable = True
    reads_prompt = True
    parallel = True

    def __init__(
        self,
        path: str = "yuvalkirstain/PickScore_v1",
        tokenizer: str | None = None,
        dtype: DtypeName = "float32",
    ):
        key = ("pick_score", tokenizer, dtype_name(dtype))
        self.encoder = weights.shared(key, path, lambda: _load(path, tokenizer or path, dtype))
        scale = self.encoder.model.logit_scale.exp().item()
        self.range = (-scale, scale)

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_images(media)
        encoder = self.encoder
        size = encoder.model.config.vision_config.image_size
        pixels = normalise_as_clip(shortest_side(media.to(encoder.device), size))
        cosine = (encoder.embed_images(pixels) * encoder.embed_texts(prompts)).sum(-1)
        return (encoder.model.logit_scale.exp() * cosine).float()

    def provenance(self) -> dict[str, Any]:
        return {
            "weights_sha256": self.encoder.sha256,
            "preprocessing": PREPROCESSING,
            "dtype": self.encoder.dtype,
            "options": {},
        }

    def to(self, device: torch.device | str) -> "PickScore":
        self.encoder.to(device)
        return self


def _load(path: str, tokenizer_path: str, dtype: str) -> DualEncoder:
    import transformers

    model = read_model(path, transformers.CLIPModel, dtype)
    text = model.config.text_config
    tokenizer = read_tokenizer(tokenizer_path, text.vocab_size)
    options = {
        "padding": True,
        "truncation": True,
        "max_length": text.max_position_embeddings,
        "return_tensors": "pt",
    }
    return DualEncoder(model, lambda texts: tokenizer(texts, **options))
