"""Weights of reward heads: by path or hub name, read without running code, loaded once."""

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
# Objects in use by their key, so that heads of the same weights share them.
_loaded: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()


def is_path(name: str) -> bool:
    """Whether a name means the disk: something is there, or no hub could have the name."""
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~"))


def find(name: str, file: str) -> Path:
    """A file of weights: ``name`` itself, or ``file`` in the folder or hub repository of that name.

    Raises:
        ValueError: it is not there, or the hub cannot be reached; says what would be accepted.
    """
    path = Path(name).expanduser()
    if is_path(name):
        target = path / file if path.is_dir() else path
        if not target.is_file():
            raise ValueError(f"{name}: no such file; want {file}, a folder with it, or a hub name")
        return target
    if not _is_hub_name(name):
        raise ValueError(
            f"{name!r}: want a local path to {file}, or a hub name as owner/repository"
        )
    return hub.download(name, file)


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and all(name.split("/"))


def read(path: Path) -> dict[str, Tensor]:
    """Named tensors from safetensors, or from a pickle of nothing but tensors: no code in it runs.

    What training scripts wrap around the tensors is taken off: a "state_dict" key, a "module."
    prefix.

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
    except Exception as error:  # the readers of damaged files raise errors of any kind
        said = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: cannot be read as weights ({said})") from error

    # Wrapped once or more: trainers nest "state_dict" in checkpoints of their own.
    while isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    is_named = isinstance(state, Mapping)
    if not is_named or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path}: want named tensors, got {type(state).__name__} of something else"
        )
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def fill(module: nn.Module, state: Mapping[str, Tensor], where: object) -> None:
    """Load every weight of a module, and nothing else.

    Raises:
        ValueError: a weight is missing, left over, or of another shape; names the first.
    """
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    for name in (*shapes, *given):
        if shapes.get(name) != given.get(name):
            said = f"has shape {given[name]}" if name in given else "is missing"
            wanted = shapes.get(name) or "none of that name"
            raise ValueError(f"{where}: {name} {said}; this architecture wants {wanted}")
    module.load_state_dict(state)


def sha256(module: nn.Module) -> str:
    """A hash of all weights by name, equal for equal models whatever file they came from."""
    return sha256_of(module.state_dict())


def sha256_of(state: Mapping[str, Any]) -> str:
    """A hash of named tensors; what else stands among them is left out."""
    digest = hashlib.sha256()
    # By name and on the CPU, so that neither order nor device changes the hash.
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for name, value in sorted(tensors.items()):
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(name.encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def shared(key: tuple[Any, ...], path: str | None, make: Callable[[], T]) -> T:
    """Return what ``make`` loads, once for all who ask with this key while any of them lives.

    A file that has changed is loaded anew.
    """
    key = (*key, path, _stamp(path))
    loaded: T | None = _loaded.get(key)
    if loaded is None:
        loaded = make()
        _loaded[key] = loaded
    return loaded


def _stamp(path: str | None) -> int:
    """When the newest file of a path was written; 0 for what is no path."""
    if path is None or not Path(path).expanduser().exists():
        return 0
    target = Path(path).expanduser()
    files = [target, *target.iterdir()] if target.is_dir() else [target]
    return max(file.stat().st_mtime_ns for file in files)
