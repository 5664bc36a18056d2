"""Shares of a whole among processes: of a list, and of a tensor in shards."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


def rank_slice(total: int, accelerator: "Accelerator | None") -> range:
    """This process's share of range(total): consecutive, and as equal as can be.

    Without an accelerator the share is the whole range.
    """
    if accelerator is None:
        return range(total)
    rank = accelerator.process_index
    ranks = accelerator.num_processes
    return range(rank * total // ranks, (rank + 1) * total // ranks)


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
