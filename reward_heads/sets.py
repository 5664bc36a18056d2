"""Several heads as one reward."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .base import RewardHead
from .combine import Combination

AT_ONCE = 64  # pictures, or frames of videos, that a head of pictures sees, however many a step has


class MissingContext(ValueError):
    """A head needs context that the caller does not have; names the head and the key."""


class RewardFailure(RuntimeError):
    """A head gave no usable score; names the head."""


@dataclass(frozen=True)
class Scores:
    """Scores of B samples.

    Attributes:
        combined: what the set's combination makes of the heads, (B,) float32; their weighted sum
            unless told otherwise.
        heads: each head's own scores, (B,) float32.
        uncertainty: a deviation of ``combined``, (B,), where a head estimates one or heads are an
            ensemble; else None.
    """

    combined: Tensor
    heads: dict[str, Tensor]
    uncertainty: Tensor | None = None


@dataclass
class RewardSet:
    """Named heads and how they combine. The same object serves training, galleries and guidance.

    ``offload``: names of heads that wait on the CPU and come to the device, one after the other, to
    score.
    """

    heads: dict[str, RewardHead]
    weights: dict[str, float] = field(default_factory=dict)
    offload: frozenset[str] = frozenset()
    combination: Combination | None = None  # None: the weighted sum
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # that they score on

    def __post_init__(self) -> None:
        self.weights = {name: float(self.weights.get(name, 1.0)) for name in self.heads}

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Scores:
        """Score B samples.

        Raises:
            MissingContext: a head needs a key that ``context`` lacks.
            RewardFailure: a head returned a wrong shape or a non-finite score.
        """
        self.require(context)
        spreads: dict[str, Tensor] = {}
        heads = {name: self._score(name, media, prompts, context, spreads) for name in self.heads}
        return Scores(self.rule(heads, prompts), heads, self.rule.spread(heads, spreads, prompts))

    def with_combination(self, combination: Combination | None) -> "RewardSet":
        """Return the same heads under another rule; this set stays as it is."""
        return replace(self, combination=combination)

    @property
    def rule(self) -> Combination:
        """How the heads combine."""
        return self.combination or Combination(self.weights)

    @property
    def parallel(self) -> bool:
        """Whether several threads may score at once."""
        return not self.offload and all(head.parallel for head in self.heads.values())

    def start(self, media: Tensor, prompts: Sequence[str], **context: Any) -> "Future[Scores]":
        """Score in the background, without gradients: a slow or remote head overlaps other work."""
        self.require(context)
        # A pool of its own each time: OpenMP keeps a team of threads for as long as the thread that
        # computed lives, and the teams then disturb each other: everything after was 1.5 times
        # slower on two cores.
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward")
        try:
            return pool.submit(torch.no_grad()(self), media, prompts, **context)
        finally:
            pool.shutdown(wait=False)

    def require(self, context: Mapping[str, Any] | Sequence[str]) -> None:
        """Fail early when a head needs more than ``context`` offers."""
        for name, head in self.heads.items():
            for key in head.required_context:
                if key not in context:
                    offered = sorted(context) or "nothing"
                    raise MissingContext(
                        f"reward {name!r} needs {key!r}, which is not given (given: {offered})"
                    )

    def provenance(self) -> dict[str, dict[str, Any]]:
        return {name: head.provenance() for name, head in self.heads.items()}

    def to(self, device: torch.device | str) -> "RewardSet":
        self.device = torch.device(device)
        for name, head in self.heads.items():
            head.to("cpu" if name in self.offload else device)
        return self

    def _score(
        self,
        name: str,
        media: Tensor,
        prompts: Sequence[str],
        context: Mapping[str, Any],
        spreads: dict[str, Tensor],
    ) -> Tensor:
        """A head's scores (B,); its spread, where it has one, goes into ``spreads``."""
        head = self.heads[name]
        try:
            if name in self.offload:
                head.to(self.device)
            # Some heads answer from the CPU whatever they are given; scores of one set must add up.
            told = {key: context[key] for key in head.required_context}
            found = [
                each.to(media.device, torch.float32) for each in _judge(head, media, prompts, told)
            ]
        except Exception as error:
            raise RewardFailure(
                f"reward {name!r} failed: {type(error).__name__}: {error}"
            ) from error
        finally:
            if name in self.offload:
                head.to("cpu")
        for score in found:
            if score.shape != (len(media),):
                raise RewardFailure(
                    f"reward {name!r} returned shape {tuple(score.shape)}, want ({len(media)},)"
                )
            if not bool(score.isfinite().all()):
                bad = int((~score.isfinite()).sum())
                raise RewardFailure(
                    f"reward {name!r} returned {bad} non-finite of {len(media)} scores"
                )
        if len(found) > 1:
            spreads[name] = found[1]
        return found[0]


def _judge(
    head: RewardHead, media: Tensor, prompts: Sequence[str], context: Mapping[str, Any]
) -> tuple[Tensor, ...]:
    """Scores (B,), and their spread where the head has one.

    A head of pictures sees every frame of a video, and the video's score is their mean; so is its
    spread.
    """
    whole = len(media) <= AT_ONCE or bool(
        context
    )  # not cut: which of a context's tensors have rows is not known
    if head.media == "video" or (media.ndim == 4 and whole):
        return head.judge(media, prompts, **context)
    frames = media.shape[1] if media.ndim == 5 else 1
    pictures = media.flatten(0, 1) if media.ndim == 5 else media
    told = [prompt for prompt in prompts for _ in range(frames)]
    seen = zip(pictures.split(AT_ONCE), batched(told, AT_ONCE), strict=True)
    parts = [head.judge(part, texts, **context) for part, texts in seen]
    columns = (
        torch.cat([each.to(media.device) for each in column]) for column in zip(*parts, strict=True)
    )
    return tuple(column.unflatten(0, (-1, frames)).mean(1) for column in columns)


def batched(items: Sequence[str], size: int) -> list[Sequence[str]]:
    """Consecutive slices of at most ``size``."""
    return [items[start : start + size] for start in range(0, len(items), size)]
