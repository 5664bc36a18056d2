"""What changes while a run learns."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.distributed.tensor import DTensor

from ..distributed import unshard

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
        """What every process has, in order."""
        parts: list[Any] = [one] * self.accelerator.num_processes
        if len(parts) > 1:
            torch.distributed.all_gather_object(parts, one)
        return parts

    def anywhere(self, flag: bool) -> bool:
        """Whether some process says so: what all must do together is decided by all."""
        return bool(self.gather(torch.tensor([flag])).any())

    def needs(self, call: bool) -> bool:
        """Whether to call the network: this process has use for it, or the others wait for all to
        do so.
        """
        return call or self.sharded

    def update(self) -> float:
        """Add up the processes' gradients, clip, take an optimizer step, follow with the average.

        The sum is taken here, once, and not in hooks of the network: processes may then differ in
        how often they call it, and in which of two networks. Without any gradient (everything was
        clipped away) nothing moves. Returns the norm before clipping.
        """
        parameters = self.model.parameters()
        if not self.anywhere(any(parameter.grad is not None for parameter in parameters)):
            return 0.0
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
