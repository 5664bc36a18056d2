"""Laws that every adapter of a diffusers pipeline keeps, on tiny random ones saved and loaded again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from align_gen import pipelines
from align_gen.pipelines import LoraOptions, Model, sample
from tests.tiny import PIPELINES

PROMPTS = ["a red cat", "two dogs"]


def load(folder: Path) -> Model:
    model = pipelines.load(folder)
    model.pipeline.set_progress_bar_config(disable=True)
    return model


@pytest.fixture(scope="module", params=PIPELINES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    PIPELINES[request.param]().save_pretrained(path)
    return path


def options(model: Model, scale: float = 3.0) -> dict[str, Any]:
    shape = model.latent_shape(*model.default_size)
    latents = torch.randn(2, *shape, generator=Generator().manual_seed(0))
    return {"num_inference_steps": 4, "guidance_scale": scale, "latents": latents}


def by_diffusers(model: Model, pipeline: Any, scale: float = 3.0) -> Tensor:
    length = getattr(model, "max_sequence_length", None)
    more = {} if length is None else {"max_sequence_length": length}
    pictures: Tensor = pipeline(PROMPTS, output_type="pt", **options(model, scale), **more).images
    return pictures


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_eta_0_is_the_pipelines_own_sampling(folder: Path, scale: float) -> None:
    model = load(folder)
    ours = sample(model, model.encode_prompts(PROMPTS), **options(model, scale))
    assert torch.allclose(ours, by_diffusers(model, model.pipeline, scale), atol=1e-5)
    other = sample(model, model.encode_prompts(["blue", "blue"]), **options(model, scale))
    assert (ours - other).abs().max() > 1e-3  # the texts count, so their encoding was compared


def test_guidance_in_one_batch_is_guidance_in_two(folder: Path) -> None:
    model = load(folder)
    condition, x = model.encode_prompts(PROMPTS), options(model)["latents"]
    negative = model.encode_prompts(["", ""])
    t = model.times(4, condition.latent_shape)[1, 0]
    with torch.no_grad():
        with_text, without = (model.predict(x, t, each, 1.0) for each in (condition, negative))
        guided = model.predict(x, t, condition, 3.0)
    assert torch.allclose(guided, without + 3 * (with_text - without), atol=1e-5)
    assert (with_text - without).abs().max() > 1e-3


def test_media_survive_encoding_in_the_right_scale(folder: Path) -> None:
    """The VAE is random, so its picture is not the one that went in; its own mean latents are."""
    model = load(folder)
    media = torch.rand(1, 3, *model.default_size, generator=Generator().manual_seed(0))
    vae = model.pipeline.vae
    with torch.no_grad():
        mean = vae.encode(media * 2 - 1).latent_dist.mean
        shown = (vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
        assert torch.allclose(model.decode(model.encode(media)), shown, atol=1e-5)


def test_a_lora_loads_in_plain_diffusers(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    base = sample(model, model.encode_prompts(PROMPTS), **options(model))
    model.train_lora(LoraOptions(rank=2))
    assert model.parameters()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=Generator().manual_seed(2)), alpha=0.3)
    ours = sample(model, model.encode_prompts(PROMPTS), **options(model))
    assert (ours - base).abs().max() > 1e-3
    model.export(tmp_path)
    plain, again = load(folder), load(folder)
    plain.pipeline.load_lora_weights(tmp_path)
    assert torch.allclose(by_diffusers(model, plain.pipeline), ours, atol=1e-5)
    again.reload(tmp_path)
    assert torch.allclose(sample(again, again.encode_prompts(PROMPTS), **options(model)), ours, atol=1e-5)


def test_gradients_reach_what_is_trained_and_nothing_else(folder: Path) -> None:
    model = load(folder)
    model.train_full()
    condition, x = model.encode_prompts(PROMPTS), options(model)["latents"]
    model.predict(x, model.times(4, condition.latent_shape)[1, 0], condition, 3.0).square().sum().backward()
    trained = {id(parameter) for parameter in model.parameters()}
    for module in model.components().values():
        assert all(parameter.grad is None or id(parameter) in trained for parameter in module.parameters())
    assert sum(parameter.grad is not None for parameter in model.parameters()) > 0.9 * len(trained)
