"""Precisions by name, and float32 that is float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import torch

DtypeName = Literal["fp32", "bf16", "fp16"]
ALIASES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def dtype_name(name: str) -> str:
    """The short name of a precision: ``bfloat16`` is ``bf16``; any other text as it is."""
    return ALIASES.get(name, name)


def dtype_of(name: str) -> "torch.dtype":
    """The torch dtype of a name in either spelling, as fp32 or float32.

    Raises:
        ValueError: another name; the message lists what is accepted.
    """
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if dtype_name(name) not in dtypes:
        raise ValueError(f"dtype {name!r}: want one of {', '.join(get_args(DtypeName))}")
    return dtypes[dtype_name(name)]


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, convolutions of float32 run in float32 on a GPU; also a decorator.

    By default cuDNN rounds what they multiply to TF32, ten bits of mantissa. Trajectories that are
    replayed in another batch then differ by 1e-3 in their log-probabilities, a quarter of what PRDP
    lets a policy move.
    """
    import torch

    cudnn: Any = torch.backends.cudnn
    # The switch of torch 2.9; once it is used, reading the older one raises.
    newer = hasattr(cudnn, "conv")
    switch, name, exact = (
        (cudnn.conv, "fp32_precision", "ieee") if newer else (cudnn, "allow_tf32", False)
    )
    before = getattr(switch, name)
    setattr(switch, name, exact)
    try:
        yield
    finally:
        setattr(switch, name, before)
