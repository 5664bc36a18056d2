"""What changes while a run learns."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    from .pipelines import Model


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

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Gradients are exchanged between processes on the last micro-batch only."""
        with ExitStack() as stack:
            if not last:
                for module in self.model.trainable.values():
                    stack.enter_context(self.accelerator.no_sync(module))
            yield

    def update(self) -> float:
        """Clip the gradient, take an optimizer step, follow with the average. Returns the norm before clipping.

        Without any gradient (everything was clipped away) nothing moves.
        """
        parameters = self.model.parameters()
        if all(parameter.grad is None for parameter in parameters):
            return 0.0
        norm = self.accelerator.clip_grad_norm_(parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(parameters)
        return float(norm) if norm is not None else 0.0

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
