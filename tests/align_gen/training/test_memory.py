"""Memory of a step grows with nothing but the micro-batch, whatever the method."""

import pytest
import torch
from accelerate import Accelerator

from align_gen.methods.batches import Batch, Media, Pairs, Prompts
from align_gen.peak_memory import PeakMemory
from align_gen.pipelines import Model
from align_gen.reward_heads import reward_set
from align_gen.training.recipe import Recipe
from align_gen.training.setup import load_model, prepare_model, prepare_state
from tests.kits.methods import batch_kind, step_of

pytestmark = pytest.mark.slow

SMALL = ["model.lora.rank=2", "optim.micro_batch=2", "optim.ema=null"]
GIVEN = {"dpo, given": "pairs", "sft": "media"}  # what these learn from; the others draw
METHODS = {  # PRDP learns from all: `keep` would make the growth that is looked for smaller
    "prdp": (
        "{name: prdp, images_per_prompt: 4, prompts_per_step: 1, gradient_steps: 2, clip: 1.0e+9}"
    ),
    "ddpo": "{name: ddpo, images_per_prompt: 4, prompts_per_step: 1, clip: 1.0e+9}",
    "grpo": "{name: grpo, images_per_prompt: 4, prompts_per_step: 1, kl: 0.1, clip: 1.0e+9}",
    "nft": "{name: nft, images_per_prompt: 4, prompts_per_step: 1, times_per_image: 2}",
    "rwr": "{name: rwr, images_per_prompt: 4, prompts_per_step: 1, min_ess: 1}",
    "raft": "{name: raft, images_per_prompt: 2, prompts_per_step: 2}",
    "dpo": "{name: dpo, online: true, images_per_prompt: 4, prompts_per_step: 1}",
    "dpo, given": "{name: dpo, prompts_per_step: 2}",
    "sft": "{name: sft, prompts_per_step: 4}",
}


def batch_of(model: Model, kind: str, count: int, prompts: int) -> Batch:
    """One of the kind: prompts, or ``count`` pictures that are there already, in pairs or one by
    one.
    """
    rows = {"prompts": prompts, "pairs": count // 2, "media": count}[kind]
    texts, ids = [f"apple {number}" for number in range(rows)], list(range(rows))
    condition = model.encode_prompts(texts, height=64, width=64)
    media = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    if kind == "prompts":
        return Prompts(texts, condition, ids)
    return (
        Media(texts, condition, ids, media)
        if kind == "media"
        else Pairs(texts, condition, ids, *media.chunk(2))
    )


def peak_of_a_step(name: str, steps: int, times: int) -> int:
    """Bytes at the peak of a step, without the latents and pictures that it keeps of each of its
    ``times`` x 4.
    """
    given = [f"data.{GIVEN[name]}=unread", "prompts.train=null"] if name in GIVEN else []
    sampling = (
        f"sampling={{num_inference_steps: {steps}, guidance_scale: 3.0, height: 64, width: 64}}"
    )
    recipe = Recipe.load("emoji-sd-prdp", [f"method={METHODS[name]}", sampling, *SMALL, *given])
    options = recipe.method
    prompts = options.prompts_per_step * times
    options = options.model_copy(update={"prompts_per_step": prompts})
    count = 4 * times

    model = load_model(recipe)
    prepare_model(recipe, model)
    state = prepare_state(recipe, model, Accelerator(cpu=True))
    batch = batch_of(model, batch_kind(options), count, prompts)
    rewards = reward_set(["sharpness"])
    with PeakMemory() as memory:
        step_of(state, batch, options, rewards, recipe.sampling)
    latent = torch.Size(model.latent_shape(64, 64)).numel()
    return memory.peak - 4 * count * ((steps + 1) * latent + 3 * 64 * 64)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_twice_the_size_costs_no_more(name: str) -> None:
    """Twice the denoising steps or twice the prompts at one micro-batch: at most a tenth more,
    which is bookkeeping.
    """
    before = peak_of_a_step(name, steps=3, times=1)
    assert peak_of_a_step(name, steps=3, times=2) <= 1.1 * before
    if name not in GIVEN:
        assert peak_of_a_step(name, steps=6, times=1) <= 1.1 * before
