"""The bundled emoji-sd, trained on real pictures: the adapter's laws on weights that mean
something.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from align_gen import bundled, pipelines
from align_gen.pipelines import LoraOptions, rollout, sample
from align_gen.pipelines.sampling import step_log_prob
from align_gen.training.recipe import Recipe

pytestmark = pytest.mark.slow

PROMPTS = ["a happy whale", "one lemon"]


def load() -> Any:
    model = pipelines.load(bundled.model_path("emoji-sd"))
    model.pipeline.set_progress_bar_config(disable=True)
    return model


def noise(count: int) -> Tensor:
    return torch.randn(count, 16, 8, 8, generator=Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_eta_0_is_the_pipelines_own_sampling(scale: float) -> None:
    """The pipeline came with DDIM: the same latents give the same pictures."""
    model, latents = load(), noise(2)
    options: dict[str, Any] = {
        "num_inference_steps": 6,
        "guidance_scale": scale,
        "latents": latents,
    }
    theirs = model.pipeline(PROMPTS, output_type="pt", **options).images
    assert torch.allclose(
        sample(model, model.encode_prompts(PROMPTS), **options), theirs, atol=1e-5
    )


def test_the_demos_clip_is_ten_times_the_noise_of_replay() -> None:
    """Drawn eight at a time, replayed one at a time, with the demo's steps, guidance and eta."""
    recipe, model = Recipe.load("emoji-sd-prdp"), load()
    sampling = recipe.sampling
    options: dict[str, Any] = {"eta": sampling.eta, "guidance_scale": sampling.guidance_scale}
    condition = model.encode_prompts([f"{i} cats" for i in range(8)])
    kept = rollout(
        model,
        condition,
        num_inference_steps=sampling.num_inference_steps,
        generator=Generator().manual_seed(1),
        **options,
    )
    with torch.no_grad():
        for i in range(8):
            rows = slice(i, i + 1)
            for column, step in enumerate(kept.stochastic.tolist()):
                again = step_log_prob(
                    model, kept, step, condition[rows], rows=rows, reduction="mean", **options
                )
                error = abs(again - kept.log_probs[rows, column])
                assert error < recipe.method.model_dump()["clip"] / 10


def test_a_lora_of_the_demos_kind_loads_in_plain_diffusers(tmp_path: Path) -> None:
    """Convolutions, feed-forward layers and attention, as the recipe trains them: the same
    pictures, and changed.
    """
    lora = Recipe.load("emoji-sd-prdp").model.lora
    assert lora is not None
    model = load()
    options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "latents": noise(2)}
    base = sample(model, model.encode_prompts(PROMPTS), **options)
    model.train_lora(LoraOptions(lora.rank, lora.alpha, lora.target_modules))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=Generator().manual_seed(2)), alpha=0.02
            )
    ours = sample(model, model.encode_prompts(PROMPTS), **options)
    assert float((ours - base).abs().max()) > 1e-2
    model.export(tmp_path)
    fresh = load().pipeline
    fresh.load_lora_weights(tmp_path)
    assert torch.allclose(fresh(PROMPTS, output_type="pt", **options).images, ours, atol=1e-5)
