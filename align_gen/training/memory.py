"""What a run can do to need less memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..errors import UserError
from ..pipelines.attention import kernels_of, set_kernels
from ..strict import Strict

if TYPE_CHECKING:
    from ..pipelines import Model


class Memory(Strict):
    """What a run does to need less memory; each costs time, see docs/memory.md."""

    checkpointing: bool = Field(
        False, description="Compute the denoiser's and the VAE's activations again in backward."
    )
    vae: Literal["whole", "slices", "tiles"] = Field(
        "whole", description="Decode a batch at once, one by one, or in overlapping tiles."
    )
    free_text_encoders: bool = Field(
        False, description="Drop text encoders once all prompts of the run are encoded."
    )
    offload_rewards: bool = Field(False, description="Reward models wait on the CPU.")
    offload_reference: bool = Field(
        False, description="The frozen copy of full training waits on the CPU."
    )
    shard: bool = Field(False, description="Several processes hold a part of each weight (FSDP2).")


def save_memory(model: "Model", options: Memory) -> None:
    """Set a model up as the options say.

    Raises:
        UserError: the model's VAE, or its network, has no such mode.
    """
    model.reference_on_cpu = options.offload_reference
    components = model.components()
    if options.checkpointing:
        for name in model.trainable:
            _call(
                components[name], "enable_gradient_checkpointing", f"memory.checkpointing: {name}"
            )
        vae: Any = components.get("vae")
        if getattr(
            vae, "_supports_gradient_checkpointing", False
        ):  # few do, and few rewards need it
            vae.enable_gradient_checkpointing()
    if options.vae != "whole":
        mode = {"slices": "enable_slicing", "tiles": "enable_tiling"}[options.vae]
        _call(components.get("vae"), mode, f"memory.vae: {options.vae}")


@contextmanager
def as_it_was(model: "Model") -> Iterator[None]:
    """Afterwards, how the model samples, attends and saves memory is what it was before."""
    process = model.process
    kernels = kernels_of(model)
    offloaded = model.reference_on_cpu
    flags = ("gradient_checkpointing", "use_slicing", "use_tiling")
    # Every module, as diffusers sets these flags deep inside of networks and VAEs.
    parts = [part for root in model.components().values() for part in root.modules()]
    modes = [
        (part, flag, getattr(part, flag)) for part in parts for flag in flags if hasattr(part, flag)
    ]
    try:
        yield
    finally:
        model.process = process
        model.reference_on_cpu = offloaded
        for part, flag, value in modes:
            setattr(part, flag, value)
        set_kernels(kernels)


def encode_and_free(model: "Model", prompts: Sequence[str]) -> None:
    """Encode every prompt of a run, then drop the text encoders.

    Raises:
        UserError: the model has none to drop.
    """
    free = getattr(model, "free_text_encoders", None)
    if free is None:
        raise UserError(f"memory.free_text_encoders: {type(model).__name__} has none")
    free(prompts)


def _call(part: Any, method: str, key: str) -> None:
    if not hasattr(part, method):
        raise UserError(f"{key}: {type(part).__name__} cannot do that")
    try:
        getattr(part, method)()
    except (
        ValueError,
        NotImplementedError,
    ) as error:  # diffusers has the method on every model, and refuses in some
        raise UserError(f"{key}: {error}") from error
