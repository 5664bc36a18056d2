"""Weights of reward heads: found by path or hub name, read without running code, loaded once."""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from . import hub

T = TypeVar("T")
_loaded: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()


def is_path(name: str) -> bool:
    """Whether a name means the disk: it is there, or could be nothing on a hub."""
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~"))


def find(name: str, file: str) -> Path:
    """A file of weights: ``name`` itself, or ``file`` in the folder or hub repository of that name.

    Raises:
        ValueError: it is not there, or the hub cannot be reached; says what would be accepted.
    """
    path = Path(name).expanduser()
    if is_path(name):
        found = path / file if path.is_dir() else path
        if not found.is_file():
            raise ValueError(f"{name}: no such file; want {file}, a folder with it, or a hub name")
        return found
    if not _is_hub_name(name):
        raise ValueError(
            f"{name!r}: want a local path to {file}, or a hub name as owner/repository"
        )
    return hub.download(name, file)


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and all(name.split("/"))


def read(path: Path) -> dict[str, Tensor]:
    """Named tensors from safetensors, or from a pickle of nothing but tensors: no code in it runs.

    What training scripts wrap around them goes: a "state_dict" key, a "module." prefix.

    Raises:
        ValueError: damaged, or a pickle of something else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: is not a plain file of tensors, and nothing else is read from a pickle"
        ) from error
    except Exception as error:  # a damaged file makes its reader say anything
        raise ValueError(
            f"{path}: cannot be read as weights ({' '.join(str(error).split())[:160]})"
        ) from error
    while isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError(
            f"{path}: want named tensors, got {type(state).__name__} of something else"
        )
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def fill(module: nn.Module, state: Mapping[str, Tensor], where: object) -> None:
    """Load every weight of a module, and nothing else.

    Raises:
        ValueError: a weight is missing, left over, or of another shape; names the first.
    """
    own = module.state_dict()
    for name in (*own, *state):
        wanted, given = (tuple(side[name].shape) if name in side else None for side in (own, state))
        if wanted != given:
            said = "is missing" if given is None else f"has shape {given}"
            raise ValueError(
                f"{where}: {name} {said}; this architecture wants {wanted or 'none of that name'}"
            )
    module.load_state_dict(state)


def sha256(module: nn.Module) -> str:
    """Of all weights, by name: the same for the same model whatever file it came from."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def shared(key: tuple[Any, ...], path: str | None, make: Callable[[], T]) -> T:
    """What ``make`` loads, once for all who ask with this key while any of them lives; anew once
    the file changed.
    """
    key = (*key, path, _stamp(path))
    if (found := _loaded.get(key)) is None:
        _loaded[key] = found = make()
    return found


def _stamp(path: str | None) -> int:
    """When the newest file of a path was written; 0 for what is no path."""
    if path is None or not Path(path).expanduser().exists():
        return 0
    place = Path(path).expanduser()
    return max(
        file.stat().st_mtime_ns for file in (place, *(place.iterdir() if place.is_dir() else ()))
    )
