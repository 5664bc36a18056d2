"""The kernel that computes attention, chosen for each module and tried before it is used.

torch's ``scaled_dot_product_attention`` picks a kernel by itself ("sdpa"), or runs a named one
("math", "flash", "efficient", "cudnn"); xformers brings another. A choice patches the attention
processors of one model: diffusers' own switch is for the whole process and would reach the next
model too.
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
# Words of the error with which torch says that a kernel cannot take these inputs.
NO_KERNEL = ("No available kernel", "No viable backend")
# diffusers' processors -> their versions over xformers
XFORMERS = {
    "AttnProcessor2_0": "XFormersAttnProcessor",
    "AttnAddedKVProcessor2_0": "XFormersAttnAddedKVProcessor",
    "JointAttnProcessor2_0": "XFormersJointAttnProcessor",
}


def attend(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (B, heads, L, head size) by a named kernel; differentiable."""
    if kernel == "xformers":
        from xformers.ops import (  # type: ignore[import-not-found, unused-ignore]
            memory_efficient_attention,
        )

        # xformers wants (B, L, heads, head size)
        swapped = (x.transpose(1, 2) for x in (query, key, value))
        output: Tensor = memory_efficient_attention(*swapped).transpose(1, 2)
        return output
    if kernel == "sdpa":
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(KERNELS[kernel]):
        return F.scaled_dot_product_attention(query, key, value)


@cache
def kernel_error(
    kernel: str, head_size: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why a kernel does not run here, forward and backward; None where it does."""
    options: dict[str, Any] = {"dtype": dtype, "device": device, "requires_grad": True}
    query, key, value = (torch.ones(1, 2, 32, head_size, **options) for _ in range(3))
    try:
        attend(kernel, query, key, value).sum().backward()
    except Exception as error:  # each library has errors of its own, and some raise any kind
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return None


def use_attention(
    model: Model,
    name: str = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> dict[str, Counter[str]]:
    """Set the kernel of a model's denoisers; how many modules of each component use which.

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
    # Planned for all modules first: where one cannot run the kernel, none is changed.
    plan = []
    for _, module in _modules(model):
        weight = next(module.parameters())
        where = (module.inner_dim // module.heads, dtype or weight.dtype, device or weight.device)
        plan.append((module, _kernel_for(module, name, *where)))
    set_kernels(plan)
    return attention_of(model)


def _kernel_for(
    module: Any, name: str, head_size: int, dtype: torch.dtype, device: torch.device
) -> str:
    """The kernel that a module gets when ``name`` is asked for; ValueError where it cannot run."""
    if name == "auto":
        fast = (
            device.type != "cpu"
            and _takes_xformers(module)
            and kernel_error("xformers", head_size, dtype, device) is None
        )
        return "xformers" if fast else "sdpa"
    if name == "xformers" and not _takes_xformers(module):
        raise ValueError(
            f"attention xformers: {type(_plain(module)).__name__} has no version over xformers"
        )
    reason = kernel_error(name, head_size, dtype, device)
    if reason is not None:
        raise ValueError(
            f"attention {name}: not here, with heads of {head_size} in {dtype} on {device}: "
            f"{reason}"
        )
    return name


@contextmanager
def force_kernel(model: Model, kernel: str) -> Iterator[None]:
    """Inside, every module uses one kernel, which is not tried before."""
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
    """Set the kernels of modules, without trying them."""
    for module, kernel in kernels:
        _set(module, kernel)


def attention_of(model: Model) -> dict[str, Counter[str]]:
    """How many modules of each denoiser use which kernel."""
    used: dict[str, Counter[str]] = {}
    for component, module in _modules(model):
        used.setdefault(component, Counter())[kernel_of(module)] += 1
    return used


def describe(used: dict[str, Counter[str]]) -> str:
    """The kernels in use, in one line."""
    parts = []
    for component, counts in used.items():
        numbers = ", ".join(f"{n} x {name}" for name, n in counts.items())
        parts.append(f"{component} {numbers}")
    return "; ".join(parts) or "no module whose kernel can be chosen"


def kernel_of(module: Any) -> str:
    """The name of the kernel that an attention module uses."""
    processor = module.processor
    backend = getattr(processor, "_attention_backend", None)
    if hasattr(processor, "plain") or backend == "xformers":
        return "xformers"
    return getattr(processor, "kernel", "sdpa")


def _modules(model: Model) -> list[tuple[str, Any]]:
    """Attention modules of the denoisers, with their components' names.

    Text encoders are left out, as they run once; so is the VAE, whose head is too wide.
    """
    modules = []
    for component, part in model.components().items():
        if component == "vae" or component.startswith("text_encoder"):
            continue
        for module in unwrap(part).modules():
            is_attention = hasattr(module, "set_processor") and hasattr(module, "heads")
            if is_attention and _has_softmax(_plain_class(_plain(module))):
                modules.append((component, module))
    return modules


@cache
def _has_softmax(processor: Any) -> bool:
    """Whether a processor computes what the kernels do.

    Linear attention does not, nor does attention that is written out by hand.
    """
    # Neither the name of a processor nor its class says how it computes; its text does.
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
    """Make a module's processor run a kernel, whatever it ran before."""
    processor = _plain(module)
    # First undo the last choice: its class, and the backend that diffusers gave the processor.
    processor.__class__ = _plain_class(processor)
    if hasattr(processor, "_attention_backend"):
        original = vars(processor).setdefault("own_backend", processor._attention_backend)
        processor._attention_backend = original
    if kernel in KERNELS:
        processor.__class__ = _with_kernel(processor.__class__, kernel)
    elif kernel == "xformers" and hasattr(processor, "_attention_backend"):
        from diffusers.models.attention_dispatch import AttentionBackendName

        processor._attention_backend = AttentionBackendName.XFORMERS
    elif kernel == "xformers":
        from diffusers.models import attention_processor

        fast = getattr(attention_processor, XFORMERS[type(processor).__name__])()
        fast.plain = processor
        processor = fast
    module.set_processor(processor)


@cache
def _with_kernel(processor: Any, kernel: str) -> Any:
    """A processor class whose ``scaled_dot_product_attention`` runs one kernel.

    The class keeps its name and signature, which diffusers looks at.
    """

    @wraps(processor.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(KERNELS[kernel]):
            try:
                return processor.__call__(self, *args, **kwargs)
            except RuntimeError as error:
                if not any(words in str(error) for words in NO_KERNEL):
                    raise
                raise ValueError(
                    f"attention {kernel}: cannot take what {processor.__name__} gives it "
                    "(a mask, or this dtype)"
                ) from error

    return type(processor.__name__, (processor,), {"__call__": call, "kernel": kernel})
