"""FSDP2: every process holds a part of each weight, and has a block whole only while it runs.

torch.distributed.fsdp.fully_shard, which cuts as DeepSpeed's ZeRO-3 does. A LoRA is small and stays
whole everywhere; its gradients add up in ``TrainState.update`` as ever. Every process must call the
network equally often: in each block they wait for one another.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from ..distributed import unshard
from ..errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..pipelines import Model
    from .recipe import Recipe

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")  # of networks that do not name their own


def shard(model: "Model", device: torch.device) -> None:
    """Cut the networks of a model over all processes, block by block, onto the device.

    What of full training is trained is cut too; gradients then arrive summed over the processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in (*model.trainable.values(), *model.reference_copies.values()):
        names = (
            getattr(module, "_no_split_modules", None),
            getattr(module, "_repeated_blocks", None),
            BLOCKS,
        )
        blocks = {name for each in names for name in each or ()}
        lora = {
            part
            for name, part in module.named_parameters()
            if part.requires_grad and "lora_" in name
        }
        for part in reversed(
            [part for part in module.modules() if type(part).__name__ in blocks or part is module]
        ):
            cut = fully_shard(part, mesh=mesh, ignored_params=lora, reshard_after_forward=True)
            cut.set_gradient_divide_factor(1.0)  # a sum, as everywhere here
            cut.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def shard_report(model: "Model") -> str:
    """How much of the trained networks lies in this process, for people."""
    parts = [part for module in model.trainable.values() for part in module.parameters()]
    here = sum((part.to_local() if isinstance(part, DTensor) else part).nbytes for part in parts)
    return f"{here / 1e6:.1f} of {sum(part.nbytes for part in parts) / 1e6:.1f} MB"


@contextmanager
def unsharded(model: "Model") -> Iterator[None]:
    """Inside, the networks of full training are plain modules on the CPU, to be exported.

    Every process must enter.
    """
    networks = dict(model.trainable)
    for name, module in networks.items():
        if any(isinstance(part, DTensor) and part.requires_grad for part in module.parameters()):
            weights = {key: unshard(value).cpu() for key, value in module.state_dict().items()}
            # fully_shard has put a class of its own before that of diffusers.
            plain: Any = next(
                kind for kind in type(module).__mro__ if kind.__module__.startswith("diffusers.")
            )
            model.trainable[name] = plain.from_config(module.config)
            model.trainable[name].load_state_dict(weights)
    try:
        yield
    finally:
        model.trainable.update(networks)


def require_shares(accelerator: "Accelerator", recipe: "Recipe", held_out: int) -> None:
    """Check that every process has a prompt; of a network in shards, equally many.

    Raises:
        UserError: names the key, or the launch that is not supported.
    """
    from accelerate.utils import DistributedType

    kind = accelerator.distributed_type
    ranks = accelerator.num_processes
    prompts = recipe.method.prompts_per_step
    supported = (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
        DistributedType.MULTI_XPU,
    )
    if kind not in supported:
        raise UserError(
            f"finetune: {kind.value} is not supported; want accelerate's plain multi-process "
            "launch, with memory.shard=true where the model does not fit"
        )
    if prompts < ranks:
        raise UserError(
            f"method.prompts_per_step: {prompts} leaves some of {ranks} processes without a "
            "prompt; want more"
        )

    # Processes of a network in shards wait for each other in every block of every call.
    if recipe.memory.shard:
        if ranks == 1:
            raise UserError(
                "memory.shard: there is one process to hold the shards; want a launch of several"
            )
        if recipe.memory.offload_reference:
            raise UserError(
                "memory.offload_reference: its shards stay where they are; want one of it and "
                "memory.shard"
            )
        require_equal_calls(prompts, held_out * len(recipe.evaluate.seeds), ranks)


def require_equal_calls(prompts: int, pictures: int, ranks: int) -> None:
    """Check that all processes make equally many calls: of unequal ones, some would wait for ever.

    Raises UserError.
    """
    for key, count in (
        ("method.prompts_per_step", prompts),
        ("evaluate.seeds times the held-out prompts", pictures),
    ):
        if count % ranks:
            raise UserError(
                f"memory.shard: {key} is {count}; want a multiple of the {ranks} processes"
            )
