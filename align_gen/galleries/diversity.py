"""Diversity: how different the pictures of one prompt are. Reward hacking loses it first."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .formats import UnreadablePicture
from .gallery import Gallery


@torch.no_grad()
def embeddings(gallery: Gallery, head: Any, batch_size: int = 64) -> dict[int, Tensor]:
    """Unit vectors (D,) of the gallery's pictures, by row, from a head that has ``embed_images``.

    Unreadable pictures are left out. A video is the mean of its frames' vectors, made a unit vector
    again.
    """
    vectors: dict[int, Tensor] = {}
    waiting: list[tuple[int, Tensor]] = []
    for index in range(len(gallery)):
        try:
            media = gallery.media(index)
        except UnreadablePicture:
            continue
        # A batch has one shape; rows stay in order.
        if waiting and (len(waiting) == batch_size or media.shape != waiting[0][1].shape):
            vectors |= _embed(waiting, head)
            waiting = []
        waiting.append((index, media))
    return vectors | _embed(waiting, head)


def diversity(rows: Sequence[Mapping[str, Any]], vectors: Mapping[int, Tensor]) -> float | None:
    """Mean distance (1 - cosine) of two pictures of one prompt; None without such pairs.

    Every prompt counts alike, however many pictures it has.
    """
    groups: dict[str, list[Tensor]] = {}
    for index, vector in vectors.items():
        groups.setdefault(rows[index].get("prompt", ""), []).append(vector)
    distances = []
    for group in (torch.stack(each) for each in groups.values() if len(each) > 1):
        # Each pair once: the triangle above the diagonal.
        pairs = torch.triu_indices(len(group), len(group), 1).unbind()
        distances.append((1 - group @ group.T)[pairs].mean())
    return torch.stack(distances).mean().item() if distances else None


def _embed(waiting: list[tuple[int, Tensor]], head: Any) -> dict[int, Tensor]:
    """Vectors of pictures (3,H,W) or videos (F,3,H,W), all of one shape."""
    if not waiting:
        return {}
    media = torch.stack([media for _, media in waiting])
    # The head sees pictures alone.
    frames = media.flatten(0, 1) if media.ndim == 5 else media
    vectors = head.embed_images(frames).float()
    if media.ndim == 5:
        vectors = torch.nn.functional.normalize(
            vectors.unflatten(0, media.shape[:2]).mean(1), dim=-1
        )
    return {index: vector.cpu() for (index, _), vector in zip(waiting, vectors, strict=True)}
