"""Bytes of modules, and of the tensors alive at once while some work runs."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class PeakMemory(TorchDispatchMode):
    """Inside, ``peak`` is the largest sum of bytes alive at once of tensors made inside.

    Tensors without data count too, by their shapes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[
            int, weakref.ref[Any]
        ] = {}  # storages, by address; a dead one's may be used again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for value in tree_iter((args, kwargs)):
            self._note(value, made=False)
        made = func(*args, **(kwargs or {}))
        for value in tree_iter(made):
            self._note(value, made=True)
        return made

    def _note(self, value: Any, made: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        size = storage.nbytes() if made else 0
        if (known := self._seen.get(key)) is not None and known() is not None:
            return

        def freed(_: Any) -> None:
            self._seen.pop(key, None)
            self.now -= size

        self._seen[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def size_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of parameters and buffers; one that two modules share counts once."""
    tensors = {
        id(tensor): tensor for part in modules for tensor in (*part.parameters(), *part.buffers())
    }
    return sum(tensor.nbytes for tensor in tensors.values())
