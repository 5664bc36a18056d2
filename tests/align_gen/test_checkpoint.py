"""Checkpoints: everything comes back, and whatever a kill interrupts, a whole one is named."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from align_gen import checkpoint, pipelines
from align_gen.errors import UserError
from align_gen.state import TrainState


def state_of(*, ema: bool = True) -> TrainState:
    model = pipelines.load("toy-flow", means=((0.0, 1.0),))
    model.train_full()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    average = EMAModel(model.parameters(), decay=0.9) if ema else None
    return TrainState(model, optimizer, Accelerator(cpu=True), max_grad_norm=1.0, ema=average)


def learn(state: TrainState) -> None:
    """One update that depends on the step alone."""
    noise = torch.randn(1001, 2, generator=torch.Generator().manual_seed(state.step))
    state.backward((state.model.parameters()[0] * noise).sum())
    state.update()
    state.step += 1
    state.denoiser_calls += 10


def values(state: TrainState) -> dict[str, Any]:
    found: dict[str, Any] = {"policy": state.model.parameters()[0].detach().clone(), "step": state.step}
    found |= {"calls": state.denoiser_calls}
    if state.ema is not None:
        found |= {"ema": state.ema.shadow_params[0].clone(), "ema_step": state.ema.optimization_step}
    return found


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


@pytest.mark.parametrize("ema", [True, False])
def test_going_on_from_a_checkpoint_is_going_on(tmp_path: Path, ema: bool) -> None:
    """Two updates, saved, loaded into a fresh state, two more = four updates; moments and average too."""
    whole, first, second = state_of(ema=ema), state_of(ema=ema), state_of(ema=ema)
    for _ in range(4):
        learn(whole)
    for _ in range(2):
        learn(first)
    checkpoint.save(first, tmp_path, {"worse": 3})
    assert checkpoint.load(second, tmp_path)["worse"] == 3
    assert equal(values(second), values(first))
    for _ in range(2):
        learn(second)
    assert equal(values(second), values(whole))


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    state = state_of()
    before = values(state)
    assert checkpoint.load(state, tmp_path) == {}
    assert equal(values(state), before)


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    state = state_of()
    for _ in range(4):
        learn(state)
        checkpoint.save(state, tmp_path, {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000003", "step-000004"]
    assert json.loads((tmp_path / "state.json").read_text())["checkpoint"] == "step-000004"


@pytest.mark.parametrize("kill_at", [1, 2])
def test_a_kill_while_saving_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """The first rename brings the folder, the second the pointer; stopped at either, step 1 is still what loads.

    Saving again afterwards clears what was left.
    """
    state = state_of()
    learn(state)
    checkpoint.save(state, tmp_path, {})
    first, renames, real = values(state), [0], os.replace
    learn(state)

    def replace(*names: Any) -> None:
        renames[0] += 1
        if renames[0] == kill_at:
            raise KeyboardInterrupt
        real(*names)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(state, tmp_path, {})
    monkeypatch.undo()
    loaded = state_of()
    checkpoint.load(loaded, tmp_path)
    assert equal(values(loaded), first)
    learn(loaded)
    checkpoint.save(loaded, tmp_path, {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000001", "step-000002"]


def test_a_format_of_the_future_is_refused(tmp_path: Path) -> None:
    state = state_of()
    checkpoint.save(state, tmp_path, {})
    file = tmp_path / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": checkpoint.FORMAT + 1}))
    with pytest.raises(UserError, match=r"state\.json: format 2 is newer than this version reads \(1\)"):
        checkpoint.load(state, tmp_path)


def test_a_pointer_out_of_the_run_is_not_followed(tmp_path: Path) -> None:
    """A run directory may come from someone else; state.json names a folder under checkpoints/ and no other."""
    state = state_of()
    learn(state)
    checkpoint.save(state, tmp_path / "run", {})
    shutil.move(tmp_path / "run/checkpoints/step-000001", tmp_path / "elsewhere")
    file = tmp_path / "run/state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"checkpoint": "../../elsewhere"}))
    with pytest.raises(OSError):
        checkpoint.load(state_of(), tmp_path / "run")


def test_optimizer_files_run_no_code(tmp_path: Path) -> None:
    """A pickle that would call something is refused, because only tensors and plain values are read."""

    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    state = state_of()
    checkpoint.save(state, tmp_path, {})
    torch.save(Trap(), tmp_path / "checkpoints/step-000000/optimizer.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpoint.load(state, tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_names_do_not_depend_on_wrappers() -> None:
    """What DDP prefixes with "module." has the same name in the file."""
    state = state_of()
    plain, _ = checkpoint.trained(state)
    wrapped = torch.nn.Module()
    wrapped.module = state.model.trainable["denoiser"]
    state.model.trainable["denoiser"] = wrapped
    assert checkpoint.trained(state)[0] == plain == ["denoiser.shift"]
