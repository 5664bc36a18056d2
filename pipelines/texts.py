"""Texts of a pipeline as tensors: each encoded once, by large encoders once on a machine."""

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .exports import quiet
from .prompt_cache import PromptCache, fingerprint
from .trainable import Trainable

Self = TypeVar("Self", bound="Texts")
# The tensors of one text, or of several, by name.
Rows = dict[str, Tensor]
TOKENIZER_LOG = "transformers.tokenization_utils_base"
# Parameters of text encoders from which the disk is faster than they are.
WORTH_CACHING = 50_000_000
# Texts that are encoded in one call.
AT_ONCE = 32
# Stands before a tensor's name for what guidance puts in its place.
NEGATIVE = "negative_"


class Texts(Trainable):
    """Encodes prompts and negative texts by a pipeline's own encoders, and remembers them.

    Attributes:
        default_negative: the negative text where none is given; None: zeros in the place of an
            encoded text.
        template: what a family puts before a prompt, and not before a negative text.
        prompt_cache: encoded texts on disk, for large encoders; None for small ones.
    """

    default_negative: str | None = ""
    template = ""

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self._texts: dict[str, Rows] = {}
        self._negatives: dict[str, Rows] = {}
        self._fingerprint: str | None = None
        self._warned = False
        self._freed = False
        # Small encoders are faster than a disk, so they get no cache there.
        encoders = self.text_encoders().values()
        weights = sum(p.numel() for encoder in encoders for p in encoder.parameters())
        self.prompt_cache = PromptCache() if weights >= WORTH_CACHING else None

    # -- what a family says

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> Rows:
        """Tensors of one row a text, of equal widths whatever the texts."""

    def encode_negatives(self, texts: Sequence[str]) -> Rows:
        """Tensors of negative texts, of the widths of ``encode_texts``.

        For a family that encodes negative texts in another way.
        """
        return self.encode_texts(texts)

    @property
    def text_limit(self) -> tuple[Any, int]:
        """(tokenizer, tokens) beyond which a prompt is cut by every encoder."""
        return self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length

    # -- what is remembered

    def text_encoders(self) -> dict[str, Any]:
        """The pipeline's text encoders, by component name."""
        parts = self.components()
        return {name: part for name, part in parts.items() if name.startswith("text_encoder")}

    def forget(self) -> None:
        """Clear the memory of encoded texts; files on disk stay."""
        self._texts.clear()
        self._negatives.clear()

    def to(self: Self, device: torch.device | str) -> Self:
        for known in (self._texts, self._negatives):
            known.update({text: _moved(rows, device) for text, rows in known.items()})
        super().to(device)
        return self

    def free_text_encoders(self, prompts: Sequence[str] = ()) -> None:
        """Encode prompts, then drop the text encoders.

        From then on, only texts that were encoded by now can be sampled.
        """
        self._encode(prompts)
        if self.default_negative is not None:
            self._encode([self.default_negative], negative=True)
        if self.prompt_cache is not None:
            # The key is computed from the encoders, which go now.
            self._key()
        self.pipeline.register_modules(**dict.fromkeys(self.text_encoders()))
        self._freed = True

    # -- encoding

    def text_tensors(self, prompts: Sequence[str], negatives: Sequence[str | None]) -> Rows:
        """Tensors of B prompts, and under ``negative_NAME`` those of their B negative texts.

        A negative text of None stands for zeros.
        """
        texts = self._encode(prompts)
        against = self._encode([text for text in negatives if text is not None], negative=True)
        names = next(iter(texts.values()), {})
        tensors = {name: torch.stack([texts[text][name] for text in prompts]) for name in names}
        for name in names:
            zeros = torch.zeros_like(tensors[name][0])
            rows = [zeros if text is None else against[text][name] for text in negatives]
            tensors[NEGATIVE + name] = torch.stack(rows)
        return tensors

    @torch.no_grad()
    def _encode(self, texts: Sequence[str], negative: bool = False) -> dict[str, Rows]:
        """The tensors of every text known by now, with those of ``texts`` among them."""
        known = self._texts
        encode = self.encode_texts
        role = ""
        if negative and type(self).encode_negatives is not Texts.encode_negatives:
            known = self._negatives
            encode = self.encode_negatives
            role = NEGATIVE

        new = self._not_on_disk(sorted(set(texts) - known.keys()), known, role)
        if new and self._freed:
            raise ValueError(
                f"prompt {new[0]!r}: the text encoders were freed before it was encoded"
            )
        self._warn_of_long(new)
        # The library would warn of every long prompt; ours warns once.
        with quiet(type(self.pipeline).__module__, TOKENIZER_LOG):
            for start in range(0, len(new), AT_ONCE):
                part = new[start : start + AT_ONCE]
                encoded = encode(part)
                rows = {text: _row(encoded, i) for i, text in enumerate(part)}
                known |= rows
                if self.prompt_cache is not None:
                    self.prompt_cache.put(role + self._key(), rows)
        return known

    def _not_on_disk(self, texts: list[str], known: dict[str, Rows], role: str) -> list[str]:
        """The texts that must be encoded; those that the disk has go into ``known``."""
        if self.prompt_cache is None:
            return texts
        for text in texts:
            rows = self.prompt_cache.get(role + self._key(), text)
            if rows is not None:
                known[text] = _moved(rows, self.device)
        return [text for text in texts if text not in known]

    def _warn_of_long(self, texts: Sequence[str]) -> None:
        """Warn, once in the model's life, of a prompt that the encoders will cut."""
        tokenizer, limit = self.text_limit
        # two tokens: the start and the end
        long = [text for text in texts if len(tokenizer.tokenize(text)) + 2 > limit]
        if long and not self._warned:
            self._warned = True
            warnings.warn(
                f"prompts beyond {limit} tokens are cut, the first: {long[0]!r}", stacklevel=5
            )

    def _key(self) -> str:
        """The name under which the disk keeps what these encoders make of a text."""
        if self._fingerprint is None:
            parts = self.pipeline.components.items()
            tokenizers = [part for name, part in parts if name.startswith("tokenizer") and part]
            words = [
                (sorted(part.get_vocab().items()), part.model_max_length) for part in tokenizers
            ]
            settings = (type(self).__name__, self.text_limit[1], words, self.template)
            self._fingerprint = fingerprint(self.text_encoders(), *settings)
        return self._fingerprint


def _row(encoded: Mapping[str, Tensor], index: int) -> Rows:
    return {name: value[index] for name, value in encoded.items()}


def _moved(tensors: Mapping[str, Tensor], device: torch.device | str) -> Rows:
    return {name: value.to(device) for name, value in tensors.items()}
