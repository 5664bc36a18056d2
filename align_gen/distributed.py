"""Shares of a whole among processes, of a list or a tensor in shards; and one value for all."""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

Value = TypeVar("Value")


def rank_slice(total: int, accelerator: "Accelerator | None") -> range:
    """This process's share of range(total): consecutive, and as equal as can be.

    Without an accelerator the share is the whole range.
    """
    if accelerator is None:
        return range(total)
    rank = accelerator.process_index
    ranks = accelerator.num_processes
    return range(rank * total // ranks, (rank + 1) * total // ranks)


def from_first(value: Value, accelerator: "Accelerator | None") -> Value:
    """The first process's value, in all of them; every process must call this."""
    if accelerator is None or accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    received: list[Value] = broadcast_object_list([value])
    return received[0]


def unshard(value: "Tensor") -> "Tensor":
    """The whole of a tensor in shards; every process must call this.

    Any other tensor is returned as it is.
    """
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: "Tensor", like: "Tensor") -> "Tensor":
    """This process's shard of a whole tensor, cut as ``like`` is.

    Where ``like`` is not cut, the whole tensor.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
