"""Checkpoints that a kill at any moment cannot tear: written aside, synced, renamed; the pointer moves last."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .errors import UserError
from .gallery import whole_file
from .state import TrainState

FORMAT = 1
KEEP = 2


def save(state: TrainState, run: Path, more: dict[str, Any]) -> None:
    """Write ``checkpoints/step-…`` and then ``state.json``, which names it. The two newest are kept."""
    name = f"step-{state.step:06d}"
    folder, part = run / "checkpoints" / name, run / "checkpoints" / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    names, parameters = trained(state)
    weights = {f"policy.{key}": value.detach().cpu().contiguous() for key, value in zip(names, parameters, strict=True)}
    progress: dict[str, Any] = {"format": FORMAT, "step": state.step, "denoiser_calls": state.denoiser_calls, **more}
    if state.ema is not None:
        shadows = zip(names, state.ema.shadow_params, strict=True)
        weights |= {f"ema.{key}": value.detach().cpu().clone() for key, value in shadows}
        progress["ema_step"] = state.ema.optimization_step
    if state.accelerator.scaler is not None:  # fp16's loss scale
        progress["scaler"] = state.accelerator.scaler.state_dict()
    save_file(weights, part / "weights.safetensors")
    torch.save(state.optimizer.state_dict(), part / "optimizer.pt")
    for file in part.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    with whole_file(run / "state.json") as stream:
        stream.write(json.dumps({**progress, "checkpoint": name}, indent=1).encode())
    for old in sorted(folder.parent.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def load(state: TrainState, run: Path) -> dict[str, Any]:
    """Restore the checkpoint that ``state.json`` names; returns what ``save`` was given besides. No file: {}."""
    file = run / "state.json"
    if not file.is_file():
        return {}
    progress: dict[str, Any] = json.loads(file.read_text())
    if progress.get("format", 0) > FORMAT:
        raise UserError(f"{file}: format {progress['format']} is newer than this version reads ({FORMAT})")
    folder = run / "checkpoints" / Path(progress["checkpoint"]).name
    weights = load_file(folder / "weights.safetensors")
    names, parameters = trained(state)
    with torch.no_grad():
        for key, parameter in zip(names, parameters, strict=True):
            parameter.copy_(weights[f"policy.{key}"])
    state.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    if state.ema is not None:
        for key, shadow in zip(names, state.ema.shadow_params, strict=True):
            shadow.copy_(weights[f"ema.{key}"])
        state.ema.optimization_step = progress["ema_step"]
    if state.accelerator.scaler is not None and "scaler" in progress:
        state.accelerator.scaler.load_state_dict(progress["scaler"])
    state.step, state.denoiser_calls = progress["step"], progress["denoiser_calls"]
    return progress


def trained(state: TrainState) -> tuple[list[str], list[torch.nn.Parameter]]:
    """Names and values of what is trained, in the order of ``model.parameters()``."""
    found = [
        (f"{component}.{name.removeprefix('module.')}", parameter)
        for component, module in state.model.trainable.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    return [name for name, _ in found], [parameter for _, parameter in found]
