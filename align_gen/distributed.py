"""Several processes: their start, shares of a list or a tensor in shards, one value for all."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import UserError, user_mistakes

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

log = logging.getLogger("align_gen")
Value = TypeVar("Value")
PATIENCE = 5.0  # seconds until a wait for other processes is told


def start_accelerator(**options: Any) -> "Accelerator":
    """Start accelerate's Accelerator; a wait for processes that do not come is told.

    Raises:
        UserError: the environment's numbers of processes are none.
    """
    rank, ranks = processes()
    from accelerate import Accelerator

    with user_mistakes(), _told_waiting(rank, ranks):
        return Accelerator(**options)


def processes() -> tuple[int, int]:
    """This process's number and that of all, as a launcher has set them; (0, 1) without one.

    Raises:
        UserError: they are no such numbers.
    """
    ranks = _number("WORLD_SIZE", 1, 2**20, default=1)
    _number("LOCAL_RANK", -1, 2**20, default=-1)
    _number("MASTER_PORT", 0, 65535, default=0)
    return (0, 1) if ranks == 1 else (_number("RANK", 0, ranks - 1, default=0), ranks)


def _number(name: str, low: int, high: int, *, default: int) -> int:
    """A number of the environment."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = int(text[:20])
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise UserError(
            f"{name}={text[:40]!r} in the environment: want a number from {low} to {high}, "
            "or none at all"
        )
    return value


@contextmanager
def _told_waiting(rank: int, ranks: int) -> Iterator[None]:
    """Inside, a wait that lasts says for whom: variables may be left of another launch."""
    if ranks == 1:
        yield
        return
    host = os.environ.get("MASTER_ADDR", "localhost")
    port = os.environ.get("MASTER_PORT", "?")
    others = "process 0" if rank else f"{ranks - 1} more of {ranks} processes"
    # As an error: of the other processes than the first, nothing less is shown.
    timer = threading.Timer(
        PATIENCE,
        log.error,
        (
            "waiting for %s at %s:%s (RANK=%d, WORLD_SIZE=%d in the environment)",
            *(others, host, port, rank, ranks),
        ),
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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


def from_all(value: Value, accelerator: "Accelerator | None") -> list[Value]:
    """The values of all processes, in order of rank; every process must call this."""
    values: list[Any] = [value] * (1 if accelerator is None else accelerator.num_processes)
    if len(values) > 1:
        from torch.distributed import all_gather_object

        all_gather_object(values, value)
    return values


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
