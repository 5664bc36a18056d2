"""Frozen open_clip models, and the texts they have encoded; heads of the same weights share one."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import hub, weights
from .dtypes import dtype_name
from .text_cache import TextCache

# torch's names of precisions -> open_clip's
PRECISION = {"float32": "fp32", "bfloat16": "pure_bf16", "float16": "pure_fp16"}


class OpenClip:
    """An open_clip model in eval mode, with its tokenizer.

    ``size``, ``mean`` and ``std`` are those of the model's own preprocessing.
    """

    def __init__(self, model: Any, tokenizer: Any):
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        size = model.visual.image_size
        self.size: int = size[0] if isinstance(size, tuple | list) else size
        preprocess = model.visual.preprocess_cfg
        self.mean = torch.tensor(preprocess["mean"])
        self.std = torch.tensor(preprocess["std"])
        self._texts = TextCache()

    @classmethod
    def load(cls, path: str, pretrained: str | None = None, dtype: str = "float32") -> "OpenClip":
        """The one that is loaded already, or a new one.

        Args:
            path: an open_clip folder (with open_clip_config.json), "hf-hub:owner/model", or an
                architecture.
            pretrained: for an architecture: a tag of open_clip or a checkpoint file.

        Raises:
            ValueError: nothing of that name, weights of another shape, a pickle with code in it.
        """
        dtype = dtype_name(dtype)
        key = ("open_clip", path, dtype)
        return weights.shared(key, pretrained or path, lambda: cls._load(path, pretrained, dtype))

    @classmethod
    def _load(cls, path: str, pretrained: str | None, dtype: str) -> "OpenClip":
        import open_clip

        precision = PRECISION[dtype]
        name = _name_of(path, pretrained)
        try:
            with _silent_root():
                if pretrained is not None and weights.is_path(pretrained):
                    # Read by us, as a plain file of tensors and nothing else.
                    model = open_clip.create_model(name, precision=precision, load_weights=False)
                    weights.fill(model, weights.read(Path(pretrained).expanduser()), pretrained)
                else:
                    if repository := _repository_of(name, pretrained):
                        # Asked once, as the download itself would go on trying for half a minute.
                        hub.reach(repository)
                    model = open_clip.create_model(
                        name, pretrained=pretrained, precision=precision, require_pretrained=True
                    )
                return cls(model, open_clip.get_tokenizer(name))
        except ValueError:
            raise
        except RuntimeError as error:
            raise ValueError(f"path {path}: {' '.join(str(error).split())[:300]}") from error
        except Exception as error:
            if weights.is_path(path):  # the readers of damaged files raise errors of any kind
                said = " ".join(str(error).split())[:160]
                raise ValueError(f"path {path}: cannot be read ({said})") from error
            raise ValueError(hub.why_not(path, "model", error)) from error

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> str:
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @cached_property
    def sha256(self) -> str:
        return weights.sha256(self.model)

    def embed_images(self, images: Tensor) -> Tensor:
        """Pictures of the model's size -> unit vectors (B, D) float32; differentiable.

        Pictures are (B, 3, size, size) in [0, 1].
        """
        mean = self.mean.to(images).view(3, 1, 1)
        std = self.std.to(images).view(3, 1, 1)
        weight = next(self.model.parameters())
        x = ((images - mean) / std).to(weight.device, weight.dtype)
        return F.normalize(self.model.encode_image(x).float(), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Sentences -> unit vectors (B, D) float32; each distinct one is encoded once."""

        def encode(part: list[str]) -> Tensor:
            tokens = self.tokenizer(part).to(self.device)
            return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

        return self._texts(texts, encode).to(self.device)

    def to(self, device: torch.device | str) -> "OpenClip":
        self.model.to(device)
        self._texts.to(device)
        return self


@contextmanager
def _silent_root() -> Iterator[None]:
    """Inside, open_clip's log lines go nowhere.

    open_clip logs through the functions of ``logging`` itself, which put a handler on the root
    logger where there is none: from then on, lines of other loggers would be printed twice.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _repository_of(name: str, pretrained: str | None) -> str | None:
    """The hub repository from which open_clip would load; None where there is none."""
    import open_clip

    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
    # "owner/model/file", or "owner/model/" for the usual file
    target = open_clip.get_pretrained_cfg(name, pretrained).get("hf_hub", "") if pretrained else ""
    return target.rpartition("/")[0] or None


def _name_of(path: str, pretrained: str | None) -> str:
    """The name under which open_clip loads a path."""
    import open_clip

    if weights.is_path(path):
        folder = Path(path).expanduser()
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(
                f"path {path}: want an open_clip folder (open_clip_config.json is missing)"
            )
        return f"local-dir:{folder}"
    if path.startswith(("hf-hub:", "local-dir:")):
        return path
    if path not in open_clip.list_models():
        raise ValueError(
            f"path {path!r}: want a folder, hf-hub:owner/model, or an architecture of open_clip"
        )
    if pretrained is None:
        raise ValueError(
            f"path {path!r}: an architecture needs pretrained (a tag of open_clip or a file)"
        )
    return path
