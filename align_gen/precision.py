"""float32 that is float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, convolutions of float32 run in float32 on a GPU; also a decorator.

    By default cuDNN rounds what they multiply to TF32, ten bits of mantissa. Trajectories that are
    replayed in another batch then differ by 1e-3 in their log-probabilities, a quarter of what PRDP
    lets a policy move.
    """
    import torch

    cudnn: Any = torch.backends.cudnn
    newer = hasattr(
        cudnn, "conv"
    )  # torch 2.9; once it is used, the older switch raises when it is read
    switch, name, exact = (
        (cudnn.conv, "fp32_precision", "ieee") if newer else (cudnn, "allow_tf32", False)
    )
    before = getattr(switch, name)
    setattr(switch, name, exact)
    try:
        yield
    finally:
        setattr(switch, name, before)
