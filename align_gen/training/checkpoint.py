"""Checkpoints that a kill at any moment cannot tear, and that show whether they were damaged since.

``checkpoints/step-000010`` is whole in itself: ``weights.safetensors`` (what is trained, its
average, and a reference that was refreshed), ``optimizer.pt``, ``progress.json`` (counters) and
``SHA256SUMS`` of these, which ``sha256sum -c`` reads too. It is written aside, synced and renamed.
``state.json`` in the run directory says which is the newest, for whoever looks.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file

from ..distributed import shard_like, unshard
from ..errors import RunFailure, UserError, one_line
from ..files import whole_file, whole_folder
from ..methods.state import TrainState
from ..pipelines.trainable import REFRESHED

log = logging.getLogger("align_gen")
FORMAT = 1
KEEP = 2
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.pt"
PROGRESS = "progress.json"
SUMS = "SHA256SUMS"


def save(state: TrainState, run: Path, more: dict[str, Any]) -> None:
    """Write the checkpoint of ``state.step``, one process for all; the two newest are kept.

    Raises:
        RunFailure: it cannot be written; the checkpoints before it stand as they did.
    """
    writes = state.accelerator.is_main_process
    if writes or state.sharded:
        weights, optimizer = _gathered(state)
    if writes:
        _save(state, run, more, weights, optimizer)
    state.accelerator.wait_for_everyone()


def _gathered(state: TrainState) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights, their average and the optimizer's state, whole.

    Of a network in shards, every process must call this.
    """
    names, parameters = trained(state)
    weights = {
        f"policy.{key}": unshard(value.detach())
        for key, value in zip(names, parameters, strict=True)
    }
    if state.ema is not None:
        weights |= {
            f"ema.{key}": unshard(value)
            for key, value in zip(names, state.ema.shadow_params, strict=True)
        }
    weights |= {
        f"reference.{key}": unshard(value.detach()) for key, value in _refreshed(state).items()
    }
    optimizer = state.optimizer.state_dict()
    moments = {
        number: {
            key: unshard(value) if isinstance(value, torch.Tensor) else value
            for key, value in each.items()
        }
        for number, each in optimizer["state"].items()
    }
    return weights, {**optimizer, "state": moments}


def _save(
    state: TrainState,
    run: Path,
    more: dict[str, Any],
    weights: dict[str, torch.Tensor],
    optimizer: dict[str, Any],
) -> None:
    name = f"step-{state.step:06d}"
    folder = run / "checkpoints" / name
    # Progress names its checkpoint, so that a folder that was renamed by hand is noticed.
    progress = _progress(state) | more | {"checkpoint": name}
    text = json.dumps(progress, indent=1)
    files = (WEIGHTS, OPTIMIZER, PROGRESS)
    try:
        with whole_folder(folder) as part:
            tensors = {key: value.cpu().contiguous() for key, value in weights.items()}
            save_file(tensors, part / WEIGHTS)
            torch.save(optimizer, part / OPTIMIZER)
            (part / PROGRESS).write_text(text)
            (part / SUMS).write_text("".join(f"{_digest(part / file)}  {file}\n" for file in files))
        with whole_file(run / "state.json") as stream:
            stream.write(text.encode())
    # a full disk speaks otherwise through safetensors, through torch and through Python
    except Exception as error:
        raise RunFailure(f"{folder}: cannot be written ({one_line(error)})") from error
    _prune(folder.parent)


def _prune(folder: Path) -> None:
    """Remove what is older than the two newest, and what a kill left half-written or aside."""
    left = (*folder.glob(".step-*.part"), *folder.glob(".step-*.old"))
    for old in (*sorted(folder.glob("step-*"))[:-KEEP], *left):
        shutil.rmtree(old, ignore_errors=True)


def _progress(state: TrainState) -> dict[str, Any]:
    """The counters that go with the weights."""
    progress: dict[str, Any] = {
        "format": FORMAT,
        "step": state.step,
        "denoiser_calls": state.denoiser_calls,
    }
    if state.memory:
        progress["memory"] = state.memory
    if state.ema is not None:
        progress["ema_step"] = state.ema.optimization_step
    if state.accelerator.scaler is not None:  # fp16's loss scale
        progress["scaler"] = state.accelerator.scaler.state_dict()
    return progress


def restore(state: TrainState, run: Path) -> dict[str, Any]:
    """Load the newest whole checkpoint; returns what ``save`` was given besides, {} without one.

    A damaged one is passed over, with a warning, for the one before.

    Raises:
        UserError: there are checkpoints, and none of them can be read; or one is of a later format.
    """
    folders = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    for folder in folders:
        try:
            progress, weights, optimizer = _read(folder, run / "state.json")
        except UserError:
            raise
        except Exception as error:  # whatever a damaged file makes its reader say
            reason = one_line(error, 200)
            log.warning("%s: damaged (%s); going back to the checkpoint before it", folder, reason)
            continue
        _put(state, progress, weights, optimizer)
        if state.accelerator.is_main_process:
            _prune(folder.parent)
        return progress
    if folders:
        raise UserError(
            f"{run}: none of its checkpoints can be read; want another copy of it, or a new folder"
        )
    return {}


def _read(folder: Path, pointer: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], Any]:
    """A checkpoint's progress, weights and optimizer; any error: it is damaged."""
    source = pointer if _early(folder) else folder / PROGRESS
    if source != pointer:
        sums = (folder / SUMS).read_text().splitlines()
        for name in (WEIGHTS, OPTIMIZER, PROGRESS):
            if f"{_digest(folder / name)}  {name}" not in sums:
                raise ValueError(f"{name} is not what was written")
    progress: dict[str, Any] = json.loads(source.read_text())
    if progress["format"] > FORMAT:
        raise UserError(
            f"{source}: format {progress['format']} is newer than this version reads ({FORMAT})"
        )
    if progress["checkpoint"] != folder.name:
        raise ValueError(f"its progress is that of {progress['checkpoint']}")
    optimizer = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu")
    return progress, load((folder / WEIGHTS).read_bytes()), optimizer


def _put(
    state: TrainState, progress: dict[str, Any], weights: dict[str, torch.Tensor], optimizer: Any
) -> None:
    names, parameters = trained(state)
    with torch.no_grad():
        for key, parameter in zip(names, parameters, strict=True):
            parameter.copy_(shard_like(weights[f"policy.{key}"], parameter))
    # A refreshed LoRA exists only after the first refresh: it is made first, then filled.
    if any(key.startswith("reference.") for key in weights):
        state.model.refresh_reference()
        with torch.no_grad():
            for key, parameter in _refreshed(state).items():
                parameter.copy_(shard_like(weights[f"reference.{key}"], parameter))
    for number, moments in optimizer["state"].items():
        like = parameters[number]
        # Moments are cut as their parameter is; the counter of steps is one number for all.
        moments |= {
            key: shard_like(value, like)
            for key, value in moments.items()
            if value.shape == like.shape
        }
    state.optimizer.load_state_dict(optimizer)
    if state.ema is not None:
        for key, shadow in zip(names, state.ema.shadow_params, strict=True):
            shadow.copy_(shard_like(weights[f"ema.{key}"], shadow))
        state.ema.optimization_step = progress["ema_step"]
    if state.accelerator.scaler is not None and "scaler" in progress:
        state.accelerator.scaler.load_state_dict(progress["scaler"])
    state.step = progress["step"]
    state.denoiser_calls = progress["denoiser_calls"]
    state.memory = progress.get("memory", {})


def trained(state: TrainState) -> tuple[list[str], list[torch.nn.Parameter]]:
    """Names and values of what is trained, in the order of ``model.parameters()``."""
    pairs = [
        (f"{component}.{name.removeprefix('module.')}", parameter)
        for component, module in state.model.trainable.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    return [name for name, _ in pairs], [parameter for _, parameter in pairs]


def _refreshed(state: TrainState) -> dict[str, torch.nn.Parameter]:
    """The reference's own tensors, where it is no longer what training began with."""
    if state.model.reference != REFRESHED:
        return {}
    return {
        f"{component}.{name.removeprefix('module.')}": parameter
        for component, module in state.model.trainable.items()
        for name, parameter in module.named_parameters()
        if f".{REFRESHED}." in name
    }


def _early(folder: Path) -> bool:
    """Whether a checkpoint is of the first kind: no sums, and its progress in state.json alone."""
    return not any((folder / name).exists() for name in (PROGRESS, SUMS))


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
