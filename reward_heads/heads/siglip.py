"""SigLIP and SigLIP 2: does the sentence describe the picture?

Zhai et al., ICCV 2023, arXiv 2303.15343, algorithm 1; Tschannen et al. 2025, arXiv 2502.14786.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..backbones import weights
from ..backbones.dtypes import DtypeName, dtype_name
from ..backbones.preprocess import normalise, resize
from ..backbones.transformers_model import DualEncoder, pretrained, read_model, read_tokenizer
from ..base import RewardHead, check_images

# Raise when scores of the same picture change.
PREPROCESSING = "siglip-1"
# Pillow's numbers, which a processor's file holds.
MODES = {2: "bilinear", 3: "bicubic"}


class SiglipHead(RewardHead):
    """Scores how well a picture fits its prompt, by any SigLIP of fixed resolution.

    The score is the logit, exp(scale) cos + bias, or its sigmoid. The sigmoid is the probability
    that picture and prompt belong together. Any published SigLIP or SigLIP 2 of fixed resolution
    works; those of variable resolution (NaFlex) do not.

    Preprocessing, differentiable throughout: the picture is squashed to the model's size with
    antialias, bilinear or bicubic as its own processor has it (SigLIP 2 bilinear), then normalised.
    On pictures in 255ths it is within 1.5 levels of that processor, which rounds to bytes on the
    way. Prompts are in lower case, padded on the right to the model's length (64 tokens) and not
    masked: so the models were trained, and the last place is where they sum up.

    Args:
        path: a folder of transformers (config.json, model.safetensors, preprocessor and tokenizer),
            or a hub name.
        output: the score: the logit, or its probability in (0, 1), flat where the model is sure.
        dtype: precision of the weights: float32 (fp32), bfloat16 (bf16) or float16 (fp16).
    """

    differentiable = True
    reads_prompt = True
    parallel = True

    def __init__(
        self,
        path: str = "google/siglip2-base-patch16-224",
        output: Literal["logit", "probability"] = "logit",
        dtype: DtypeName = "float32",
    ):
        if output not in ("logit", "probability"):
            raise ValueError(f"siglip output: want logit or probability, got {output!r}")
        self.output = output
        key = ("siglip", dtype_name(dtype))
        self.encoder = weights.shared(key, path, lambda: Siglip.load(path, dtype))
        scale = self.encoder.model.logit_scale.exp().item()
        bias = self.encoder.model.logit_bias.item()
        self.range = (0.0, 1.0) if output == "probability" else (bias - scale, bias + scale)

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_images(media)
        encoder = self.encoder
        image = encoder.embed_images(encoder.preprocess(media.to(encoder.device)))
        # The models were trained on lower case.
        text = encoder.embed_texts([prompt.lower() for prompt in prompts])
        cosine = (image * text).sum(-1)
        logit = encoder.model.logit_scale.exp() * cosine + encoder.model.logit_bias
        return (logit if self.output == "logit" else logit.sigmoid()).float()

    def provenance(self) -> dict[str, Any]:
        return {
            "weights_sha256": self.encoder.sha256,
            "preprocessing": f"{PREPROCESSING}-{self.encoder.mode}",
            "dtype": self.encoder.dtype,
            "options": {"output": self.output},
        }

    def to(self, device: torch.device | str) -> "SiglipHead":
        self.encoder.to(device)
        return self


class Siglip(DualEncoder):
    """A SigLIP with the preprocessing that its own processor states."""

    mode: str
    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def load(cls, path: str, dtype: str) -> "Siglip":
        import transformers

        model = read_model(path, transformers.SiglipModel, dtype)
        text = model.config.text_config
        tokenizer = read_tokenizer(path, text.vocab_size)
        options = {
            # Padded and not masked, as in training: the last token is where the model sums up.
            "padding": "max_length",
            "padding_side": "right",
            "truncation": True,
            "max_length": text.max_position_embeddings,
            "return_attention_mask": False,
            "return_tensors": "pt",
        }
        encoder = cls(model, lambda texts: tokenizer(texts, **options))
        processor = pretrained(transformers.AutoImageProcessor, path, "preprocessor")
        resample = int(processor.resample)
        # Another filter would give other scores without a word.
        if resample not in MODES:
            raise ValueError(f"path {path}: resample {processor.resample}: want one of {MODES}")
        encoder.mode = MODES[resample]
        encoder.mean = processor.image_mean
        encoder.std = processor.image_std
        return encoder

    def preprocess(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> normalised (B, 3, size, size)."""
        size = self.model.config.vision_config.image_size
        return normalise(resize(images, size, size, self.mode), self.mean, self.std)
