"""A run that diverges says so, blames no reward, and keeps a checkpoint to go on from."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from torch import Tensor

from align_gen import Recipe, finetune
from align_gen.methods import METHODS
from align_gen.opening import open_model
from align_gen.reward_heads import RewardFailure, reward_set
from align_gen.training import checkpoint
from align_gen.training.divergence import Diverged, blamed_rightly, require_finite_step
from tests.kits.runs import given_media, given_pairs, held_out_only, lines, small_recipe
from tests.kits.states import learn, state_of

STEPS = 6
# What each method needs besides, to learn from two pictures of two prompts.
MORE: dict[str, dict[str, Any]] = {"rwr": {"min_ess": 1.0}, "dpo": {}, "sft": {}}


def wild(method: str, folder: Path, model: Path, lr: float) -> Recipe:
    """A recipe of this learning rate."""
    sections: dict[str, Any] = {}
    if method == "dpo":
        sections = {"data": {"pairs": str(given_pairs(folder))}}
    elif method == "sft":
        sections = {"data": {"media": str(given_media(folder, 2))}}
    if sections:
        sections |= {
            "prompts": held_out_only(folder),
            "rewards": {},
            "eval_rewards": {"jpeg_size": 1.0},
        }
    options = {"name": method, **MORE.get(method, {})}
    if method == "sft":
        options["images_per_prompt"] = 1
    recipe = small_recipe(folder, model, options, **sections)
    return recipe.replace(optim={"lr": lr}, run={"steps": STEPS})


def require_kept_finite(run: Path) -> int:
    """The law: whatever is kept is finite, and so is every loss that was told; the last step."""
    steps = []
    for folder in (run / "checkpoints").glob("step-*"):
        for name, value in load_file(folder / "weights.safetensors").items():
            assert bool(value.isfinite().all()), f"{folder.name}: {name}"
        steps.append(int(folder.name[5:]))
    for line in lines(run):
        assert all(map(math.isfinite, line.values())), line
    return max(steps, default=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_that_it_diverged(tiny_folder: Path, tmp_path: Path, method: str) -> None:
    with pytest.raises(Diverged) as error:
        finetune(wild(method, tmp_path, tiny_folder, 1e3), tmp_path / "run")
    last = require_kept_finite(tmp_path / "run")
    told = str(error.value)
    assert told.startswith("diverged at step ") and "optim.lr below 1000" in told
    assert (f"step {last} is kept and finite" if last else "nothing was saved yet") in told
    assert "reward" not in told and "\n" not in told


@pytest.mark.slow
def test_the_way_back_that_is_told_leads_back(tiny_folder: Path, tmp_path: Path) -> None:
    """Ended at the step that is kept, the run has its gallery, and an export that loads."""
    recipe = wild("grpo", tmp_path, tiny_folder, 1e3)
    with pytest.raises(Diverged, match=r"run\.steps=2 ends this run there"):
        finetune(recipe, tmp_path / "run")
    run = finetune(recipe.replace(run={"steps": 2}), tmp_path / "run")
    assert [line["step"] for line in run.metrics] == [0, 1, 2]
    open_model(str(tiny_folder), adapter=tmp_path / "run/export")


def huge(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return media[:, 1].mean((1, 2)) * 1e37


@pytest.mark.slow
def test_rewards_of_which_the_loss_is_infinite_are_told(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = wild("prdp", tmp_path, tiny_folder, 1e-4).replace(rewards={huge: 1.0})
    with pytest.raises(Diverged, match=r"step 1: loss is inf; .* rewards of a smaller weight"):
        finetune(recipe, tmp_path / "run")
    assert require_kept_finite(tmp_path / "run") == 0


# --- what is looked at ----------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_of_a_step_that_is_none(tmp_path: Path, key: str, value: float) -> None:
    state = state_of()
    state.step = 7
    with pytest.raises(Diverged, match=f"diverged at step 7: {key} is {value}; nothing was saved"):
        require_finite_step({"loss": 1.0, key: value}, state, tmp_path)
    require_finite_step({"loss": 1.0, "reward/std": value}, state, tmp_path)


@pytest.mark.parametrize("where", ["weights", "average", "moments"])
def test_nothing_that_is_not_finite_is_saved(tmp_path: Path, where: str) -> None:
    """Neither is the checkpoint before pushed out."""
    state = state_of()
    learn(state)
    checkpoint.save(state, tmp_path, {})
    learn(state)
    (parameter,) = state.model.parameters()
    assert state.ema is not None
    tensors = {
        "weights": parameter.data,
        "average": state.ema.shadow_params[0],
        "moments": state.optimizer.state[parameter]["exp_avg"],
    }
    tensors[where][0, 0] = float("nan")
    with pytest.raises(Diverged, match=f"step 2: the .*{where[:6]}.* are not finite; step 1 is"):
        checkpoint.save(state, tmp_path, {})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_a_skipped_step_is_no_divergence(tmp_path: Path) -> None:
    """The loss times fp16's first scale overflows: the step changes nothing, and is not counted."""
    state = state_of(ema=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    state.accelerator.scaler = scaler
    state.optimizer = AcceleratedOptimizer(state.optimizer, scaler=scaler)
    state.accelerator._optimizers = [state.optimizer]
    (parameter,) = state.model.parameters()
    before = parameter.detach().clone()
    scaler.scale(parameter.sum() * 1e30).backward()
    norm = state.update()
    assert not math.isfinite(norm) and torch.equal(parameter, before)
    require_finite_step({"loss": 1.0, "grad_norm": norm}, state, tmp_path)

    # At no scale finite: it is the gradient that overflows, and not the scale.
    scaler.update(1e-4)
    with pytest.raises(Diverged, match="grad_norm is"):
        require_finite_step({"loss": 1.0, "grad_norm": norm}, state, tmp_path)
    with pytest.raises(Diverged, match="loss is nan"):
        require_finite_step({"loss": float("nan")}, state, tmp_path)


# --- who is to blame ------------------------------------------------------------------------------


def brightness(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return media.mean((1, 2, 3))


def test_pictures_that_are_none_are_no_fault_of_a_reward(tmp_path: Path) -> None:
    state = state_of()
    state.step = 3
    rewards = reward_set([brightness])
    broken = torch.full((2, 3, 4, 4), float("nan"))
    with (
        pytest.raises(Diverged, match="diverged at step 4: the pictures that are drawn are not"),
        blamed_rightly(state, tmp_path, 4),
    ):
        rewards(broken, ["a", "b"])


def test_a_reward_that_fails_on_whole_pictures_is_named(tmp_path: Path) -> None:
    def sour(media: Tensor, prompts: Sequence[str]) -> Tensor:
        return brightness(media, prompts) * float("nan")

    state = state_of()
    with (
        pytest.raises(RewardFailure, match=r"'test_a_reward.*sour' returned 2 non-finite"),
        blamed_rightly(state, tmp_path, 1),
    ):
        reward_set([sour])(torch.zeros(2, 3, 4, 4), ["a", "b"])
    # Weights come first: what they draw is no reward's fault, even where it looks whole.
    with torch.no_grad():
        state.model.parameters()[0][0, 0] = float("inf")
    with (
        pytest.raises(Diverged, match="step 1: the weights are not finite"),
        blamed_rightly(state, tmp_path, 1),
    ):
        reward_set([sour])(torch.zeros(2, 3, 4, 4), ["a", "b"])
