"""Every family at its published size, without weights: texts, network, gradient and picture, on
shapes alone.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from align_gen import bundled, pipelines
from align_gen.pipelines import LoraOptions
from align_gen.pipelines.registry import FAMILIES
from align_gen.pipelines.skeleton import (
    PUBLISHED,
    Description,
    describe_source,
    make_fake,
    read_description,
    skeleton,
)

pytestmark = pytest.mark.slow

DESCRIPTIONS = {
    file.stem: json.loads(file.read_text()) for file in sorted(PUBLISHED.glob("*.json"))
}


def require_published_size(pipeline: Any, description: Description) -> None:
    """The number of parameters, within 2 %, as some are published rounded."""
    for component, published in description["parameters"].items():
        count = sum(parameter.numel() for parameter in getattr(pipeline, component).parameters())
        assert abs(count / published - 1) < 0.02, (component, count)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_family_has_and_runs_at_its_published_size(name: str) -> None:
    """At its default resolution and number of frames, in bfloat16: LoRA gradients, and media of the
    size asked for.
    """
    model: Any = pipelines.load(skeleton(DESCRIPTIONS[name], torch.bfloat16))
    require_published_size(model.pipeline, DESCRIPTIONS[name])
    model.prompt_cache = None
    model.train_lora(LoraOptions(rank=4))
    height, width = model.default_size
    inputs = {name: torch.rand(1, 3, height, width) for name in model.required_inputs}
    with make_fake(model.components()) as shapes:
        condition = model.encode_prompts(["a cat"], **inputs)
        x = torch.randn(1, *condition.latent_shape)
        ends = [0, -1][: len(model.trainable)]  # a network for each end, where there are two
        for t in model.times(4, condition.latent_shape)[ends, 0]:
            output = model.predict(x, t, condition, {**model.guidances, "text": 3.0})
            assert output.shape == x.shape
            output.float().square().mean().backward()
        with torch.no_grad(), shapes.everything:
            media = model.decode(output.detach())
    assert all(parameter.grad is not None for parameter in model.parameters())
    frames = () if model.default_frames == 1 else (model.default_frames,)
    assert media.shape == (1, *frames, 3, height, width)


def test_a_skeleton_on_a_device_has_random_weights() -> None:
    description = read_description(Path(bundled.model_path("emoji-sd")))
    model: Any = pipelines.load(skeleton(description, torch.bfloat16, "cpu"))
    condition = model.encode_prompts(["a cat"])
    t = model.times(4, condition.latent_shape)[0, 0]
    output = model.predict(torch.randn(1, *condition.latent_shape), t, condition, 3.0)
    assert output.isfinite().all() and output.std() > 0


def test_every_family_is_described() -> None:
    assert {
        description["model_index"]["_class_name"] for description in DESCRIPTIONS.values()
    } == set(FAMILIES)


def test_a_folders_own_description_builds_what_its_weights_fit() -> None:
    """emoji-sd: every tensor of the loaded pipeline has its like, name by name and shape by
    shape.
    """
    folder = bundled.model_path("emoji-sd")
    real, outline = pipelines.load(folder).pipeline, skeleton(read_description(Path(folder)))
    for name, part in real.components.items():
        if isinstance(part, nn.Module):
            shapes = {key: value.shape for key, value in part.state_dict().items()}
            assert shapes == {
                key: value.shape for key, value in getattr(outline, name).state_dict().items()
            }
    config = {key: value for key, value in real.scheduler.config.items() if not key.startswith("_")}
    assert dict(outline.scheduler.config) == config


def test_a_published_checkpoint_is_known_by_its_hub_name() -> None:
    assert describe_source("black-forest-labs/FLUX.1-dev") == DESCRIPTIONS["flux"]


def test_files_cannot_name_a_foreign_class() -> None:
    description = {
        **DESCRIPTIONS["sd15"],
        "components": {"unet": {"class": "os.system", "config": {}}},
    }
    with pytest.raises(ValueError, match=r"component class os.system: want one of"):
        skeleton(description)
    description["components"] = {"unet": {"class": "transformers.TrainingArguments", "config": {}}}
    with pytest.raises(ValueError, match=r"TrainingArguments: want a network, a scheduler"):
        skeleton(description)
    with pytest.raises(ValueError, match="no adapter for pipeline class 'Evil'"):
        skeleton({"model_index": {"_class_name": "Evil"}, "components": {}})
