"""Texts that a model has encoded, remembered while they are likely to come again."""

from collections.abc import Callable, Sequence
from threading import Lock

import torch
from torch import Tensor

# Texts that are encoded in one call.
AT_ONCE = 256
# Texts; a gallery of as many prompts as pictures must not fill the memory.
LIMIT = 16_384


class TextCache:
    """Vectors of the latest texts, each encoded once; several threads may ask."""

    def __init__(self) -> None:
        # Oldest first, so that the oldest are dropped.
        self._known: dict[str, Tensor] = {}
        self._lock = Lock()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], encode: Callable[[list[str]], Tensor]) -> Tensor:
        """(B, D), in the texts' order; ``encode`` gives (b, D) of those that are new."""
        with self._lock:
            new = sorted(set(texts) - self._known.keys())
            for start in range(0, len(new), AT_ONCE):
                part = new[start : start + AT_ONCE]
                self._known.update(zip(part, encode(part), strict=True))
            vectors = torch.stack([self._known[text] for text in texts])
            for text in list(self._known)[: max(len(self._known) - LIMIT, 0)]:
                del self._known[text]
        return vectors

    def to(self, device: torch.device | str) -> None:
        """Move the vectors to where the model is."""
        with self._lock:
            self._known = {text: vector.to(device) for text, vector in self._known.items()}
