"""What a pipeline's small files say is checked before anything is built of them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from align_gen import bundled, pipelines
from align_gen.pipelines.folder_checks import component_class, read_json, require_sound
from align_gen.pipelines.headers import read_header
from align_gen.pipelines.loading import read_model_index
from align_gen.pipelines.skeleton import PUBLISHED, read_description
from tests.tiny import PIPELINES

Edit = Callable[[Path], Any]


def edited(name: str, **keys: Any) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))

    return edit


def text(name: str, content: str) -> Edit:
    return lambda folder: (folder / name).write_text(content)


SCHEDULER = "scheduler/scheduler_config.json"
TOKENIZER = "tokenizer/tokenizer_config.json"
# An edit, and what the line must name: the file and the key.
WRONG: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "no timesteps": (edited(SCHEDULER, num_train_timesteps=0), (SCHEDULER, "num_train_timesteps")),
    "10^11 timesteps": (
        edited(SCHEDULER, num_train_timesteps=10**11), (SCHEDULER, "num_train_timesteps"),
    ),
    "half a timestep": (
        edited(SCHEDULER, num_train_timesteps=0.5), (SCHEDULER, "num_train_timesteps"),
    ),
    "five betas": (edited(SCHEDULER, trained_betas=[0.1] * 5), (SCHEDULER, "trained_betas")),
    "a number of betas": (edited(SCHEDULER, trained_betas=5), (SCHEDULER, "trained_betas")),
    "betas of words": (edited(SCHEDULER, trained_betas=["x"] * 1000), (SCHEDULER, "trained_betas")),
    "a beta of 7": (edited(SCHEDULER, beta_end=7.0), (SCHEDULER, "beta_end")),
    "a beta of no number": (edited(SCHEDULER, beta_start=float("nan")), (SCHEDULER, "beta_start")),
    "scale 0": (edited("vae/config.json", scaling_factor=0), ("vae/config.json", "scaling_factor")),
    "scale of words": (
        edited("vae/config.json", scaling_factor="x"), ("vae/config.json", "scaling_factor"),
    ),
    "a deviation of 0": (
        edited("vae/config.json", latents_std=[1.0, 0.0]), ("vae/config.json", "latents_std"),
    ),
    "10^6 layers of text": (
        edited("text_encoder/config.json", num_hidden_layers=10**6),
        ("text_encoder/config.json", "num_hidden_layers", "tensors"),
    ),
    "10^6 layers of text, nested": (
        edited("text_encoder/config.json", text_config={"num_hidden_layers": 10**6}),
        ("text_encoder/config.json", "text_config.num_hidden_layers"),
    ),
    "10^6 layers of the network": (
        edited("unet/config.json", layers_per_block=10**6),
        ("unet/config.json", "layers_per_block"),
    ),
    "10^6 layers in a list": (
        edited("unet/config.json", transformer_layers_per_block=[1, 10**6]),
        ("unet/config.json", "transformer_layers_per_block"),
    ),
    "10^6 layers of the VAE": (
        edited("vae/config.json", layers_per_block=10**6), ("vae/config.json", "layers_per_block"),
    ),
    "a text of 10^30 tokens": (
        edited(TOKENIZER, model_max_length=10**30), (TOKENIZER, "model_max_length"),
    ),
    "a text of no tokens": (edited(TOKENIZER, model_max_length=0), (TOKENIZER, "model_max_length")),
    "a text of words": (edited(TOKENIZER, model_max_length="x"), (TOKENIZER, "model_max_length")),
    "a text longer than the encoder's": (
        edited(TOKENIZER, model_max_length=5000), (TOKENIZER, "model_max_length"),
    ),
    "a deep tokenizer": (text("tokenizer/tokenizer.json", "[" * 10**5), ("tokenizer.json",)),
    "a tokenizer nested 200 deep": (
        text("tokenizer/tokenizer.json", "[" * 200 + "]" * 200), ("tokenizer.json", "nested"),
    ),
    "a tokenizer cut short": (text("tokenizer/tokenizer.json", "{"),
                                    ("tokenizer.json", "not JSON")),
    "a configuration that is a list": (text("unet/config.json", "[]"), ("unet/config.json",)),
    "a class in lists": (
        edited("unet/config.json", _class_name=[["x"]]), ("unet/config.json", "_class_name"),
    ),
    "a pipeline's class in lists": (
        edited("model_index.json", _class_name=[["x"]]), ("model_index.json", "_class_name"),
    ),
    "a function for a network": (
        edited("model_index.json", unet=["transformers", "pipeline"]), ("model_index.json", "unet"),
    ),
    "a tokenizer for a network": (
        edited("model_index.json", unet=["transformers", "CLIPTokenizer"]),
        ("model_index.json", "unet"),
    ),
    "a class for a network that there is not": (
        edited("model_index.json", unet=["diffusers", "Nothing"]), ("model_index.json", "unet"),
    ),
    "one word for a component": (
        edited("model_index.json", unet=["diffusers"]), ("model_index.json", "unet"),
    ),
    "lists for a component": (
        edited("model_index.json", unet=[["diffusers"], "x"]), ("model_index.json", "unet"),
    ),
    "a component that climbs": (
        edited("model_index.json", **{"../unet": ["diffusers", "UNet2DConditionModel"]}),
        ("model_index.json", "../unet"),
    ),
}  # fmt: skip


def copied(source: Path, folder: Path) -> Path:
    """A copy with links to the weights, which are only read."""
    shutil.copytree(source, folder, copy_function=os.link)
    for file in folder.rglob("*.json"):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_one_line_that_names_file_and_key(
    tiny_folder: Path, tmp_path: Path, case: str
) -> None:
    """By the run, and by the dry run, which builds networks without weights."""
    edit, named = WRONG[case]
    folder = copied(tiny_folder, tmp_path / "model")
    edit(folder)
    for work in (pipelines.load, read_description):
        with pytest.raises(ValueError) as error:
            work(folder)
        message = str(error.value)
        assert all(word in message for word in named) and str(folder) in message
        assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize("name", bundled.generators())
def test_bundled_pipelines_are_sound(name: str) -> None:
    folder = bundled.MODELS / name
    require_sound(folder, read_model_index(folder))


@pytest.mark.slow
@pytest.mark.parametrize("family", PIPELINES)
def test_every_familys_saved_pipeline_is_sound(tmp_path: Path, family: str) -> None:
    """As save_pretrained writes it: loaded, and described without its weights."""
    PIPELINES[family]().save_pretrained(tmp_path)
    assert pipelines.load(tmp_path).trainable
    assert read_description(tmp_path)["components"]


def test_published_configurations_are_sound(tmp_path: Path) -> None:
    """The oracle: whatever was published may not be refused."""
    descriptions = sorted(PUBLISHED.glob("*.json"))
    assert len(descriptions) > 20
    for file in descriptions:
        described = json.loads(file.read_text())
        folder = tmp_path / file.stem
        index: dict[str, Any] = {}
        for name, part in described["components"].items():
            index[name] = [None, None] if part is None else part["class"].split(".")
            (folder / name).mkdir(parents=True)
            kind = "" if part is None else part["class"]
            config = {} if part is None else part.get("config", {})
            if "Tokenizer" in kind:
                config = {**config, "model_max_length": part["model_max_length"]}
                (folder / name / "tokenizer_config.json").write_text(json.dumps(config))
            elif "Scheduler" in kind:
                (folder / name / "scheduler_config.json").write_text(json.dumps(config))
            elif part is not None:
                (folder / name / "config.json").write_text(json.dumps(config))
        require_sound(folder, index)


@pytest.mark.parametrize(("tensors", "fine"), [(24, True), (23, False)])
def test_layers_are_counted_against_the_weights(tmp_path: Path, tensors: int, fine: bool) -> None:
    """A network of 24 layers has 24 tensors at least; two files of weights count together."""
    part = tmp_path / "transformer"
    part.mkdir()
    (part / "config.json").write_text('{"num_layers": 24}')
    for number in range(2):
        names = [f"x.{i}" for i in range(tensors) if i % 2 == number]
        weights = {name: torch.zeros(1) for name in names}
        save_file(weights, part / f"model-{number}.safetensors")
    index = {"transformer": ["diffusers", "FluxTransformer2DModel"]}
    if fine:
        require_sound(tmp_path, index)
        return
    with pytest.raises(ValueError, match=r"want at most 23 \(its weights have 23 ten"):
        require_sound(tmp_path, index)


def test_without_weights_no_network_has_a_thousand_layers(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text('{"layers_per_block": 1001}')
    with pytest.raises(ValueError, match="want at most 1000"):
        require_sound(tmp_path, {"unet": ["diffusers", "UNet2DConditionModel"]})


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 50, b"\x02\0\0\0\0\0\0\0[]"])
def test_a_header_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors: no safetensors file"):
        read_header(tmp_path / "x.safetensors")


def test_a_header_says_where_its_tensors_begin(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([7.0])}, tmp_path / "x.safetensors")
    header, start = read_header(tmp_path / "x.safetensors")
    assert header["a"]["shape"] == [1]
    stored = (tmp_path / "x.safetensors").read_bytes()[start:]
    assert stored == torch.tensor([7.0]).numpy().tobytes()


@pytest.mark.parametrize(("depth", "fine"), [(100, True), (101, False)])
def test_json_is_read_to_a_depth(tmp_path: Path, depth: int, fine: bool) -> None:
    file = tmp_path / "x.json"
    file.write_text("[" * depth + "]" * depth)
    if fine:
        assert read_json(file) is not None
    else:
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            read_json(file)


@pytest.mark.parametrize(
    "row", [("transformers", "pipeline"), ("diffusers", "utils"), ("os", "system"), ("torch", "nn")]
)
def test_only_classes_of_components_are_built(row: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="component class"):
        component_class(*row)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 10**6])
def test_a_repository_of_the_hub_is_checked_too(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    """Of the local cache, as the hub's client keeps what it has downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--someone--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "snapshots").mkdir()
    (kept / "refs/main").write_text("0" * 40)
    folder = copied(tiny_folder, kept / "snapshots" / ("0" * 40))
    edited("unet/config.json", layers_per_block=layers)(folder)
    if layers == 1:
        assert pipelines.load("someone/tiny").trainable["unet"] is not None
        return
    with pytest.raises(ValueError, match=r"unet/config\.json: layers_per_block: want at most"):
        pipelines.load("someone/tiny")
