"""Loading by folder, by object, by name; and every way to be told no."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align_gen import pipelines
from align_gen.pipelines import Model, registry
from align_gen.pipelines.families.stable_diffusion import StableDiffusion
from align_gen.pipelines.families.toy import Toy
from align_gen.pipelines.registry import FAMILIES, TOYS
from tests.tiny.stable_diffusion import stable_diffusion


def copy_of(folder: Path, to: Path, **index: Any) -> Path:
    """A pipeline folder with some rows of its model_index.json replaced."""
    shutil.copytree(folder, to)
    file = to / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | index))
    return to


def test_every_row_of_the_tables_resolves() -> None:
    assert "StableDiffusionPipeline" in FAMILIES
    for name, target in FAMILIES.items():
        adapter = registry._resolve(target)
        assert issubclass(adapter, Model), name
        assert not adapter.__abstractmethods__, name
    assert set(TOYS) == {"toy-diffusion", "toy-flow"}
    assert all(isinstance(pipelines.load(name), Toy) for name in TOYS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder(tiny_folder: Path, kind: Callable[[Path], Any]) -> None:
    """The weights are those that were saved, in float32 unless asked otherwise."""
    model = pipelines.load(kind(tiny_folder))
    assert isinstance(model, StableDiffusion)
    saved = stable_diffusion().unet.state_dict()
    found = model.pipeline.unet.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in saved.items())
    assert model.dtype == torch.float32
    assert model.device == torch.device("cpu")


def test_a_dtype(tiny_folder: Path) -> None:
    model = pipelines.load(tiny_folder, dtype=torch.bfloat16)
    assert {p.dtype for part in model.components().values() for p in part.parameters()} == {
        torch.bfloat16
    }


def test_loading_warns_of_nothing(tiny_folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    """No deprecated argument of the library is used."""
    pipelines.load(tiny_folder)
    assert not [str(w.message) for w in recwarn if "deprecated" in str(w.message)]


def test_a_pipeline_object_is_used_as_it_is() -> None:
    pipeline = stable_diffusion()
    model = pipelines.load(pipeline)
    assert model.pipeline is pipeline
    assert model.trainable["unet"] is pipeline.unet
    assert pipelines.load(model) is model


def test_a_toy_takes_options() -> None:
    model = pipelines.load("toy-flow", means=[[1.0, 2.0]], stds=[0.5])
    assert isinstance(model, Toy)
    assert model.denoiser.means.tolist() == [[1.0, 2.0]]


def test_components_that_are_null_stay_none(tiny_folder: Path, tmp_path: Path) -> None:
    """A required component that is null in the index does not load unless None is passed for it, as
    SD3 without T5.
    """
    folder = copy_of(tiny_folder, tmp_path / "model", text_encoder=[None, None])
    model = pipelines.load(folder)
    assert model.pipeline.text_encoder is None
    assert model.pipeline.safety_checker is None
    encoder = stable_diffusion().text_encoder
    assert pipelines.load(folder, text_encoder=encoder).pipeline.text_encoder is encoder


def test_a_null_component_may_also_be_passed(tiny_folder: Path) -> None:
    assert pipelines.load(tiny_folder, safety_checker=None).pipeline.safety_checker is None


def test_options_reach_from_pretrained(tiny_folder: Path) -> None:
    unet = stable_diffusion(seed=5).unet
    assert pipelines.load(tiny_folder, unet=unet).trainable["unet"] is unet


# -- refusals: a ValueError that names the thing and what there is


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}.*model_index\.json"):
        pipelines.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [("open_clip_config.json", "{}"), ("config.json", '{"model_type": "clip"}')],
)
def test_a_clip_is_no_generator(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match="a CLIP scores pictures; want a generator: a folder with"):
        pipelines.load(tmp_path)


def test_another_models_folder_is_not_called_a_clip(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"no diffusers pipeline \(model_index.json is missing\)"):
        pipelines.load(tmp_path)


def test_a_file_is_no_pipeline(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.safetensors.*want a folder"):
        pipelines.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", ["{not json", "[]", '"text"', "\xff"])
def test_an_index_that_is_no_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model_index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"model_index\.json"):
        pipelines.load(tmp_path)


@pytest.mark.parametrize("name", ["NoSuchPipeline", "DiffusionPipeline", None])
def test_an_unknown_class(tiny_folder: Path, tmp_path: Path, name: str | None) -> None:
    folder = copy_of(tiny_folder, tmp_path / "model", _class_name=name)
    with pytest.raises(ValueError, match=f"{name}.*StableDiffusionPipeline"):
        pipelines.load(folder)


def test_an_object_that_is_no_pipeline() -> None:
    with pytest.raises(
        ValueError, match=r"no adapter for pipeline class 'int'; have .*StableDiffusionPipeline"
    ):
        pipelines.load(3)


@pytest.mark.parametrize("name", ["toy-difusion", "", "a/b/c", "./nowhere"])
def test_an_unknown_name(name: str) -> None:
    """A typing error of a toy's name is told which there are."""
    with pytest.raises(ValueError, match=r"toy-diffusion.*toy-flow") as caught:
        pipelines.load(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_name_without_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError,
        match="nobody/nothing: no such folder, and HF_HUB_OFFLINE is set",
    ):
        pipelines.load("nobody/nothing")


def test_a_broken_component_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    """Weights cut short by a full disk: whatever the library raises, the folder is in the
    message.
    """
    folder = copy_of(tiny_folder, tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises((ValueError, OSError), match=str(folder)):
        pipelines.load(folder)


# -- imports


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, align_gen.pipelines; "
        "print(*{'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_a_name_that_is_not_there_lists_what_is() -> None:
    with pytest.raises(AttributeError, match=r"'rollouts'; have .*'rollout'"):
        pipelines.rollouts  # noqa: B018
    assert all(getattr(pipelines, name) is not None for name in pipelines.__all__)
    assert set(pipelines.__all__) == set(pipelines._NAMES)


@pytest.mark.slow
def test_a_model_is_let_go_though_xformers_failed_to_import() -> None:
    """A build for another torch keeps its error, and so every frame that was waiting; in a process
    of its own.
    """
    library = pytest.importorskip("xformers._cpp_lib")
    if library._cpp_library_load_exception is None:
        pytest.skip("xformers is built for this torch")
    code = """
import gc, weakref
from align_gen import bundled, pipelines
def use():
    model = pipelines.load(bundled.model_path("emoji-sd"))
    return weakref.ref(model.pipeline.unet)
seen = use()
gc.collect()
assert seen() is None, "the network is still there"
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
