"""Texts are encoded once, in the order they are asked for, and not kept for ever."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from align_gen.reward_heads.backbones import text_cache
from align_gen.reward_heads.backbones.text_cache import TextCache


def test_only_new_texts_are_encoded_and_the_oldest_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Vectors are the texts' lengths. Three are kept of four: the first is encoded again when it
    comes back.
    """
    monkeypatch.setattr(text_cache, "LIMIT", 3)
    asked: list[str] = []

    def encode(part: Sequence[str]) -> Tensor:
        asked.extend(part)
        return torch.tensor([[float(len(text))] for text in part])

    cache = TextCache()
    assert cache(["a", "bb", "a"], encode).tolist() == [[1], [2], [1]]
    assert cache(["dddd", "bb", "ccc"], encode).tolist() == [[4], [2], [3]]
    assert asked == ["a", "bb", "ccc", "dddd"]
    assert cache(["dddd", "a"], encode).tolist() == [[4], [1]] and asked[4:] == ["a"]


def test_more_texts_at_once_than_are_kept_all_get_their_vector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_cache, "LIMIT", 2)
    found = TextCache()(
        [str(n) for n in range(5)], lambda part: torch.tensor([[float(text)] for text in part])
    )
    assert found.flatten().tolist() == [0, 1, 2, 3, 4]
