"""Checkpoints whose sums fit and whose content cannot be true: passed over, nothing is taken."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align_gen.errors import UserError
from align_gen.methods.state import TrainState
from align_gen.training import checkpoint, saved
from tests.kits.states import equal, learn, state_of, sums_again, values

LAST = "checkpoints/step-000002"
GUARD = {"worse": 1, "best_step": 1, "best_rise": 0.5, "best_files": ["a.safetensors"]}
MEMORY = {"rewards": {"a cat": [0.5, 1.0]}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1 and 2, with all that may stand in one."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    state = state_of()
    for _ in range(2):
        learn(state)
        state.memory = MEMORY
        checkpoint.save(state, folder, GUARD, [{"step": state.step, "loss": 1.0}])
    return folder


@pytest.fixture(scope="module")
def state() -> TrainState:
    """A fresh run's, which each restore overwrites."""
    return state_of()


def forged(run: Path, copy: Path, change: Callable[[Path], None]) -> Path:
    """A copy of the run, its last checkpoint changed under sums that fit."""
    shutil.copytree(run, copy)
    change(copy / LAST)
    sums_again(copy / LAST)
    return copy


@cache
def after_one_step() -> dict[str, Any]:
    whole = state_of()
    learn(whole)
    return values(whole)


def require_fallback(state: TrainState, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The law: step 1 is loaded as it was written, and a warning names the other."""
    assert checkpoint.restore(state, run, 2)["step"] == 1
    assert equal(values(state), after_one_step())
    assert f"{LAST}: damaged (" in caplog.text and "going back" in caplog.text


WRONG: list[Any] = ["2", 1.5, -1, 3, 10**9, 10**400, None, True, [], {}, float("nan")]
PROGRESS = {
    "step": WRONG,
    "denoiser_calls": ["10", -1, 10**400, None, float("inf")],
    "ema_step": ["1", -1, 1.5, None],
    "worse": ["1", -1, 0.5, None],
    "best_step": ["1", -1, 3, None],
    "best_rise": ["0.5", -1, None, float("nan"), float("inf"), 10**400],
    "best_files": ["a", [1], None],
    "memory": [[], {"rewards": 5}, {"rewards": {"a": "b"}}, {"rewards": {"a": [None]}}],
    "checkpoint": ["step-000001", 2, None],
    "format": ["1", 0, -1, None, 1.0],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, wrong in PROGRESS.items() for value in wrong],
    ids=lambda value: f"{value!r:.20}",
)
def test_a_number_that_cannot_be_is_damage(
    run: Path,
    state: TrainState,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    key: str,
    value: Any,
) -> None:
    def change(folder: Path) -> None:
        file = folder / saved.PROGRESS
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    require_fallback(state, forged(run, tmp_path / "run", change), caplog)


@pytest.mark.parametrize("key", ["step", "format", "checkpoint", "denoiser_calls", "ema_step"])
def test_a_number_that_is_gone_is_damage(
    run: Path, state: TrainState, tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    def change(folder: Path) -> None:
        file = folder / saved.PROGRESS
        known = json.loads(file.read_text())
        del known[key]
        file.write_text(json.dumps(known))

    require_fallback(state, forged(run, tmp_path / "run", change), caplog)


@pytest.mark.parametrize("text", ["[]", "7", '"step"', "[" * 100_000, "{", "\ud800"])
def test_progress_that_is_no_object_is_damage(
    run: Path, state: TrainState, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    def change(folder: Path) -> None:
        (folder / saved.PROGRESS).write_bytes(text.encode(errors="surrogatepass"))

    require_fallback(state, forged(run, tmp_path / "run", change), caplog)


TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "gone": lambda value: None,
    "shape": lambda value: value[:-1].clone(),
    "turned": lambda value: value.T.contiguous(),
    "half": lambda value: value.half(),
    "whole": lambda value: value.long(),
    "nan": lambda value: value * float("nan"),
    "inf": lambda value: value + float("inf"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["policy", "ema"])
@pytest.mark.parametrize("harm", TENSORS)
def test_weights_of_another_kind_are_damage(
    run: Path,
    state: TrainState,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    harm: str,
) -> None:
    def change(folder: Path) -> None:
        tensors = load_file(folder / saved.WEIGHTS)
        (name,) = (each for each in tensors if each.startswith(f"{kind}."))
        value = TENSORS[harm](tensors.pop(name))
        save_file(tensors if value is None else {**tensors, name: value}, folder / saved.WEIGHTS)

    require_fallback(state, forged(run, tmp_path / "run", change), caplog)


@pytest.mark.parametrize("name", ["policy.other", "reference.denoiser.shift", "x"])
def test_foreign_weights_are_damage(
    run: Path, state: TrainState, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A reference that was refreshed is a LoRA's; this run trains every weight."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / saved.WEIGHTS)
        save_file({**tensors, name: torch.zeros(1)}, folder / saved.WEIGHTS)

    require_fallback(state, forged(run, tmp_path / "run", change), caplog)


def set_moment(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(content: dict[str, Any]) -> Any:
        content["state"][0][key] = value
        return content

    return change


OPTIMIZER: dict[str, Callable[[dict[str, Any]], Any]] = {
    "list": lambda content: [content],
    "no groups": lambda content: {"state": content["state"]},
    "empty groups": lambda content: {**content, "param_groups": []},
    "groups of words": lambda content: {**content, "param_groups": ["a"]},
    "no state": lambda content: {"param_groups": content["param_groups"]},
    "state list": lambda content: {**content, "state": [1]},
    "parameter 9999": lambda content: {**content, "state": {9999: content["state"][0]}},
    "parameter -1": lambda content: {**content, "state": {-1: content["state"][0]}},
    "parameter word": lambda content: {**content, "state": {"0": content["state"][0]}},
    "moments list": lambda content: {**content, "state": {0: []}},
    "moments lacking": lambda content: {**content, "state": {0: {"step": torch.tensor(1.0)}}},
    "shape": set_moment("exp_avg", torch.zeros(3)),
    "nan": set_moment("exp_avg", torch.full((1001, 2), float("nan"))),
    "below 0": set_moment("exp_avg_sq", torch.full((1001, 2), -1.0)),
    "double": set_moment("exp_avg_sq", torch.zeros(1001, 2).double()),
    "number": set_moment("exp_avg", 5),
    "step nan": set_moment("step", torch.tensor(float("nan"))),
    "step below 0": set_moment("step", torch.tensor(-1.0)),
    "step many": set_moment("step", torch.zeros(2)),
    "step word": set_moment("step", "1"),
    "more": set_moment("max_exp_avg_sq", torch.zeros(1001, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("harm", OPTIMIZER)
def test_moments_of_another_kind_are_damage(
    run: Path, state: TrainState, tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    def change(folder: Path) -> None:
        content = torch.load(folder / saved.OPTIMIZER, weights_only=True)
        torch.save(OPTIMIZER[harm](content), folder / saved.OPTIMIZER)

    require_fallback(state, forged(run, tmp_path / "run", change), caplog)


def test_a_learning_rate_of_the_file_decides_nothing(
    run: Path, state: TrainState, tmp_path: Path
) -> None:
    """The recipe says what it is; a forged one would be trained with, without a word."""

    def change(folder: Path) -> None:
        content = torch.load(folder / saved.OPTIMIZER, weights_only=True)
        content["param_groups"][0] |= {"lr": 1e9, "betas": (2.0, 2.0), "weight_decay": -1.0}
        torch.save(content, folder / saved.OPTIMIZER)

    assert checkpoint.restore(state, forged(run, tmp_path / "run", change), 2)["step"] == 2
    (group,) = state.optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.1, (0.9, 0.999), 0.01)


@pytest.mark.parametrize("text", ["words\n", '{"step": "2"}\n', '{"step": 1, "loss": "low"}\n'])
def test_metrics_that_are_none_are_damage(
    run: Path, state: TrainState, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    def change(folder: Path) -> None:
        (folder / saved.METRICS).write_text(text)

    require_fallback(state, forged(run, tmp_path / "run", change), caplog)


def test_when_all_are_forged_the_state_is_as_it_was(run: Path, tmp_path: Path) -> None:
    """Good weights beside bad moments: nothing of the checkpoint is taken over."""
    shutil.copytree(run, tmp_path / "run")
    for folder in (tmp_path / "run/checkpoints").iterdir():
        torch.save([], folder / saved.OPTIMIZER)
        sums_again(folder)
    state = state_of()
    before = values(state)
    with pytest.raises(UserError, match="none of its checkpoints can be read"):
        checkpoint.restore(state, tmp_path / "run", 2)
    assert equal(values(state), before)


def test_an_honest_one_is_loaded(run: Path, state: TrainState) -> None:
    """The oracle of all above: unforged, step 2 comes back with all that it was given."""
    found = checkpoint.restore(state, run, 2)
    assert {key: found[key] for key in GUARD} == GUARD
    assert (state.step, state.memory, found["metrics"]) == (2, MEMORY, [{"step": 2, "loss": 1.0}])
