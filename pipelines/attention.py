"""Which kernel computes attention: chosen for each module of a model, and tried before it is used.

torch's ``scaled_dot_product_attention`` picks one by itself ("sdpa") or is held to one ("math",
"flash", "efficient", "cudnn"); xformers brings its own. The choice is a matter of the model's own
modules: diffusers' process-wide switch, which would reach the next model too, is never touched.
"""

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .base import Model
from .trainable import unwrap

KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
NAMES = ("auto", "sdpa", *KERNELS, "xformers")
XFORMERS = {  # what diffusers calls the same processor over xformers
    "AttnProcessor2_0": "XFormersAttnProcessor",
    "AttnAddedKVProcessor2_0": "XFormersAttnAddedKVProcessor",
    "JointAttnProcessor2_0": "XFormersJointAttnProcessor",
}


def attend(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (B, heads, L, head size) by a named kernel; differentiable."""
    if kernel == "xformers":
        from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found, unused-ignore]

        made: Tensor = memory_efficient_attention(
            *(x.transpose(1, 2) for x in (query, key, value))
        ).transpose(1, 2)
        return made
    if kernel == "sdpa":
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(KERNELS[kernel]):
        return F.scaled_dot_product_attention(query, key, value)


@cache
def kernel_error(
    kernel: str, head_size: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why a kernel does not run here, forward and backward; None where it does."""
    query, key, value = (
        torch.ones(1, 2, 32, head_size, dtype=dtype, device=device, requires_grad=True)
        for _ in range(3)
    )
    try:
        attend(kernel, query, key, value).sum().backward()
    except Exception as error:  # each library has its own, and some raise what they please
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return None


def use_attention(
    model: Model,
    name: str = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> dict[str, Counter[str]]:
    """Have the denoisers of a model use a kernel, and say which each of their modules uses, by
    component.

    "auto": xformers where it runs on an accelerator and the module has a processor for it, else
    torch's own choice.

    Args:
        dtype: that attention will run in; the weights' without it.
        device: that it will run on; the weights' without it.

    Raises:
        ValueError: no such kernel, or it does not run here for some module's head size; nothing is
            changed then.
    """
    if name not in NAMES:
        raise ValueError(f"attention: want one of {NAMES}, got {name!r}")
    plan = []
    for _, module in _modules(model):
        weight = next(module.parameters())
        where = (module.inner_dim // module.heads, dtype or weight.dtype, device or weight.device)
        kernel = name
        if name == "auto":
            fast = (
                where[2].type != "cpu"
                and _takes_xformers(module)
                and kernel_error("xformers", *where) is None
            )
            kernel = "xformers" if fast else "sdpa"
        elif name == "xformers" and not _takes_xformers(module):
            raise ValueError(
                f"attention xformers: {type(_plain(module)).__name__} has no version over xformers"
            )
        elif (reason := kernel_error(name, *where)) is not None:
            size, precision, device = where
            raise ValueError(
                f"attention {name}: not here, with heads of {size} in {precision} on {device}: {reason}"
            )
        plan.append((module, kernel))
    set_kernels(plan)
    return attention_of(model)


@contextmanager
def force_kernel(model: Model, kernel: str) -> Iterator[None]:
    """Inside, every module uses one kernel; whether it runs here is not tried."""
    before = kernels_of(model)
    try:
        set_kernels([(module, kernel) for module, _ in before])
        yield
    finally:
        set_kernels(before)


def kernels_of(model: Model) -> list[tuple[Any, str]]:
    """Every attention module of the denoisers with its kernel."""
    return [(module, kernel_of(module)) for _, module in _modules(model)]


def set_kernels(kernels: Sequence[tuple[Any, str]]) -> None:
    """Have modules use kernels, untried."""
    for module, kernel in kernels:
        _set(module, kernel)


def attention_of(model: Model) -> dict[str, Counter[str]]:
    """How many modules of each denoiser use which kernel."""
    used: dict[str, Counter[str]] = {}
    for component, module in _modules(model):
        used.setdefault(component, Counter())[kernel_of(module)] += 1
    return used


def describe(used: dict[str, Counter[str]]) -> str:
    """In one line."""
    parts = (
        f"{component} {', '.join(f'{n} x {name}' for name, n in counts.items())}"
        for component, counts in used.items()
    )
    return "; ".join(parts) or "no module whose kernel can be chosen"


def kernel_of(module: Any) -> str:
    """The name of the kernel that an attention module uses."""
    if (
        hasattr(module.processor, "plain")
        or getattr(module.processor, "_attention_backend", None) == "xformers"
    ):
        return "xformers"
    return getattr(module.processor, "kernel", "sdpa")


def _modules(model: Model) -> list[tuple[str, Any]]:
    """Attention modules of what draws: not of text encoders, which run once, nor of the VAE, whose
    head is too wide.
    """
    return [
        (component, module)
        for component, part in model.components().items()
        if component != "vae" and not component.startswith("text_encoder")
        for module in unwrap(part).modules()
        if hasattr(module, "set_processor")
        and hasattr(module, "heads")
        and _has_softmax(_plain_class(_plain(module)))
    ]


@cache
def _has_softmax(processor: Any) -> bool:
    """Whether it computes what the kernels do: linear attention does not, nor what is written out
    by hand.
    """
    source = inspect.getsource(processor.__call__)
    return any(name in source for name in ("scaled_dot_product_attention", "dispatch_attention_fn"))


def _takes_xformers(module: Any) -> bool:
    plain = _plain(module)
    return hasattr(plain, "_attention_backend") or _plain_class(plain).__name__ in XFORMERS


def _plain(module: Any) -> Any:
    """The processor that diffusers gave the module."""
    return getattr(module.processor, "plain", module.processor)


def _plain_class(processor: Any) -> Any:
    return type(processor).__mro__[1] if hasattr(processor, "kernel") else type(processor)


def _set(module: Any, kernel: str) -> None:
    processor = _plain(module)
    processor.__class__ = _plain_class(processor)
    if hasattr(processor, "_attention_backend"):  # as it was before the first choice
        processor._attention_backend = vars(processor).setdefault(
            "own_backend", processor._attention_backend
        )
    if kernel in KERNELS:
        processor.__class__ = _held(processor.__class__, kernel)
    elif kernel == "xformers" and hasattr(processor, "_attention_backend"):
        from diffusers.models.attention_dispatch import AttentionBackendName

        processor._attention_backend = AttentionBackendName.XFORMERS
    elif kernel == "xformers":
        from diffusers.models import attention_processor

        fast = getattr(attention_processor, XFORMERS[type(processor).__name__])()
        fast.plain, processor = processor, fast
    module.set_processor(processor)


@cache
def _held(processor: Any, kernel: str) -> Any:
    """A processor class whose ``scaled_dot_product_attention`` is held to one kernel.

    Under the class's own name and signature, which diffusers looks at.
    """

    @wraps(processor.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(KERNELS[kernel]):
            try:
                return processor.__call__(self, *args, **kwargs)
            except RuntimeError as error:
                if not any(
                    words in str(error) for words in ("No available kernel", "No viable backend")
                ):
                    raise
                raise ValueError(
                    f"attention {kernel}: cannot take what {processor.__name__} gives it (a mask, or this dtype)"
                ) from error

    return type(processor.__name__, (processor,), {"__call__": call, "kernel": kernel})
