"""ImageReward: a BLIP that reads the prompt while it looks at the picture.

Trained on people's rankings.

Xu et al., NeurIPS 2023, arXiv 2304.05977.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import weights
from ..backbones.dtypes import DtypeName, dtype_name, dtype_of
from ..backbones.linear_layers import linear_layers
from ..backbones.preprocess import at_least_float32, normalise_as_clip, shortest_side
from ..base import RewardHead, check_images

# Raise when scores of the same picture change.
PREPROCESSING = "image_reward-1"
FILE = "ImageReward.pt"
# Of the published model over its training set.
REWARD_MEAN = 0.16717362830052426
REWARD_STD = 1.0333394966054072
# Of a prompt, with its two ends.
TOKENS = 35
# Of every attention head of BLIP and BERT.
HEAD_WIDTH = 64
# Names in BLIP's picture encoder -> in transformers'.
VISION_NAMES = (
    (r"^patch_embed\.proj", "embeddings.patch_embedding"),
    (r"^cls_token", "embeddings.class_embedding"),
    (r"^pos_embed", "embeddings.position_embedding"),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.qkv", ".self_attn.qkv"),
    (r"\.attn\.proj", ".self_attn.projection"),
    (r"\.norm([12])\.", r".layer_norm\1."),
)


class ImageReward(RewardHead):
    """Scores how much people would like a picture for its prompt, by ImageReward.

    The score is standardised and unbounded. Five linear layers read what BLIP's text encoder makes
    of the prompt's first token while it attends to the picture. About mean 0 and standard deviation
    1 on the pictures of its training.

    Preprocessing, differentiable throughout: the shorter side is resized to the model's size (224),
    bicubic with antialias, the centre is cropped, then CLIP's mean and std. Prompts are cut and
    padded to 35 tokens. The text encoder looks at the picture in every layer, so that nothing of a
    prompt can be encoded once for several pictures.

    The architecture is read from the shapes of the weights. Names and arithmetic are proven with
    random weights, against the formula written out and against the authors' own code; the published
    weights have not been run.

    Args:
        path: the published "ImageReward.pt", a folder with it, or a hub name.
        tokenizer: BERT's uncased tokenizer: a folder with vocab.txt, or a hub name.
        dtype: precision of BLIP's weights: float32 (fp32), bfloat16 (bf16) or float16 (fp16); the
            last layers are always float32.
    """

    differentiable = True
    reads_prompt = True

    def __init__(
        self,
        path: str = "zai-org/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
        dtype: DtypeName = "float32",
    ):
        key = ("image_reward", tokenizer, dtype_name(dtype))
        self.model: Reader = weights.shared(key, path, lambda: _load(path, tokenizer, dtype))

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_images(media)
        pixels = shortest_side(media.to(self.model.device), self.model.size, round)
        raw = self.model(normalise_as_clip(pixels), prompts)
        return ((raw - REWARD_MEAN) / REWARD_STD).float()

    def provenance(self) -> dict[str, Any]:
        return {
            "weights_sha256": self.model.sha256,
            "preprocessing": PREPROCESSING,
            "dtype": str(next(self.model.vision.parameters()).dtype).removeprefix("torch."),
            "options": {},
        }

    def to(self, device: torch.device | str) -> "ImageReward":
        self.model.to(device)
        return self


class Reader(nn.Module):
    """BLIP's two encoders and the layers behind them, frozen, with the tokenizer."""

    def __init__(self, vision: Any, text: Any, layers: nn.Module, tokenizer: Any):
        super().__init__()
        self.vision = vision
        self.text = text
        self.layers = layers
        self.tokenizer = tokenizer
        self.size: int = vision.config.image_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @cached_property
    def sha256(self) -> str:
        return weights.sha256(self)

    def forward(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Normalised pixels (B, 3, size, size) and B prompts -> raw rewards (B,)."""
        options = {
            "padding": "max_length",
            "truncation": True,
            "max_length": TOKENS,
            "return_tensors": "pt",
        }
        tokens = self.tokenizer(list(prompts), **options).to(self.device)
        pixels = pixels.to(next(self.vision.parameters()).dtype)
        picture = self.vision(pixel_values=pixels).last_hidden_state
        text = self.text(
            tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=picture
        )
        first = at_least_float32(text.last_hidden_state[:, 0])
        return self.layers(first)[:, 0]


def _load(path: str, tokenizer_path: str, dtype: str) -> Reader:
    import transformers

    torch_dtype = dtype_of(dtype)
    tokenizer = transformers.BertTokenizer(str(weights.find(tokenizer_path, "vocab.txt")))
    # BLIP's two, for which the weights have rows.
    tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
    file = weights.find(path, FILE)
    model = build(weights.read(file), file, tokenizer)
    for part in (model.vision, model.text):
        part.to(torch_dtype)
    return model.requires_grad_(False).eval()


def build(state: Mapping[str, Tensor], file: Path, tokenizer: Any) -> Reader:
    """The published state as a model.

    What BLIP was pretrained with besides (projections, position ids) is left out.

    Raises:
        ValueError: a weight is missing or of another shape than the rest, or the tokenizer is not
            the one.
    """
    try:
        vision = _vision(part(state, "blip.visual_encoder."))
        text = _text(part(state, "blip.text_encoder."))
    except KeyError as error:
        raise ValueError(
            f"{file}: {error.args[0]} is missing; want the weights of ImageReward"
        ) from error
    if len(tokenizer) != text.config.vocab_size:
        want = text.config.vocab_size - 2
        raise ValueError(
            f"tokenizer: has {len(tokenizer) - 2} tokens, the weights of {file} know {want}"
        )
    layers = linear_layers(text.config.hidden_size)
    picture = part(state, "blip.visual_encoder.")
    names = {rename(name): value for name, value in picture.items()}
    weights.fill(vision, names, f"{file}: picture encoder")
    weights.fill(text, part(state, "blip.text_encoder."), f"{file}: text encoder")
    weights.fill(layers, part(state, "mlp."), f"{file}: mlp")
    return Reader(vision, text, layers, tokenizer)


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights below a prefix, without it; buffers of position numbers are no weights."""
    names = [name for name in state if name.startswith(prefix)]
    weighty = [name for name in names if not name.endswith("position_ids")]
    return {name.removeprefix(prefix): state[name] for name in weighty}


def rename(name: str) -> str:
    """A weight of BLIP's picture encoder, as transformers calls it."""
    for old, new in VISION_NAMES:
        name = re.sub(old, new, name)
    return name


def _vision(state: Mapping[str, Tensor]) -> Any:
    """An empty picture encoder of the shapes of its weights; its LayerNorms have BLIP's epsilon."""
    from transformers import BlipVisionConfig, BlipVisionModel

    width = state["patch_embed.proj.weight"].shape[0]
    patch = state["patch_embed.proj.weight"].shape[-1]
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=sum(name.endswith("norm1.weight") for name in state),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=patch * math.isqrt(state["pos_embed"].shape[1] - 1),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    return BlipVisionModel(config)


def _text(state: Mapping[str, Tensor]) -> Any:
    """An empty text encoder of the shapes of its weights.

    As a "decoder", it attends to the picture.
    """
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    words = state["embeddings.word_embeddings.weight"]
    positions = state["embeddings.position_embeddings.weight"]
    config = BlipTextConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=sum(name.endswith("intermediate.dense.weight") for name in state),
        num_attention_heads=max(1, words.shape[1] // HEAD_WIDTH),
        max_position_embeddings=positions.shape[0],
        layer_norm_eps=1e-12,
        is_decoder=True,
        # The defaults are those of a full vocabulary.
        bos_token_id=None,
        eos_token_id=None,
        sep_token_id=None,
    )
    return BlipTextModel(config, add_pooling_layer=False)
