"""LoRA files of others: their tensors decide, and nothing that they say of themselves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from align_gen import pipelines
from align_gen.pipelines import LoraOptions
from align_gen.pipelines.exports import LORA_FILE
from align_gen.pipelines.lora_files import SETTINGS, plain_settings, write_plain
from tests.tiny import PIPELINES
from tests.tiny.drawing import pictures

Maker = Callable[..., Any]
# Takes longer than anyone waits on a long name without an exclamation mark.
EVIL = "([a-z_.0-9]+)+!"


def test_settings_are_read_off_names_and_shapes() -> None:
    """Three modules, two of rank 4 and one of rank 2; by hand."""
    shapes = {
        "unet.a.to_q.lora_A.weight": [4, 8],
        "unet.a.to_q.lora_B.weight": [8, 4],
        "unet.b.to_q.lora_A.weight": [4, 8],
        "unet.c.conv.lora_A.weight": [2, 8, 3, 3],
        "text_encoder.x.lora_A.weight": [9, 8],
    }
    told = {"unet.r": 10**7, "unet.lora_alpha": 6, "unet.target_modules": EVIL}
    told |= {"unet.init_lora_weights": "pissa", "unet.megatron_core": "antigravity"}
    told |= {"unet.alpha_pattern": {EVIL: 3, "c.conv": 1.5, "b.to_q": "x"}, "vae.r": 3}
    assert plain_settings(told, shapes) == {
        "unet.r": 4,
        "unet.lora_alpha": 6,
        "unet.target_modules": ["a.to_q", "b.to_q", "c.conv"],
        "unet.rank_pattern": {r"^c\.conv": 2},
        "unet.alpha_pattern": {r"c\.conv": 1.5},
        "unet.use_rslora": False,
    }
    # A file of one network has no name of a network before its keys.
    alone = {name.removeprefix("unet."): shape for name, shape in shapes.items()}
    assert plain_settings({"r": 1}, alone)["target_modules"] == [
        "a.to_q", "b.to_q", "c.conv", "text_encoder.x",
    ]  # fmt: skip


@pytest.mark.parametrize("alpha", [None, float("nan"), 10**400, "6", True, [6]])
def test_a_scale_that_is_no_number_is_the_rank(alpha: Any) -> None:
    found = plain_settings({"r": 1, "lora_alpha": alpha}, {"x.lora_A.weight": [3, 8]})
    assert found["lora_alpha"] == found["r"] == 3


def with_settings(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite what a file says of itself."""
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    settings = json.loads(about[SETTINGS])
    change(settings)
    save_file(load_file(file), file, metadata={**about, SETTINGS: json.dumps(settings)})


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no layers": lambda told: told.pop("unet.target_modules"),
    "layers by a regular expression": lambda told: told.update({"unet.target_modules": EVIL}),
    "layers left out by one": lambda told: told.update({"unet.exclude_modules": EVIL}),
    "ranks by one": lambda told: told.update({"unet.rank_pattern": {EVIL: 3}}),
    "scales by one": lambda told: told.update({"unet.alpha_pattern": {EVIL: 3}}),
    "another rank": lambda told: told.update({"unet.r": 10**7}),
    "other first weights": lambda told: told.update({"unet.init_lora_weights": "pissa"}),
    "a module to import": lambda told: told.update(
        {"unet.megatron_config": {}, "unet.megatron_core": "no.such.module"}
    ),
    "an option of nobody's": lambda told: told.update({"unet.anything": 1}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A LoRA with a scale other than its rank, and the pictures that it makes."""
    from align_gen.pipelines.families.stable_diffusion import StableDiffusion
    from tests.tiny.stable_diffusion import stable_diffusion

    folder = tmp_path_factory.mktemp("lora")
    model = StableDiffusion(stable_diffusion())
    model.train_lora(LoraOptions(2, alpha=6))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    model.export(folder)
    return folder / LORA_FILE, pictures(model)


@pytest.mark.slow
@pytest.mark.parametrize("case", LIES)
def test_what_a_file_says_of_itself_changes_nothing(
    tiny_model: Maker, exported: tuple[Path, torch.Tensor], tmp_path: Path, case: str
) -> None:
    """The same tensors make the same pictures, whatever stands beside them."""
    file, made = exported
    (tmp_path / LORA_FILE).write_bytes(file.read_bytes())
    with_settings(tmp_path / LORA_FILE, LIES[case])
    model = tiny_model()
    model.reload(tmp_path)
    assert torch.allclose(pictures(model), made, atol=1e-5)


@pytest.mark.slow
def test_layers_of_several_ranks_load(tiny_model: Maker, tmp_path: Path) -> None:
    """A module of rank 2 padded with zeros to rank 3 is the same module."""
    model = tiny_model()
    model.train_lora(LoraOptions(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.export(tmp_path)
    file = tmp_path / LORA_FILE
    weights = load_file(file)
    down = sorted(name for name in weights if name.endswith("lora_A.weight"))[0]
    up = down.replace("lora_A", "lora_B")
    weights[down] = torch.cat([weights[down], torch.zeros_like(weights[down][:1])])
    weights[up] = torch.cat([weights[up], torch.zeros_like(weights[up][:, :1])], 1)
    # In peft a layer's scale is alpha / rank: this module's alpha is 3, as its rank is.
    settings = {"unet.r": 2, "unet.lora_alpha": 2, "unet.alpha_pattern": {down[5:-14]: 3}}
    save_file(weights, file, metadata={"format": "pt", SETTINGS: json.dumps(settings)})
    other = tiny_model()
    other.reload(tmp_path)
    assert torch.allclose(pictures(other), pictures(model), atol=1e-5)


@pytest.mark.parametrize("settings", [None, {"unet.r": 1}])
def test_a_name_that_no_module_can_have_is_refused(
    tmp_path: Path, settings: dict[str, Any] | None
) -> None:
    """diffusers and peft would take it for a pattern."""
    about = {} if settings is None else {SETTINGS: json.dumps(settings)}
    tensors = {f"unet.{EVIL}.lora_A.weight": torch.ones(1, 1)}
    save_file(tensors, tmp_path / "a.safetensors", metadata=about)
    with pytest.raises(ValueError, match=r"a\.safetensors: tensor 'unet\.\(\[a-z.*want letters"):
        write_plain(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("text", ["[[[", "[]", "3", "[" * 100_000])
def test_settings_that_are_no_object_are_refused(tmp_path: Path, text: str) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors", metadata={SETTINGS: text})
    with pytest.raises(ValueError, match=rf"a\.safetensors: {SETTINGS}: want a JSON object"):
        write_plain(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_the_copy_has_the_same_tensors(tmp_path: Path) -> None:
    tensors = {f"unet.m{n}.lora_A.weight": torch.rand(n + 1, 3) for n in range(5)}
    for number, about in enumerate(({}, {SETTINGS: json.dumps({"unet.r": 1}), "format": "pt"})):
        given, copy = tmp_path / f"{number}.safetensors", tmp_path / f"copy{number}.safetensors"
        save_file(tensors, given, metadata=about)
        write_plain(given, copy)
        found = load_file(copy)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def adapted(model: Any) -> dict[str, tuple[torch.Tensor, float]]:
    """The update and the scale of each layer that has a LoRA."""
    found = {}
    for component, part in model.trainable.items():
        for name, layer in part.named_modules():
            if "policy" in getattr(layer, "lora_A", {}):
                up, down = layer.lora_B["policy"].weight, layer.lora_A["policy"].weight
                product = up.flatten(1) @ down.flatten(1)
                found[f"{component}.{name}"] = (product.detach(), layer.scaling["policy"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", PIPELINES)
def test_every_familys_export_comes_back(tmp_path: Path, family: str) -> None:
    """The same layers with the same updates at the same scale, which is not the rank's."""
    first, second = (pipelines.load(PIPELINES[family]()) for _ in range(2))
    first.train_lora(LoraOptions(2, alpha=6))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    first.export(tmp_path)
    second.reload(tmp_path)
    ours, theirs = adapted(first), adapted(second)
    assert ours and ours.keys() == theirs.keys()
    for name, (update, scale) in ours.items():
        assert torch.equal(update, theirs[name][0]) and scale == theirs[name][1] == 3
