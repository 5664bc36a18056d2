"""Names of the precisions that weights of heads may have."""

from typing import Literal, get_args

import torch

DtypeName = Literal["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def dtype_name(name: str) -> str:
    """torch's name of a precision, in either spelling: ``bf16`` is ``bfloat16``.

    Raises:
        ValueError: another name; the message lists what is accepted.
    """
    if name not in get_args(DtypeName):
        raise ValueError(f"dtype: want one of {', '.join(get_args(DtypeName))}, got {name!r}")
    return SHORT.get(name, name)


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype of a name; ValueError as of ``dtype_name``."""
    dtype: torch.dtype = getattr(torch, dtype_name(name))
    return dtype
