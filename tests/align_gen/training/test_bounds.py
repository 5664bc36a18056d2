"""Numbers that no machine can hold are refused by the key, at once; what is ordinary is not."""

from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from align_gen import Recipe, pipelines
from align_gen.errors import UserError
from align_gen.pipelines import Model
from align_gen.training.bounds import memory_of, require_memory, require_single_precision
from tests.kits.runs import small_recipe

MANY = 10**9


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return pipelines.load(str(tiny_folder))


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> Recipe:
    return small_recipe(tmp_path, tiny_folder, {"name": "grpo"})


def require(recipe: Recipe, model: Model, held_out: int = 4) -> None:
    require_memory(recipe, model, held_out, Accelerator(cpu=True))


def test_an_ordinary_recipe_fits(recipe: Recipe, model: Model) -> None:
    require(recipe, model)
    require_single_precision(recipe)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("method", "images_per_prompt", MANY),
        ("method", "images_per_prompt", 10**400),
        ("method", "prompts_per_step", 10**8),
        ("sampling", "num_inference_steps", 10**12),
        ("sampling", "height", MANY * 8),
        ("sampling", "width", MANY * 8),
        ("evaluate", "num_inference_steps", 10**12),
    ],
)
def test_a_number_that_no_machine_holds_is_named(
    recipe: Recipe, model: Model, section: str, key: str, value: int
) -> None:
    with pytest.raises(UserError) as error:
        require(recipe.replace(**{section: {key: value}}), model)
    told = str(error.value)
    assert told.startswith(f"{section}.{key}: ") and "GiB of memory at least" in told
    assert "want a smaller one" in told and len(told) < 200


def test_a_rank_that_no_machine_holds_is_named(recipe: Recipe, model: Model) -> None:
    for lora in ({"rank": MANY}, {"rank": MANY * 100, "target_modules": "to_q"}):
        with pytest.raises(UserError, match=r"^model\.lora\.rank: .* GiB of memory at least"):
            require(recipe.replace(model={"lora": lora}), model)


def test_a_batch_of_a_gallery_is_at_most_its_pictures(recipe: Recipe, model: Model) -> None:
    wide = recipe.replace(evaluate={"batch_size": 10**12})
    require(wide, model)
    with pytest.raises(UserError, match=r"^evaluate\.batch_size: "):
        require(wide, model, held_out=10**9)


def test_a_rank_counts_its_weights(recipe: Recipe, model: Model) -> None:
    """By arithmetic: what peft makes of rank 2 is half of what rank 4 takes by our count."""
    from align_gen.pipelines import LoraOptions
    from align_gen.training.bounds import _adapted_widths

    widths = _adapted_widths(model, model.default_lora_targets)
    fresh = pipelines.load(recipe.model.path)
    fresh.train_lora(LoraOptions(2))
    assert sum(each.numel() for each in fresh.parameters()) == 2 * widths


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("sampling", {"guidance_scale": 1e308}),
        ("evaluate", {"guidance_scale": 1e39}),
        ("optim", {"lr": 1e308}),
        ("optim", {"weight_decay": 1e300}),
    ],
)
def test_a_number_beyond_single_precision_is_named(
    recipe: Recipe, section: str, values: dict[str, Any]
) -> None:
    (key,) = values
    with pytest.raises(UserError, match=rf"^{section}\.{key}: .* infinite in single precision"):
        require_single_precision(recipe.replace(**{section: values}))


def test_the_memory_of_a_machine() -> None:
    """More than a process of tests takes, and less than anyone has."""
    assert 10**8 < memory_of(Accelerator(cpu=True).device) < 10**14
