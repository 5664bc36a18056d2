"""Several heads as one reward."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .base import RewardHead
from .combine import Combination

# Pictures, or frames of videos, that a head of pictures sees at once: bounds memory only.
AT_ONCE = 64


class MissingContext(ValueError):
    """A head needs context that the caller does not have; names the head and the key."""


class RewardFailure(RuntimeError):
    """A head gave no usable score; names the head.

    Attributes:
        broken_media: what it was given holds NaN or infinity, so that no head is to blame.
    """

    broken_media: bool = False


@dataclass(frozen=True)
class Scores:
    """Scores of B samples.

    Attributes:
        combined: the heads' scores combined, (B,) float32; by default their weighted sum.
        heads: each head's scores, (B,) float32.
        uncertainty: standard deviation of ``combined``, (B,), where a head estimates one or the
            heads are an ensemble; else None.
    """

    combined: Tensor
    heads: dict[str, Tensor]
    uncertainty: Tensor | None = None


@dataclass
class RewardSet:
    """Named heads and how they combine; one object serves training, galleries and guidance.

    Attributes:
        weights: of the heads in the sum; 1 where none is given.
        offload: names of heads that wait on the CPU and come to the device, one after the other,
            to score.
        combination: another rule than the weighted sum; None: the weighted sum.
        device: that heads score on.
    """

    heads: dict[str, RewardHead]
    weights: dict[str, float] = field(default_factory=dict)
    offload: frozenset[str] = frozenset()
    combination: Combination | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.weights = {name: float(self.weights.get(name, 1.0)) for name in self.heads}

    def __repr__(self) -> str:
        return f"RewardSet({', '.join(self.heads)})"

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Scores:
        """Score B samples.

        Raises:
            MissingContext: a head needs a key that ``context`` lacks.
            RewardFailure: a head returned a wrong shape or a non-finite score.
        """
        self.require(context)
        scored = {name: self._score(name, media, prompts, context) for name in self.heads}
        heads = {name: columns[0] for name, columns in scored.items()}
        spreads = {name: columns[1] for name, columns in scored.items() if len(columns) > 1}
        combined = self.rule(heads, prompts)
        return Scores(combined, heads, self.rule.spread(heads, spreads, prompts))

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
        # A new pool each time: OpenMP keeps a team of threads as long as the thread that computed
        # lives, and teams disturb each other: all later work was 1.5 times slower on two cores.
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward")
        try:
            return pool.submit(torch.no_grad()(self), media, prompts, **context)
        finally:
            pool.shutdown(wait=False)

    def require(self, context: Mapping[str, Any] | Sequence[str]) -> None:
        """Fail early when a head needs more than ``context`` offers."""
        wanted = [(name, key) for name, head in self.heads.items() for key in head.required_context]
        for name, key in wanted:
            if key not in context:
                offered = sorted(context) or "nothing"
                raise MissingContext(
                    f"reward {name!r} needs {key!r}, which is not given (given: {offered})"
                )

    @property
    def prompt_readers(self) -> list[str]:
        """Names of the heads whose scores depend on the prompt."""
        return [name for name, head in self.heads.items() if head.reads_prompt]

    def provenance(self) -> dict[str, dict[str, Any]]:
        return {name: head.provenance() for name, head in self.heads.items()}

    def to(self, device: torch.device | str) -> "RewardSet":
        """Score on a device from now on; offloaded heads stay on the CPU between their turns."""
        self.device = torch.device(device)
        for name, head in self.heads.items():
            head.to("cpu" if name in self.offload else device)
        return self

    def _score(
        self, name: str, media: Tensor, prompts: Sequence[str], context: Mapping[str, Any]
    ) -> tuple[Tensor, ...]:
        """A head's scores (B,), and their deviations (B,) where it has them, checked."""
        head = self.heads[name]
        given = {key: context[key] for key in head.required_context}
        try:
            if name in self.offload:
                head.to(self.device)
            columns = _in_batches(head, media, prompts, given)
            # Some heads answer from the CPU whatever they are given; scores of a set must add up.
            columns = tuple(column.to(media.device, torch.float32) for column in columns)
        except Exception as error:
            raise _failure(
                f"reward {name!r} failed: {type(error).__name__}: {error}", media
            ) from error
        finally:
            if name in self.offload:
                head.to("cpu")
        for column in columns:
            _require_scores(name, column, media)
        return columns


def _failure(text: str, media: Tensor) -> RewardFailure:
    """The error of a head, and whether what it was given is to blame."""
    failure = RewardFailure(text)
    failure.broken_media = not bool(media.isfinite().all())
    return failure


def _require_scores(name: str, scores: Tensor, media: Tensor) -> None:
    """RewardFailure unless there is a finite score for each sample."""
    count = len(media)
    if scores.shape != (count,):
        raise _failure(
            f"reward {name!r} returned shape {tuple(scores.shape)}, want ({count},)", media
        )
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise _failure(f"reward {name!r} returned {bad} non-finite of {count} scores", media)


def _in_batches(
    head: RewardHead, media: Tensor, prompts: Sequence[str], context: Mapping[str, Any]
) -> tuple[Tensor, ...]:
    """Scores (B,), and their deviations where the head has them.

    A head of pictures sees every frame of a video; the video's score is the mean over frames, and
    so is its deviation.
    """
    # Not cut where there is context: which of its tensors have a row a sample is not known.
    whole = len(media) <= AT_ONCE or bool(context)
    if head.media == "video" or (media.ndim == 4 and whole):
        return head.score_and_std(media, prompts, **context)

    frames = media.shape[1] if media.ndim == 5 else 1
    pictures = media.flatten(0, 1) if media.ndim == 5 else media
    repeated = [prompt for prompt in prompts for _ in range(frames)]
    batches = zip(pictures.split(AT_ONCE), batched(repeated, AT_ONCE), strict=True)
    parts = [head.score_and_std(part, texts, **context) for part, texts in batches]

    # Back from pictures or frames to samples: the mean over the frames of each.
    columns = []
    for column in zip(*parts, strict=True):
        joined = torch.cat([scores.to(media.device) for scores in column])
        columns.append(joined.unflatten(0, (-1, frames)).mean(1))
    return tuple(columns)


def batched(items: Sequence[str], size: int) -> list[Sequence[str]]:
    """Consecutive slices of at most ``size``."""
    return [items[start : start + size] for start in range(0, len(items), size)]
