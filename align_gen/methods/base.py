"""The contract of a method: its options, what they ask of a run, and one training step.

A method is a module ``methods/NAME.py`` with

- ``Options``, a ``MethodOptions``: its numbers, and what they ask of the rest of the recipe;
- ``step(state, batch, rewards, options, sampling) -> metrics``: one round of learning.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from ..reward_heads import RewardSet
from ..strict import Strict
from .batches import Kind, Sampling
from .state import TrainState


@dataclass(frozen=True)
class Cost:
    """Cost of one step: the floor of its algorithm.

    Attributes:
        forwards: rows through the denoiser, forward; a sample takes several of them with guidance.
        backwards: of them, rows that are differentiated.
        images: pictures or videos that are learned from.
    """

    forwards: int
    backwards: int
    images: int


class MethodOptions(Strict, ABC):
    """Options that every method has, and what the rest of the package asks of them."""

    name: str
    images_per_prompt: int = Field(ge=1)
    prompts_per_step: int = Field(ge=1)

    @property
    def images(self) -> int:
        """Pictures or videos of one step, over all processes."""
        return self.images_per_prompt * self.prompts_per_step

    def batch_kind(self) -> Kind:
        """Content of a step's batch: "prompts" to draw for, or given "pairs" or "media".

        ``prompts_per_step`` units make a step; a unit of "media" is ``images_per_prompt`` pictures
        of one prompt.
        """
        return "prompts"

    def require(self, sampling: Sampling) -> None:
        """Check options against each other and against ``sampling``.

        Raises:
            ValueError: these settings cannot learn; names the key and what is accepted.
        """

    def required_keys(self) -> dict[str, str]:
        """Keys of the recipe that may not be null, and the option that asks for each."""
        return {}

    @abstractmethod
    def cost(self, sampling: Sampling, rows_per_sample: int) -> Cost:
        """Cost of one step, at most; ``rows_per_sample`` of the denoiser with guidance."""


# One round of learning: updates the model in the state, and returns metrics.
Step = Callable[[TrainState, Any, RewardSet, Any, Sampling], dict[str, float]]
