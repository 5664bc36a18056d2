"""A recipe made ready to be timed."""

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from .. import bundled, methods
from ..methods.state import TrainState
from ..pipelines import Model
from ..pipelines.attention import use_attention
from ..precision import dtype_of
from ..reward_heads import RewardSet, reward_set
from ..training.data import Data
from ..training.engine import (
    draw_batch,
    load_data,
    load_model,
    prepare_model,
    prepare_state,
)
from ..training.memory import encode_and_free
from ..training.recipe import Recipe


@dataclass
class Setting:
    """A recipe made ready: everything that a step takes."""

    recipe: Recipe
    model: Model
    state: TrainState
    rewards: RewardSet
    data: Data

    @classmethod
    def of(cls, recipe: Recipe, accelerator: Accelerator, model: Any = None) -> "Setting":
        """Made ready as in ``finetune``; rewards are summed and stay on the device."""
        data = load_data(recipe)
        model = load_model(recipe, model)
        use_attention(
            model, recipe.model.attention, dtype_of(recipe.model.dtype), accelerator.device
        )
        prepare_model(recipe, model)
        state = prepare_state(recipe, model, accelerator)
        if recipe.memory.free_text_encoders:
            encode_and_free(model, ["", *data.prompts])
        rewards = reward_set(bundled.reward_spec(recipe.rewards)).to(accelerator.device)
        return cls(recipe, model, state, rewards, data)

    @property
    def images(self) -> int:
        options = self.recipe.method_options()
        return int(options.images_per_prompt * options.prompts_per_step)

    def step(self) -> None:
        """The next step of the run."""
        batch = draw_batch(self.data, self.recipe, self.state)
        take_step = methods.load(self.recipe.method["name"]).step
        options = self.recipe.method_options()
        take_step(self.state, batch, self.model, self.rewards, options, self.recipe.sampling)
        self.state.step += 1
