"""A recipe made ready: what is wrong with it is found before anything is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen import Recipe, finetune, pipelines
from align_gen.errors import UserError
from align_gen.reward_heads import reward_set
from align_gen.training import setup
from tests.tiny import PIPELINES

# --- mistakes -------------------------------------------------------------------------------------


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "size": ({"sampling": {"height": 17}}, "17"),
    "tracker": ({"run": {"tracker": "scoreboard"}}, "scoreboard"),
    "tracker that is not installed": (
        {"run": {"tracker": "aim"}},
        r"run\.tracker: 'aim' is not installed",
    ),
    "more steps than the schedule has": ({"sampling": {"num_inference_steps": 2000}}, "2000"),
    "more steps than the schedule has, to measure": (
        {"evaluate": {"num_inference_steps": 2000}},
        "2000",
    ),
    "a column of the prompts named as a reward": (
        {"eval_rewards": {"prompt": {"name": "jpeg_size"}}},
        "'prompt'",
    ),
    "reward that is no callable": ({"rewards": {"z": {"name": 5}}}, "5: want a name or a callable"),
    "target modules": ({"model": {"lora": {"target_modules": ["to_nothing"]}}}, "to_nothing"),
    "adapter": ({"model": {"adapter": "nowhere"}}, "nowhere"),
    "model": ({"model": {"path": "nowhere"}}, "nowhere"),
    "train prompts": ({"prompts": {"train": "nowhere.txt"}}, "nowhere"),
    "reward": ({"rewards": {"nothing": 1.0}}, "'nothing'; have .*jpeg_size"),
    "reward's option": ({"rewards": {"mean_hue": {"heu": 1.0}}}, "mean_hue.*heu"),
    "reward's value": ({"rewards": {"mean_hue": {"hue": "green"}}}, "mean_hue|hue"),
    "reward's weight": ({"rewards": {"mean_hue": {"weight": "much"}}}, "mean_hue|weight"),
    "reward of nothing": ({"rewards": {"mean_hue": [1.0]}}, "mean_hue"),
    "held-out reward": ({"eval_rewards": {"nothing": 1.0}}, "nothing"),
}


@pytest.mark.parametrize("case", sorted(MISTAKES))
def test_a_mistake_is_found_before_anything_is_written(
    recipe: Recipe, tmp_path: Path, case: str
) -> None:
    change, pattern = MISTAKES[case]
    with pytest.raises(UserError, match=pattern) as error:
        finetune(recipe.replace(**change), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_missing_context_is_named(recipe: Recipe, tmp_path: Path) -> None:
    def like_the_map(media: Tensor, prompts: Sequence[str], control: Tensor) -> Tensor:
        return -(media - control).abs().mean((1, 2, 3))

    like_the_map.required_context = ("control",)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"like_the_map' needs 'control'"):
        finetune(recipe.replace(rewards={like_the_map: 1.0}), tmp_path / "run")
    with pytest.raises(UserError, match=r"like_the_map' needs 'control'"):
        finetune(recipe.replace(eval_rewards={like_the_map: 1.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_rewards_of_one_name_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    """The held-out one would take the optimised one's column, and the report would measure a run by
    what it optimised.
    """

    def brightness(media: Tensor, prompts: Sequence[str]) -> Tensor:
        return media.mean((1, 2, 3))

    optimised = brightness

    def brightness(media: Tensor, prompts: Sequence[str]) -> Tensor:  # type: ignore[no-redef]
        return -media.mean((1, 2, 3))

    with pytest.raises(UserError, match="brightness"):
        finetune(
            recipe.replace(rewards={optimised: 1.0}, eval_rewards={brightness: 1.0}),
            tmp_path / "run",
        )


def test_a_family_that_wants_pictures_is_refused_before_anything_is_written(
    recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"ControlNet wants \('control',\) beside each prompt, which no recipe has"
    ):
        finetune(recipe, tmp_path / "run", model=PIPELINES["controlnet"]())
    assert not (tmp_path / "run").exists()


# --- what is made ready ---------------------------------------------------------------------------


def test_a_reward_without_options_has_weight_one() -> None:
    """In YAML a ``jpeg_size:`` with nothing behind it is None; what else could it mean."""
    assert reward_set({"jpeg_size": None}).weights == {"jpeg_size": 1.0}


@pytest.mark.slow
def test_a_failure_before_the_first_step_gives_the_model_back(
    recipe: Recipe, tiny_folder: Path, tmp_path: Path
) -> None:
    model = pipelines.load(str(tiny_folder))
    # What is compared once the model is ready.
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    (tmp_path / "inputs.json").write_text("{")
    with pytest.raises(UserError, match=r"inputs\.json: cannot be read"):
        finetune(recipe, tmp_path, model=model)
    assert not model.parameters() and not getattr(model.pipeline.unet, "peft_config", {})
    wider = recipe.replace(model={"lora": {"rank": 3}}, evaluate={"every": 0}, run={"steps": 1})
    assert finetune(wider, tmp_path / "run", model=model).metrics[-1]["step"] == 1


@pytest.mark.slow
def test_in_half_precision_training_starts_at_its_reference(recipe: Recipe) -> None:
    """Full training in bf16: float32 weights under autocast. A copy that ran otherwise would show a
    KL of its own.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    half = recipe.replace(model={"lora": None, "dtype": "bf16"})
    AcceleratorState._reset_state(reset_partial_state=False)
    model = setup.load_model(half)
    setup.prepare_model(half, model)
    setup.prepare_state(half, model, Accelerator(cpu=True, mixed_precision="bf16"))
    condition, t = model.encode_prompts(["a cat"]), torch.tensor(301.0)
    latents = torch.randn(1, *condition.latent_shape)
    with torch.no_grad():
        policy = model.predict(latents, t, condition, 2.0)
    with model.as_reference():
        assert torch.equal(model.predict(latents, t, condition, 2.0), policy)
