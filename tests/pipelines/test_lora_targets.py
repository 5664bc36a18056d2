"""Layers by name: whole names, last parts, and ``*``; never a regular expression."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from align_gen.pipelines import LoraOptions
from align_gen.pipelines.lora_targets import layers_named, require_names

Maker = Callable[..., Any]


def network() -> nn.Module:
    block = nn.ModuleDict({"to_q": nn.Linear(1, 1), "to_out": nn.ModuleList([nn.Linear(1, 1)])})
    return nn.ModuleDict({"motion": block, "image": nn.ModuleDict({"to_q": nn.Linear(1, 1)})})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["to_q"], ["to_q"]),
        (["*to_q"], ["motion.to_q", "image.to_q"]),
        (["motion*to_q", "motion*to_out.0"], ["motion.to_q", "motion.to_out.0"]),
        (["motion*"], ["motion.to_q", "motion.to_out.0"]),
        (["nothing*"], ["nothing*"]),
    ],
)
def test_a_star_stands_for_any_letters(names: list[str], expected: list[str]) -> None:
    """Of layers alone, not of what holds them; peft says of a name that fits none that it does."""
    assert layers_named(network(), names) == expected


@pytest.mark.parametrize(
    "name", ["([a-z_.0-9]+)+!", "to_q|to_k", "to_[qk]", r".*\.to_q", "to_q?", "^to_q$", ""]
)
def test_a_regular_expression_is_refused_at_once(tiny_model: Maker, name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"lora target_modules: {name!r}: want names")):
        require_names(["to_q", name])
    if name:
        with pytest.raises(ValueError, match="regular expressions are not taken"):
            tiny_model().train_lora(LoraOptions(2, target_modules=name))


def test_many_stars_take_no_time() -> None:
    """Twenty of them on a name of a thousand letters: trying every way would not end."""
    layer = nn.ModuleDict({"a" * 1000: nn.Linear(1, 1)})
    assert layers_named(layer, ["*a" * 20 + "*b"]) == ["*a" * 20 + "*b"]


def test_one_name_is_a_list_of_one(tiny_model: Maker) -> None:
    layers = []
    for names in ("to_q", ("to_q",), "*to_q"):
        model = tiny_model()
        model.train_lora(LoraOptions(2, target_modules=names))
        layers.append(
            [name for name, _ in model.pipeline.unet.named_parameters() if "lora" in name]
        )
    assert layers[0] and layers[0] == layers[1] == layers[2]
