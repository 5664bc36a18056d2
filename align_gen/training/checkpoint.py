"""Checkpoints that a kill at any moment cannot tear, and that show whether they were damaged since.

``checkpoints/step-000010`` is whole in itself: ``weights.safetensors`` (what is trained, its
average, and a reference that was refreshed), ``optimizer.pt``, ``progress.json`` (counters),
``metrics.jsonl`` (the run's lines until then) and ``SHA256SUMS`` of these, which ``sha256sum -c``
reads too. It is written aside, synced and renamed. ``state.json`` in the run directory says which
is the newest, for whoever looks.

Only folders of the very name, which say themselves that they are the checkpoint of that name, are
loaded, counted or removed.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..distributed import shard_like, unshard
from ..errors import RunFailure, UserError, one_line
from ..files import clear_below, move, remove, whole_file, whole_folder
from ..methods.state import TrainState
from ..pipelines.trainable import REFRESHED
from ..run_folder import RunFolder
from .divergence import require_finite
from .journal import Numbers, as_lines
from .saved import FORMAT, METRICS, OPTIMIZER, PROGRESS, SUMS, WEIGHTS, Saved, digest, is_ours

log = logging.getLogger("align_gen")
KEEP = 2


def save(
    state: TrainState, run: Path, more: dict[str, Any], metrics: Sequence[Numbers] = ()
) -> None:
    """Write the checkpoint of ``state.step``, one process for all; the two newest are kept.

    Args:
        more: what else the run needs to go on, as JSON.
        metrics: the run's lines until now, from which a lost metrics.jsonl is made again.

    Raises:
        Diverged: what is learned is not finite; the checkpoints before it stand as they did.
        RunFailure: it cannot be written; the same.
    """
    require_finite(state, run)
    writes = state.accelerator.is_main_process
    if writes or state.sharded:
        weights, optimizer = _gathered(state)
    if writes:
        _save(state, run, more, metrics, weights, optimizer)
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
    metrics: Sequence[Numbers],
    weights: dict[str, torch.Tensor],
    optimizer: dict[str, Any],
) -> None:
    place = RunFolder(run)
    folder = place.checkpoint(state.step)
    # Progress names its checkpoint, so that a folder that was renamed by hand is noticed.
    progress = _progress(state) | more | {"checkpoint": folder.name}
    text = json.dumps(progress, indent=1)
    files = (WEIGHTS, OPTIMIZER, PROGRESS, METRICS)
    try:
        if folder.exists() and not is_ours(folder, place.state):
            _put_aside(folder)
        with whole_folder(folder) as part:
            tensors = {key: value.cpu().contiguous() for key, value in weights.items()}
            save_file(tensors, part / WEIGHTS)
            torch.save(optimizer, part / OPTIMIZER)
            (part / PROGRESS).write_text(text)
            (part / METRICS).write_bytes(as_lines(metrics))
            (part / SUMS).write_text("".join(f"{digest(part / file)}  {file}\n" for file in files))
        _point(place, text)
    # a full disk speaks otherwise through safetensors, through torch and through Python
    except Exception as error:
        raise RunFailure(f"{folder}: cannot be written ({one_line(error)})") from error
    _prune(place)


def _point(place: RunFolder, text: str) -> None:
    with whole_file(place.state) as stream:
        stream.write(text.encode())


def _prune(place: RunFolder) -> None:
    """Remove our checkpoints but the two newest, and what killed writes left."""
    folders = map(place.checkpoint, place.saved_steps())
    for old in [folder for folder in folders if is_ours(folder, place.state)][:-KEEP]:
        remove(old)
    clear_below(place.checkpoints)


def _put_aside(folder: Path) -> None:
    """Rename a folder that is damaged, or none of ours, from where a checkpoint belongs."""
    names = (f"{folder.name}.damaged{number}" for number in ("", *range(2, 10**6)))
    aside = next(path for path in map(folder.with_name, names) if not path.exists())
    move(folder, aside)
    log.warning("%s: is no whole checkpoint; kept as %s", folder, aside.name)


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


def restore(state: TrainState, run: Path, steps: int | None = None) -> dict[str, Any]:
    """Load the newest whole checkpoint; returns what ``save`` was given besides, {} without one.

    "metrics" are the lines of the run, or None in an early checkpoint. A damaged checkpoint, or one
    whose content cannot be true, is passed over, with a warning, for the one before; nothing of it
    reaches ``state``.

    Args:
        steps: of the run; a checkpoint of a later step cannot be its own.

    Raises:
        UserError: there are checkpoints, and none of them can be read; or one is of a later format.
    """
    place = RunFolder(run)
    named = dict(zip(*trained(state), strict=True))
    damaged = []
    folders = [*map(place.checkpoint, reversed(place.saved_steps()))]
    for folder in folders:
        try:
            saved = Saved.read(folder, place.state)
            saved.require_fit(state, named, 10**12 if steps is None else steps)
        except UserError:
            raise
        except Exception as error:  # whatever a damaged file makes its reader say
            reason = one_line(error, 200)
            log.warning("%s: damaged (%s); going back to the checkpoint before it", folder, reason)
            damaged.append(folder)
            continue
        # Only now, when all of it is known to fit, is anything changed.
        _put(state, saved.progress, saved.weights, saved.optimizer)
        state.accelerator.wait_for_everyone()
        if state.accelerator.is_main_process:
            _tidy(place, saved.progress, damaged)
        return {**saved.progress, "metrics": saved.metrics}
    if folders:
        raise UserError(
            f"{run}: none of its checkpoints can be read; want another copy of it, or a new folder"
        )
    return {}


def _tidy(place: RunFolder, progress: dict[str, Any], damaged: list[Path]) -> None:
    """Leave the run as a kill right after this checkpoint was written would have."""
    # Ours, and torn since: it would count as one of the two that are kept. Copies stay as they are.
    for folder in damaged:
        if is_ours(folder, place.state):
            _put_aside(folder)
    _prune(place)
    # A kill between a checkpoint and the pointer to it leaves that of the one before.
    text = json.dumps(progress, indent=1)
    if not place.state.is_file() or place.state.read_bytes() != text.encode():
        _point(place, text)


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
    # Learning rate and the like are the recipe's: the file has them too, and decides nothing.
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": optimizer["state"], "param_groups": groups})
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
