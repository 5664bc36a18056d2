"""The reward head contract."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor

from .source import source_sha256

OURS = __name__.partition(".")[0]


class RewardHead(ABC):
    """Scores pictures: ``(media, prompts, **context) -> (B,)`` float32, higher is better.

    Attributes:
        differentiable: gradients flow from the score to the media.
        media: "image" takes (B, 3, H, W); "video" takes (B, F, 3, H, W). RGB, [0, 1].
        required_context: keys of the context that must be given ("t", "control", "source" …).
        range: the scores' bounds, where known.
        parallel: several threads may call it at once.
        reads_prompt: the score depends on the prompt, so that a picture without one has none.
        code_sha256: of a head that is code of the user's own, the hash of its source.
    """

    differentiable: bool = False
    media: Literal["image", "video"] = "image"
    required_context: tuple[str, ...] = ()
    range: tuple[float, float] = (float("-inf"), float("inf"))
    parallel: bool = False
    reads_prompt: bool = False
    code_sha256: str | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Let a class of the user's own tell its source in ``provenance``."""
        super().__init_subclass__(**options)
        if cls.__module__.partition(".")[0] != OURS:
            cls.provenance = _with_source(cls.provenance)  # type: ignore[assignment]

    @abstractmethod
    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        """One score a sample, (B,)."""

    def score_and_std(
        self, media: Tensor, prompts: Sequence[str], **context: Any
    ) -> tuple[Tensor, ...]:
        """Scores (B,), and their standard deviations (B,) where a head estimates them."""
        return (self(media, prompts, **context),)

    def provenance(self) -> dict[str, Any]:
        """What a score depends on besides the picture.

        Scores are comparable only where provenances are equal.
        """
        return {"weights_sha256": None, "preprocessing": "none", "dtype": "float32", "options": {}}

    def to(self, device: torch.device | str) -> "RewardHead":
        """Move weights, where there are any."""
        return self


def _with_source(
    provenance: Callable[[RewardHead], dict[str, Any]],
) -> Callable[[RewardHead], dict[str, Any]]:
    """Add the hash of a head's source to its provenance."""

    @wraps(provenance)
    def with_source(self: RewardHead) -> dict[str, Any]:
        if self.code_sha256 is None:
            # Once: the file may be edited while the head is in use. Past a frozen dataclass.
            vars(self)["code_sha256"] = source_sha256(type(self))
        return {**provenance(self), "code_sha256": self.code_sha256}

    return with_source


def label(reward: Any) -> str:
    """The name of a reward that was given none, equal in every process."""
    if isinstance(reward, str):
        return reward
    name = getattr(reward, "name", None)
    if isinstance(name, str):
        return name
    return getattr(reward, "__qualname__", type(reward).__name__)


def require_new_names(reward: Any, name: str) -> None:
    """Refuse a reward that declares its context by the former name: it would be called without."""
    if hasattr(reward, "needs"):
        raise ValueError(f"reward {name!r}: needs is now called required_context; rename it")


class CallableHead(RewardHead):
    """Any ``f(media, prompts) -> (B,)`` as a head; what it does not say of itself, it has not.

    Args:
        function: the callable; attributes as ``differentiable`` or ``reads_prompt`` are its own.
        name: of the reward; None: the function's.
        sha256: the hash of its file, where it was named by one; None: of the callable itself.
    """

    def __init__(
        self, function: Callable[..., Any], name: str | None = None, sha256: str | None = None
    ):
        self.function = function
        self.code_sha256 = source_sha256(function) if sha256 is None else sha256
        self.name = name or label(function)
        self.differentiable = bool(getattr(function, "differentiable", False))
        self.media = getattr(function, "media", "image")
        self.reads_prompt = bool(getattr(function, "reads_prompt", False))
        self.required_context = tuple(getattr(function, "required_context", ()))
        require_new_names(function, self.name)

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        return torch.as_tensor(self.function(media, prompts, **context), dtype=torch.float32)

    def provenance(self) -> dict[str, Any]:
        code = {"options": {"callable": self.name}, "code_sha256": self.code_sha256}
        return super().provenance() | code


def check_images(images: Tensor) -> None:
    """Reward input: float (B, 3, H, W), RGB, [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"images: want float (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )


def check_videos(videos: Tensor) -> None:
    """Reward input: float (B, F, 3, H, W), RGB, [0, 1]."""
    if videos.ndim != 5 or videos.shape[2] != 3 or not videos.is_floating_point():
        raise ValueError(
            f"videos: want float (B, F, 3, H, W), got {videos.dtype} {tuple(videos.shape)}"
        )
