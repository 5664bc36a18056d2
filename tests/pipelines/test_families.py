"""Laws that every adapter of a diffusers pipeline keeps, on tiny random ones saved and loaded again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionInstructPix2PixPipeline
from torch import Generator, Tensor

from align_gen import pipelines
from align_gen.pipelines import Condition, LoraOptions, Model, sample
from align_gen.pipelines.animatediff import PerFrame
from align_gen.pipelines.pretrained import NEGATIVE, OwnLora
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


@dataclass
class Case:
    """How a family's tiny pipeline is called, by us and by its users."""

    size: dict[str, int] = field(default_factory=lambda: {"height": 16, "width": 16})
    inputs: dict[str, Any] = field(default_factory=dict)  # of encode_prompts
    call: dict[str, Any] = field(default_factory=dict)  # of the pipeline, besides what all take
    fixed: dict[str, float] = field(default_factory=dict)  # guidance scales besides "text"


PICTURES = torch.rand(2, 3, 16, 16, generator=Generator().manual_seed(3))
CASES = {
    "Flux": Case(call={"negative_prompt": ["", ""]}),
    "Wan": Case({"height": 32, "width": 32, "num_frames": 5}),
    "AnimateDiff": Case({"height": 16, "width": 16, "num_frames": 3}),
    "ModelScope": Case({"height": 16, "width": 16, "num_frames": 3}),
    "InstructPix2Pix": Case(
        inputs={"image": PICTURES}, call={"image": PICTURES, "image_guidance_scale": 1.8}, fixed={"image": 1.8}
    ),
    "ControlNet": Case(inputs={"control": PICTURES}, call={"image": PICTURES}),
    "ControlNetXL": Case(inputs={"control": PICTURES}, call={"image": PICTURES}),
}


def case(model: Model) -> Case:
    return CASES.get(type(model).__name__, Case())


def guided(model: Model, scale: float) -> Any:
    """A scale of classifier-free guidance; the others stay what they are."""
    embedded = {"embedded": 2.0} if "embedded" in getattr(model, "guidances", {}) else {}
    return {"text": scale, **embedded, **case(model).fixed}


def condition_of(model: Model, prompts: Sequence[str] = PROMPTS) -> Condition:
    negative = "" if isinstance(model.pipeline, FluxPipeline) else None
    return model.encode_prompts(prompts, negative, **case(model).size, **case(model).inputs)


def options(model: Model, scale: float = 3.0) -> dict[str, Any]:
    shape = model.latent_shape(*case(model).size.values())
    latents = torch.randn(2, *shape, generator=Generator().manual_seed(0))
    return {"num_inference_steps": 4, "guidance_scale": guided(model, scale), "latents": latents}


def by_diffusers(model: Model, pipeline: Any, scale: float = 3.0) -> Tensor:
    """The pipeline's own pictures, called as its users call it."""
    call: dict[str, Any] = {**options(model, scale), **case(model).size, **case(model).call}
    call |= {"guidance_scale": scale, "output_type": "pt"}
    if isinstance(pipeline, StableDiffusionInstructPix2PixPipeline):  # as large as its picture
        call = {key: value for key, value in call.items() if key not in ("height", "width")}
    if hasattr(model, "max_sequence_length"):
        call["max_sequence_length"] = model.max_sequence_length
    if isinstance(pipeline, FluxPipeline):
        batch, channels, height, width = call["latents"].shape
        call["latents"] = pipeline._pack_latents(call["latents"], batch, channels, height, width)
        call |= {"guidance_scale": 2.0, "true_cfg_scale": scale}
    made = pipeline(PROMPTS, **call)
    media: Tensor = made.images if hasattr(made, "images") else made.frames
    return media


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_eta_0_is_the_pipelines_own_sampling(folder: Path, scale: float) -> None:
    model = load(folder)
    ours = sample(model, condition_of(model), **options(model, scale))
    assert torch.allclose(ours, by_diffusers(model, model.pipeline, scale), atol=1e-5)
    other = sample(model, condition_of(model, ["blue", "blue"]), **options(model, scale))
    assert (ours - other).abs().max() > 1e-3  # the texts count, so their encoding was compared


def test_guidance_in_one_batch_is_guidance_in_two(folder: Path) -> None:
    model = load(folder)
    condition, x = condition_of(model), options(model)["latents"]
    t = model.times(4, condition.latent_shape)[1, 0]

    def predict(**tensors: Tensor) -> Tensor:
        told = Condition(condition.prompts, {**condition.tensors, **tensors}, condition.latent_shape)
        return model.predict(x, t, told, guided(model, 1.0))

    negative = {name.removeprefix(NEGATIVE): value for name, value in condition.tensors.items() if NEGATIVE in name}
    with torch.no_grad():
        with_text, without = predict(), predict(**negative)
        both = model.predict(x, t, condition, guided(model, 3.0))
        expected = without + 3 * (with_text - without)
        if "image" in guided(model, 3.0):
            nothing = predict(**negative, image_latents=torch.zeros_like(condition.tensors["image_latents"]))
            expected = nothing + 3 * (with_text - without) + 1.8 * (without - nothing)
    assert torch.allclose(both, expected, atol=1e-5)
    assert (with_text - without).abs().max() > 1e-3


def test_media_survive_encoding_in_the_right_scale(folder: Path) -> None:
    """The VAE is random, so its picture is not the one that went in; what it makes of its own mean latents is."""
    model = load(folder)
    sizes, vae = case(model).size, model.pipeline.vae
    frames = (sizes["num_frames"],) if "num_frames" in sizes else ()
    media = torch.rand(1, *frames, 3, sizes["height"], sizes["width"], generator=Generator().manual_seed(0))
    raw = media if not frames else media[0] if isinstance(model, PerFrame) else media.transpose(1, 2)
    with torch.no_grad():
        shown = (vae.decode(vae.encode(raw * 2 - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)
        latents = model.encode(media)
        assert latents.shape[1:] == model.latent_shape(*sizes.values())
        again = model.decode(latents)
        assert again.shape == media.shape
        assert torch.allclose(
            again, shown.reshape(raw.shape).reshape(media.shape) if raw.ndim < 5 else shown.transpose(1, 2), atol=1e-5
        )


def test_a_lora_loads_in_plain_diffusers(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    base = sample(model, condition_of(model), **options(model))
    model.train_lora(LoraOptions(rank=2))
    assert model.parameters()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=Generator().manual_seed(2)), alpha=0.3)
    ours = sample(model, condition_of(model), **options(model))
    assert (ours - base).abs().max() > 1e-3
    model.export(tmp_path)
    plain, again = load(folder), load(folder)
    if isinstance(model, OwnLora):
        (component,) = model.trainable
        getattr(plain.pipeline, component).load_lora_adapter(tmp_path / component, prefix=None, use_safetensors=True)
    else:
        plain.pipeline.load_lora_weights(tmp_path)
    if "transformer_2" in model.trainable:
        plain.pipeline.load_lora_weights(tmp_path / "transformer_2", load_into_transformer_2=True)
    assert torch.allclose(by_diffusers(model, plain.pipeline), ours, atol=1e-5)
    again.reload(tmp_path)
    assert torch.allclose(sample(again, condition_of(again), **options(model)), ours, atol=1e-5)


def test_gradients_reach_what_is_trained_and_nothing_else(folder: Path) -> None:
    model = load(folder)
    model.train_full()
    condition, x = condition_of(model), options(model)["latents"]
    for t in model.times(4, condition.latent_shape)[[0, -1], 0]:  # both ends: Wan 2.2 has a network for each
        model.predict(x, t, condition, guided(model, 3.0)).square().sum().backward()
    trained = {id(parameter) for parameter in model.parameters()}
    for module in model.components().values():
        assert all(parameter.grad is None or id(parameter) in trained for parameter in module.parameters())
    assert sum(parameter.grad is not None for parameter in model.parameters()) > 0.9 * len(trained)
