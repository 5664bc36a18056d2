"""Attention kernels at the sizes that published models use."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pipelines.attention import KERNELS, attend, kernel_error
from .timing import seconds_of, spread

KERNEL_NAMES = ("sdpa", *KERNELS, "xformers")
SCORES_LIMIT = (
    2**31
)  # bytes of a score matrix beyond which "math", which makes it whole, is left out


@dataclass(frozen=True)
class Shape:
    """Attention of one layer: ``queries`` tokens look at ``keys``."""

    model: str
    heads: int
    head_size: int
    queries: int
    keys: int


# At default resolutions, one prompt: 64 x 64 latents; 128 x 128; 64 x 64 patches and text; 21 x 30
# x 52 patches.
SHAPES = (
    Shape("SD 1.5, 64 x 64", 8, 40, 4096, 4096),
    Shape("SD 1.5, 32 x 32", 8, 80, 1024, 1024),
    Shape("SD 1.5, 16 x 16", 8, 160, 256, 256),
    Shape("SD 1.5, text", 8, 40, 4096, 77),
    Shape("SDXL, 64 x 64", 10, 64, 4096, 4096),
    Shape("SDXL, 32 x 32", 20, 64, 1024, 1024),
    Shape("SDXL, text", 20, 64, 1024, 77),
    Shape("SD 3.5 Large", 38, 64, 4096 + 333, 4096 + 333),
    Shape("FLUX.1", 24, 128, 4096 + 512, 4096 + 512),
    Shape("Wan 2.1 14B", 40, 128, 32760, 32760),
    Shape("Wan 2.1 14B, text", 40, 128, 32760, 512),
)


def bench_attention(
    device: torch.device, dtype: torch.dtype, *, heads: int | None = None, repeats: int = 5
) -> Iterator[dict[str, Any]]:
    """Time every kernel that runs here on every shape, forward and with its backward pass.

    Yields rows ``{model, kernel, heads, seconds, iqr, forward_seconds, ratio, error, why_not}``:
    medians; ``ratio`` is that of the seconds to those of torch's own choice; ``error`` the largest
    difference from it, relative to the largest output. The kernels of a shape take turns, so that
    what slows the machine slows all.

    Args:
        heads: of every shape, in place of the model's own number; a CPU has time for one.
    """
    for shape in SHAPES:
        count = heads or shape.heads
        reasons = {name: _why_not(name, shape, count, dtype, device) for name in KERNEL_NAMES}
        runs = {
            name: _Timed(name, shape, count, dtype, device)
            for name, reason in reasons.items()
            if reason is None
        }
        for _ in range(repeats):
            for run in runs.values():
                run()
        own = runs["sdpa"]
        for name, reason in reasons.items():
            row: dict[str, Any] = {
                "model": shape.model,
                "kernel": name,
                "heads": count,
                "why_not": reason,
            }
            if reason is None:
                row |= runs[name].figures(own)
            yield row


def _why_not(
    name: str, shape: Shape, heads: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    if name == "math" and heads * shape.queries * shape.keys * dtype.itemsize > SCORES_LIMIT:
        return "its matrix of scores is too large"
    return kernel_error(name, shape.head_size, dtype, device)


class _Timed:
    def __init__(
        self, name: str, shape: Shape, heads: int, dtype: torch.dtype, device: torch.device
    ):
        self.name, self.device = name, device
        made = torch.Generator().manual_seed(0)

        def tensor(length: int) -> Tensor:
            drawn = torch.randn(1, heads, length, shape.head_size, generator=made)
            return drawn.to(device, dtype).requires_grad_()

        self.inputs = (tensor(shape.queries), tensor(shape.keys), tensor(shape.keys))
        self.forward: list[float] = []
        self.both: list[float] = []

    def __call__(self) -> None:
        with torch.no_grad():
            self.forward.append(seconds_of(lambda: attend(self.name, *self.inputs), self.device))
        self.both.append(
            seconds_of(lambda: attend(self.name, *self.inputs).sum().backward(), self.device)
        )
        for tensor in self.inputs:
            tensor.grad = None

    def figures(self, other: "_Timed") -> dict[str, float]:
        with torch.no_grad():
            ours = attend(self.name, *self.inputs)
            theirs = attend(other.name, *other.inputs)
        seconds = statistics.median(self.both)
        return {
            "seconds": seconds,
            "iqr": spread(self.both),
            "forward_seconds": statistics.median(self.forward),
            "ratio": seconds / statistics.median(other.both),
            "error": ((ours - theirs).abs().max() / theirs.abs().max()).item(),
        }
