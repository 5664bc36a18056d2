"""Exports that diffusers itself can load, and reloads that load whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator

from align_gen.pipelines import LoraOptions, Model
from align_gen.pipelines.exports import LORA_FILE
from tests.tiny.drawing import diffusers_pictures, pictures
from tests.tiny.stable_diffusion import stable_diffusion

Maker = Callable[..., Any]
CONVOLUTIONS = ("to_q", "proj_in", "conv1", "time_emb_proj", "ff.net.0.proj")


def perturb(model: Model, scale: float = 0.2) -> None:
    noise = Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        LoraOptions(2),
        LoraOptions(2, alpha=8),
        LoraOptions(4, alpha=1),
        LoraOptions(3, alpha=2, target_modules=CONVOLUTIONS),
    ],
    ids=["plain", "alpha-above-rank", "alpha-below-rank", "convolutions"],
)
def test_an_exported_lora_in_a_fresh_pipeline(
    tiny_model: Maker, tmp_path: Path, options: LoraOptions
) -> None:
    """load_lora_weights in plain diffusers changes the pictures, and makes them ours; so does our
    own reload.
    """
    model = tiny_model()
    base = pictures(model)
    model.train_lora(options)
    perturb(model)
    ours = pictures(model)
    model.export(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [LORA_FILE]

    fresh = stable_diffusion()
    fresh.load_lora_weights(tmp_path)
    theirs = diffusers_pictures(fresh)
    assert float((theirs - base).abs().max()) > 1e-2
    assert torch.allclose(ours, theirs, atol=1e-5)

    again = tiny_model()
    again.reload(tmp_path)
    assert torch.allclose(pictures(again), ours, atol=1e-5)


@pytest.mark.slow
def test_an_export_goes_on_and_is_exported_again(tiny_model: Maker, tmp_path: Path) -> None:
    """alpha != rank survives two generations, and the frozen start is not in the file."""
    options = LoraOptions(2, alpha=6)
    first = tiny_model()
    first.train_lora(options)
    perturb(first)
    first.export(tmp_path / "1")
    second = tiny_model()
    second.reload(tmp_path / "1")
    second.train_lora(options)
    assert torch.allclose(pictures(second), pictures(first), atol=1e-5)
    perturb(second)
    second.export(tmp_path / "2")
    assert (
        load_file(tmp_path / "1" / LORA_FILE).keys() == load_file(tmp_path / "2" / LORA_FILE).keys()
    )
    fresh = stable_diffusion()
    fresh.load_lora_weights(tmp_path / "2")
    assert torch.allclose(diffusers_pictures(fresh), pictures(second), atol=1e-5)


@pytest.mark.slow
def test_reload_into_a_model_that_trains(tiny_model: Maker, tmp_path: Path) -> None:
    """An export loaded over a LoRA that is there already replaces it."""
    first = tiny_model()
    first.train_lora(LoraOptions(2))
    perturb(first)
    first.export(tmp_path)
    second = tiny_model()
    second.train_lora(LoraOptions(2))
    second.reload(tmp_path)
    assert torch.allclose(pictures(second), pictures(first), atol=1e-5)
    assert second.parameters()


@pytest.mark.slow
def test_a_reload_that_changes_nothing_is_an_error(tiny_model: Maker, tmp_path: Path) -> None:
    model = tiny_model()
    model.train_lora(LoraOptions(2))
    model.export(tmp_path / "lora")  # B is still zero
    other = tiny_model()
    before = pictures(other)
    with pytest.raises(ValueError, match="changes nothing"):
        other.reload(tmp_path / "lora")
    assert torch.allclose(pictures(other), before, atol=1e-6)

    model = tiny_model()
    model.train_full()
    model.export(tmp_path / "full")
    with pytest.raises(ValueError, match="changes nothing"):
        tiny_model().reload(tmp_path / "full")


def test_a_lora_for_something_else_is_an_error(tiny_model: Maker, tmp_path: Path) -> None:
    save_file(
        {
            "transformer.blocks.0.to_q.lora_A.weight": torch.ones(2, 8),
            "transformer.blocks.0.to_q.lora_B.weight": torch.ones(8, 2),
        },
        tmp_path / LORA_FILE,
    )
    with pytest.raises(ValueError, match=str(tmp_path)):
        tiny_model().reload(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["name", "shape", "cut"])
def test_a_lora_that_does_not_fit_is_an_error(
    tiny_model: Maker, tmp_path: Path, broken: str
) -> None:
    """One module of another architecture, one of another width, a file cut short: never a LoRA
    loaded in part.
    """
    model = tiny_model()
    model.train_lora(LoraOptions(2))
    perturb(model)
    model.export(tmp_path)
    file = tmp_path / LORA_FILE
    if broken == "cut":
        file.write_bytes(file.read_bytes()[:500])
    else:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        weights = load_file(file)
        first = min(weights)
        weights[first.replace("blocks.0", "blocks.9") if broken == "name" else first] = torch.ones(
            2, 99
        )
        save_file(weights, file, metadata=metadata)
    with pytest.raises(ValueError, match=str(tmp_path)):
        tiny_model().reload(tmp_path)
    before = pictures(model)  # one that trains keeps what it has
    with pytest.raises(ValueError, match=str(tmp_path)):
        model.reload(tmp_path)
    assert model.parameters() and torch.equal(pictures(model), before)


@pytest.mark.slow
def test_a_unet_that_does_not_fit_is_an_error_and_copies_nothing(
    tiny_model: Maker, tmp_path: Path
) -> None:
    """load_state_dict would copy what fits before it complains of the rest."""
    other, model = tiny_model(layers_per_block=2), tiny_model()
    other.train_full()
    perturb(other)
    other.export(tmp_path)
    before = pictures(model)
    with pytest.raises(ValueError, match="another shape"):
        model.reload(tmp_path)
    assert torch.equal(pictures(model), before)


def test_no_export_is_an_error(tiny_model: Maker, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}: no export"):
        tiny_model().reload(tmp_path)


@pytest.mark.slow
def test_a_full_export(tiny_model: Maker, tmp_path: Path) -> None:
    """Loaded by us, and as a UNet by diffusers itself."""
    model = tiny_model()
    base = pictures(model)
    model.train_full()
    perturb(model, scale=0.02)
    ours = pictures(model)
    assert float((ours - base).abs().max()) > 1e-2
    model.export(tmp_path)
    again = tiny_model()
    again.reload(tmp_path)
    assert torch.allclose(pictures(again), ours, atol=1e-6)
    fresh = stable_diffusion()
    fresh.unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert torch.allclose(diffusers_pictures(fresh), ours, atol=1e-5)


@pytest.mark.slow
def test_an_export_of_a_wrapped_unet(tiny_model: Maker, tmp_path: Path) -> None:
    model = tiny_model()
    model.train_lora(LoraOptions(2))
    perturb(model)
    model.trainable["unet"] = torch.nn.DataParallel(model.trainable["unet"])
    model.export(tmp_path)
    again = tiny_model()
    again.reload(tmp_path)
    assert torch.allclose(pictures(again), pictures(model), atol=1e-5)


@pytest.mark.parametrize("broken", ["layers", "json"])
def test_a_full_export_of_nonsense_is_refused_before_it_is_built(
    tiny_model: Maker, tmp_path: Path, broken: str
) -> None:
    model = tiny_model()
    model.train_full()
    model.export(tmp_path)
    config = tmp_path / "unet/config.json"
    text = config.read_text()
    assert '"layers_per_block": 1,' in text
    huge = text.replace('"layers_per_block": 1,', '"layers_per_block": 1000000,')
    config.write_text(huge if broken == "layers" else "{")
    said = "layers_per_block: want at most" if broken == "layers" else "not JSON"
    with pytest.raises(ValueError, match=f"{config}: {said}"):
        model.reload(tmp_path)
