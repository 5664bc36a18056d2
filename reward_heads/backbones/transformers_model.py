"""Frozen encoders of transformers, and how they are loaded safely."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import hub, weights
from .dtypes import dtype_of
from .preprocess import at_least_float32
from .text_cache import TextCache


class DualEncoder:
    """A frozen CLIP or SigLIP of transformers, and the texts it has encoded.

    Heads of the same weights share one.
    """

    def __init__(self, model: Any, tokenize: Callable[[list[str]], Mapping[str, Tensor]]):
        self.model, self.tokenize = model, tokenize
        self._texts = TextCache()

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def dtype(self) -> str:
        return str(self.model.logit_scale.dtype).removeprefix("torch.")

    @cached_property
    def sha256(self) -> str:
        return weights.sha256(self.model)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, size, size) -> unit vectors (B, D); differentiable.

        Vectors are float32 at least.
        """
        pixels = pixels.to(self.model.logit_scale.dtype)
        return _unit(self.model.get_image_features(pixel_values=pixels))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Sentences -> unit vectors (B, D), at least float32; each distinct one is encoded once."""

        def encode(part: list[str]) -> Tensor:
            inputs = {name: value.to(self.device) for name, value in self.tokenize(part).items()}
            return _unit(self.model.get_text_features(**inputs))

        return self._texts(texts, encode).to(self.device)

    def to(self, device: torch.device | str) -> "DualEncoder":
        self.model.to(device)
        self._texts.to(device)
        return self


def _unit(features: Any) -> Tensor:
    """Vectors of norm 1, whatever the version of transformers wraps them in."""
    vectors = getattr(features, "pooler_output", features)
    return F.normalize(at_least_float32(vectors), dim=-1)


# --- files of transformers ------------------------------------------------------------------------


def read_model(path: str, kind: Any, dtype: str) -> Any:
    """A frozen model of a class of transformers, in eval mode; every weight comes from the file.

    Raises:
        ValueError: nothing there, another architecture, weights missing or of another shape, a
            pickle of more than tensors.
    """
    import transformers

    torch_dtype = dtype_of(dtype)
    config = pretrained(transformers.AutoConfig, path, "config.json")
    wanted = kind.config_class.model_type
    if config.model_type != wanted:
        raise ValueError(f"path {path}: want a {wanted} model, it is {config.model_type}")
    model = kind(config)
    state = weights.read(_weights_of(path))
    # Older versions of transformers saved these buffers too.
    state = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    weights.fill(model, state, f"path {path}")
    return model.to(torch_dtype).requires_grad_(False).eval()


def read_tokenizer(path: str, vocabulary: int) -> Any:
    """The tokenizer of a folder or hub repository, for weights that know ``vocabulary`` tokens."""
    import transformers

    tokenizer = pretrained(transformers.AutoTokenizer, path, "tokenizer")
    # Without the tokenizer's files transformers makes up an empty one.
    if not vocabulary // 2 < len(tokenizer) <= vocabulary:
        raise ValueError(
            f"{path}: its tokenizer has {len(tokenizer)} tokens, the weights know {vocabulary}; "
            "are its files there?"
        )
    return tokenizer


def pretrained(kind: Any, path: str, what: str) -> Any:
    """Call ``kind.from_pretrained(path)``; a ValueError says in one line why it failed."""
    local = weights.is_path(path)
    # transformers would ask the hub for a folder that is not there
    if local and not Path(path).expanduser().is_dir():
        raise ValueError(f"path {path}: no such folder; want one of transformers, or a hub name")
    if not local:
        hub.reach(path)
    try:
        return kind.from_pretrained(str(Path(path).expanduser()) if local else path)
    except Exception as error:  # each kind of file fails in ways of its own
        if local:
            said = " ".join(str(error).split())[:120]
            raise ValueError(
                f"path {path}: want a folder of transformers with its {what} ({said})"
            ) from error
        raise ValueError(hub.why_not(path, what, error)) from error


def _weights_of(path: str) -> Path:
    try:
        return weights.find(path, "model.safetensors")
    except ValueError:
        with suppress(ValueError):
            return weights.find(path, "pytorch_model.bin")
        raise
