"""A checkpoint's files, read and checked: sums first, and then whether their content can be true.

Sums that fit say that a file is what was written. They do not say that it was written by a run, so
that nothing of it reaches the model or the optimizer unchecked.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from ..errors import UserError
from ..methods.state import TrainState
from ..pipelines.trainable import POLICY, REFRESHED
from .journal import Numbers, parse_lines

FORMAT = 1
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.pt"
PROGRESS = "progress.json"
METRICS = "metrics.jsonl"
SUMS = "SHA256SUMS"
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of AdamW, for each tensor
MOST = 2**53  # counts beyond are no count


@dataclass
class Saved:
    """The content of a checkpoint.

    Attributes:
        metrics: the run's lines up to there; None in a checkpoint from before they were kept.
    """

    progress: dict[str, Any]
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    metrics: list[Numbers] | None = field(default=None)

    @classmethod
    def read(cls, folder: Path, pointer: Path) -> "Saved":
        """Read a checkpoint; ``pointer`` is the run's state.json, which early ones depend on.

        Raises:
            UserError: the checkpoint is of a later format.
            Exception: of any kind; it is damaged.
        """
        # Early checkpoints have no sums and keep their progress in the run's own file.
        source = pointer if is_early(folder) else folder / PROGRESS
        metrics = None
        if source != pointer:
            sums = (folder / SUMS).read_text().splitlines()
            has_metrics = len(sums) > 3 or (folder / METRICS).exists()
            names = (WEIGHTS, OPTIMIZER, PROGRESS, *((METRICS,) if has_metrics else ()))
            for name in names:
                if f"{digest(folder / name)}  {name}" not in sums:
                    raise ValueError(f"{name} is not what was written")
            if has_metrics:
                content = (folder / METRICS).read_bytes()
                metrics = parse_lines(content)
                if len(metrics) < content.count(b"\n"):
                    raise ValueError(f"{METRICS} holds what is no line of metrics")
        # A later format may be whole and yet be misread.
        progress: dict[str, Any] = json.loads(source.read_text())
        if progress["format"] > FORMAT:
            raise UserError(
                f"{source}: format {progress['format']} is newer than this version reads ({FORMAT})"
            )
        if progress["checkpoint"] != folder.name:
            raise ValueError(f"its progress is that of {progress['checkpoint']}")
        optimizer = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu")
        return cls(progress, load((folder / WEIGHTS).read_bytes()), optimizer, metrics)

    def require_fit(self, state: TrainState, named: Mapping[str, torch.Tensor], most: int) -> None:
        """Check everything that ``state`` would take over, without touching it.

        Args:
            named: the trained tensors by name.
            most: steps of the run.

        Raises:
            ValueError: says what cannot be.
        """
        _require_progress(self.progress, state, most)
        _require_tensors(self.weights, state, named)
        _require_optimizer(self.optimizer, state, list(named.values()))


def is_early(folder: Path) -> bool:
    """Whether a checkpoint is of the first kind: no sums, and its progress in state.json alone."""
    return not any((folder / name).exists() for name in (PROGRESS, SUMS))


def is_ours(folder: Path, pointer: Path) -> bool:
    """Whether a folder says itself that it is the checkpoint of its name; its content may be torn.

    A copy under another name says the name that it is a copy of.
    """
    try:
        early = is_early(folder)
        needed = (WEIGHTS, OPTIMIZER) if early else (SUMS,)
        if not all((folder / name).is_file() for name in needed):
            return False
        source = pointer if early else folder / PROGRESS
        return bool(json.loads(source.read_text())["checkpoint"] == folder.name)
    except Exception:  # whatever a damaged file makes its reader say
        return False


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    total = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            total.update(block)
    return total.hexdigest()


# --- what can be true -----------------------------------------------------------------------------


def _require_progress(progress: dict[str, Any], state: TrainState, most: int) -> None:
    """The counters, the guard of early stopping, and what a method keeps from step to step."""
    step = _count(progress, "step", most)
    if progress["checkpoint"] != f"step-{step:06d}":
        raise ValueError(f"its step is {step}")
    if _count(progress, "format", FORMAT) < 1:
        raise ValueError("its format is 0")
    _count(progress, "denoiser_calls", MOST)
    for key, largest in (("worse", MOST), ("best_step", step)):
        if key in progress:
            _count(progress, key, largest)
    if "best_rise" in progress and _number(progress, "best_rise") < 0:
        raise ValueError("best_rise is below 0")
    files = progress.get("best_files", [])
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise ValueError("best_files is no list of names")

    # What this run has, and no other: an average, a loss scale, rewards of earlier steps.
    if state.ema is not None:
        _count(progress, "ema_step", MOST)
    if state.accelerator.scaler is not None and "scaler" in progress:
        _require_scaler(progress["scaler"], state.accelerator.scaler.state_dict())
    for kept in _mapping(progress.get("memory", {}), "memory").values():
        for rewards in _mapping(kept, "memory").values():
            if not isinstance(rewards, list):
                raise ValueError("memory holds what is no list of rewards")
            for number in rewards:
                _finite_number(number, "memory")


def _require_scaler(scaler: Any, like: Mapping[str, Any]) -> None:
    """Numbers above 0 under the keys of a loss scale."""
    if _mapping(scaler, "scaler").keys() != like.keys():
        raise ValueError(f"scaler has {sorted(scaler)}, want {sorted(like)}")
    for key in scaler:
        if _number(scaler, key) < 0 or (scaler[key] == 0 and key != "_growth_tracker"):
            raise ValueError(f"scaler: {key} is {scaler[key]}")


def _require_tensors(
    weights: Mapping[str, torch.Tensor], state: TrainState, named: Mapping[str, torch.Tensor]
) -> None:
    """Names, shapes, precision and finite numbers of the weights and what goes with them."""
    wanted = {f"policy.{name}": value for name, value in named.items()}
    if state.ema is not None:
        wanted |= {f"ema.{name}": value for name, value in named.items()}
    if any(name.startswith("reference.") for name in weights):
        # A refreshed reference is a copy of the LoRA, tensor by tensor.
        if not all(f".{POLICY}." in name for name in named):
            raise ValueError("a reference that was refreshed, of what is no LoRA")
        wanted |= {
            f"reference.{name.replace(f'.{POLICY}.', f'.{REFRESHED}.')}": value
            for name, value in named.items()
        }
    if different := sorted(wanted.keys() ^ weights.keys()):
        raise ValueError(f"{different[0]} is {'lacking' if different[0] in wanted else 'foreign'}")
    for name, value in weights.items():
        _require_like(value, wanted[name], name)


def _require_optimizer(optimizer: Any, state: TrainState, parameters: list[torch.Tensor]) -> None:
    """AdamW's moments of these parameters, in groups as this run has them."""
    saved = _mapping(optimizer, "the optimizer")
    groups = state.optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved["param_groups"]] != [g["params"] for g in groups]:
        raise ValueError("the optimizer has other groups of parameters")
    for number, moments in _mapping(saved["state"], "the optimizer's state").items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(f"the optimizer has a parameter {number!r}")
        if _mapping(moments, "the optimizer's state").keys() != MOMENTS:
            raise ValueError(f"the optimizer has {sorted(moments)} of a parameter")
        taken = torch.as_tensor(moments["step"])
        if taken.ndim or not 0 <= float(taken) < MOST:
            raise ValueError(f"the optimizer took {moments['step']} steps")
        for key in ("exp_avg", "exp_avg_sq"):
            _require_like(moments[key], parameters[number], f"the optimizer's {key}")
        if bool((moments["exp_avg_sq"] < 0).any()):
            raise ValueError("the optimizer's exp_avg_sq is below 0")


def _require_like(value: Any, like: torch.Tensor, name: str) -> None:
    """A finite tensor of the shape and the precision of another."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is no tensor")
    if value.shape != like.shape or value.dtype != like.dtype:
        raise ValueError(
            f"{name} is {value.dtype} {tuple(value.shape)}, want {like.dtype} {tuple(like.shape)}"
        )
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} is not finite")


def _count(progress: Mapping[str, Any], key: str, most: int) -> int:
    value = progress[key]
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{key} is {value!r:.40}, want a whole number from 0 to {most}")
    return value


def _number(values: Mapping[str, Any], key: str) -> float:
    return _finite_number(values[key], key)


def _finite_number(value: Any, key: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r:.40}, want a number")
    return float(value)


def _mapping(value: Any, name: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no mapping")
    return value
