"""The state of a run that learns: optimizer, average and counters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.distributed.tensor import DTensor

from ..distributed import from_all, unshard
from ..pipelines.seeding import generator
from ..reward_heads import Scores

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    from ..pipelines import Model

T = TypeVar("T")


@dataclass
class TrainState:
    """Optimizer, average and counters of one run. ``step`` counts sampling rounds, not images."""

    model: "Model"
    optimizer: torch.optim.Optimizer
    accelerator: "Accelerator"
    max_grad_norm: float
    seed: int = 0
    step: int = 0
    ema: "EMAModel | None" = None
    micro_batch: int = 16
    denoiser_calls: int = 0  # rows through the trained network, forward; guidance doubles them
    memory: dict[str, Any] = field(
        default_factory=dict
    )  # what a method keeps from step to step; JSON
    sharded: bool = (
        False  # the network is cut over the processes, which must all call it equally often
    )

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The rows of every process, in order; each may have another number of them."""
        if self.accelerator.num_processes == 1:
            return values
        return torch.cat(self.gather_objects(values.cpu())).to(values.device)

    def gather_objects(self, one: T) -> list[T]:
        """The objects of every process, in order of rank."""
        return from_all(one, self.accelerator)

    def anywhere(self, flag: bool) -> bool:
        """Whether some process says so: what all must do together is decided by all."""
        return bool(self.gather(torch.tensor([flag])).any())

    def must_call(self, needed: bool) -> bool:
        """Whether this process must run the network.

        The process needs the result, or the network is sharded and all processes must call it
        together.
        """
        return needed or self.sharded

    def rows_to_learn(self, useful: torch.Tensor) -> torch.Tensor:
        """Rows that this process learns from, (b,) int64 on the CPU.

        Those that are ``useful`` (B,), or, of a sharded network, all of them.
        """
        return (
            torch.tensor([self.must_call(bool(each)) for each in useful.tolist()])
            .nonzero()
            .flatten()
        )

    def slices(self, count: int) -> list[slice]:
        """``count`` rows in micro-batches, in order."""
        return slices(count, self.micro_batch)

    def generators(self, purpose: str, names: Sequence[int | str]) -> list[torch.Generator]:
        """A generator for each name: a function of the run's seed, the purpose, the step and it."""
        return [generator(self.seed, purpose, self.step, name) for name in names]

    def update(self) -> float:
        """Add up the processes' gradients, clip, take an optimizer step, follow with the average.

        The sum is taken here, once, and not in hooks of the network: processes may then differ in
        how often they call it, and in which of two networks. Without any gradient (everything was
        clipped away) nothing moves. Returns the norm before clipping.
        """
        parameters = self.model.parameters()
        if not self.anywhere(any(parameter.grad is not None for parameter in parameters)):
            return 0.0
        # A process whose samples were all clipped has no gradient, and still takes part.
        if self.accelerator.num_processes > 1:
            for parameter in parameters:
                parameter.grad = (
                    torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                )
                if not isinstance(parameter.grad, DTensor):  # those are summed already
                    torch.distributed.all_reduce(parameter.grad)
        norm = self.accelerator.clip_grad_norm_(parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(parameters)
        return float(unshard(norm)) if norm is not None else 0.0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model runs with the averaged weights."""
        if self.ema is None:
            yield
            return
        parameters = self.model.parameters()
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        try:
            yield
        finally:
            self.ema.restore(parameters)


def slices(total: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size`` that cover range(total)."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def reward_metrics(state: TrainState, scores: Scores, group: int) -> dict[str, float]:
    """Metrics of a step's rewards, over all processes.

    The mean of every head and of the combined reward, its standard deviation over all pictures,
    and the share of prompts whose ``group`` pictures all tie.
    """
    metrics = {
        f"reward/{name}": state.gather(values).mean().item()
        for name, values in scores.heads.items()
    }
    combined = state.gather(scores.combined)
    each = combined.view(-1, group)
    ties = each.amin(1) == each.amax(1)
    return metrics | {
        "reward/combined": combined.mean().item(),
        # of a single picture: 0, where torch would divide by 0
        "reward/std": combined.std(correction=min(1, len(combined) - 1)).item(),
        "zero_variance": ties.double().mean().item(),
    }
