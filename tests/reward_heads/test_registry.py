"""Finding heads: by table name, dotted path, file and object; every miss lists what exists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen.reward_heads import RewardHead, load, reward_set
from align_gen.reward_heads.base import CallableHead
from align_gen.reward_heads.registry import HEADS

MEDIA = torch.full((2, 3, 4, 4), 0.25)

FILE = """\
from align_gen.reward_heads import RewardHead

def brightness(media, prompts):
    return media.mean((1, 2, 3))

class Scaled(RewardHead):
    def __init__(self, by: float = 2.0):
        self.by = by

    def __call__(self, media, prompts, **context):
        return self.by * media.mean((1, 2, 3))

def make(by: float = 3.0):
    return Scaled(by)
"""


def brightness(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return media.mean((1, 2, 3))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def value(head: RewardHead) -> float:
    scores = head(MEDIA, ["a", "b"])
    assert scores.shape == (2,)
    return scores[0].item()


def test_every_name_of_the_table_resolves() -> None:
    from importlib import import_module

    assert set(HEADS) >= {"clip", "jpeg_size", "mean_hue"}
    for target in HEADS.values():
        module, attribute = target.split(":")
        made = getattr(import_module(f"align_gen.reward_heads.{module}"), attribute)
        assert issubclass(made, RewardHead)


def test_a_miss_lists_what_exists() -> None:
    with pytest.raises(
        ValueError,
        match=r"no reward 'clipp'; have \['aesthetic', 'clip', .*'mean_hue'.*module:attribute",
    ):
        load("clipp")


def test_a_function_or_class_in_a_file(file: Path) -> None:
    assert value(load(f"{file}:brightness")) == pytest.approx(0.25)
    assert value(load(f"{file}:Scaled")) == pytest.approx(0.5)
    assert value(load(f"{file}:Scaled", by=4)) == pytest.approx(1.0)
    assert value(load(f"{file}:make", by=8)) == pytest.approx(2.0)


def test_a_dotted_path() -> None:
    head = load("align_gen.reward_heads.heads.mean_hue:MeanHue", hue=120.0)
    assert head.provenance() == load("mean_hue", hue=120.0).provenance()


def test_the_former_name_of_required_context_is_refused(tmp_path: Path) -> None:
    """A reward that declares it would be called without what it needs."""

    def by_map(media: Tensor, prompts: Sequence[str], control: Tensor) -> Tensor:
        return control.mean((1, 2, 3))

    by_map.needs = ("control",)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="by_map': needs is now called required_context"):
        load(by_map)
    (tmp_path / "mine.py").write_text(
        FILE.replace("    def __init__", "    needs = ('t',)\n\n    def __init__")
    )
    with pytest.raises(ValueError, match="Scaled': needs is now called required_context"):
        load(f"{tmp_path}/mine.py:Scaled")


def test_any_callable_and_a_head_itself() -> None:
    head = load(brightness)
    assert (
        isinstance(head, CallableHead)
        and head.name == "brightness"
        and value(head) == pytest.approx(0.25)
    )
    assert load(head) is head


def test_callables_say_whether_they_are_differentiable() -> None:
    def smooth(media: Tensor, prompts: Sequence[str]) -> Tensor:
        return media.mean((1, 2, 3))

    smooth.differentiable = True  # type: ignore[attr-defined]
    assert load(smooth).differentiable and not load(brightness).differentiable


@pytest.mark.parametrize(
    ("name", "options", "pattern"),
    [
        ("mean_hue", {"heu": 1.0}, r"reward 'mean_hue': .*'heu'; options are \['hue'\]"),
        ("clip", {}, r"reward 'clip': .*'path'; options are"),
        ("nowhere.py:f", {}, r"no file nowhere\.py"),
        ("no_such_package.module:f", {}, r"cannot import no_such_package\.module"),
        ("math:no_such_function", {}, r"math has no 'no_such_function'; have \['acos'"),
        (
            "{file}:missing",
            {},
            r"has no 'missing'; have \['RewardHead', 'Scaled', 'brightness', 'make'\]",
        ),
        ("{file}:brightness", {"by": 1.0}, r"brightness'.*options are"),
        ("mean_hue", {"hue": "green"}, r"mean_hue"),
        ("clip", {"path": "ViT-B-32", "pretrained": "openai", "alpha": "much"}, r"clip"),
    ],
)
def test_a_mistake_names_the_reward(
    file: Path, name: str, options: dict[str, Any], pattern: str
) -> None:
    with pytest.raises(ValueError, match=pattern) as error:
        load(name.format(file=file), **options)
    assert "\n" not in str(error.value)


def test_sets_from_every_spelling(file: Path) -> None:
    """Names, callables, options with another label, several of one kind."""
    spec: dict[Any, Any] = {
        "jpeg_size": 1.0,
        brightness: 0.2,
        "red": {"name": "mean_hue", "hue": 0.0},
        "blue": {"name": "mean_hue", "hue": 240.0, "weight": 3.0},
        "mine": {"name": f"{file}:brightness"},
    }
    rewards = reward_set(spec)
    assert rewards.weights == {
        "jpeg_size": 1.0,
        "brightness": 0.2,
        "red": 1.0,
        "blue": 3.0,
        "mine": 1.0,
    }
    assert reward_set(["jpeg_size", brightness]).heads.keys() == {"jpeg_size", "brightness"}


@pytest.mark.parametrize(
    ("spec", "pattern"),
    [
        ([brightness, brightness], "'brightness' is named twice"),
        ([], "no reward given"),
        ({}, "no reward given"),
        (["nothing"], "no reward 'nothing'"),
        ({"mean_hue": "heavy"}, "mean_hue"),
        ({"mean_hue": {"weight": [1]}}, "mean_hue"),
        ({"mean_hue": {"weight": float("nan")}}, "mean_hue"),
    ],
    ids=[
        "twice",
        "no list",
        "no mapping",
        "no such",
        "a word",
        "a list for a weight",
        "NaN for a weight",
    ],
)
def test_a_wrong_set_is_named(spec: Any, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        reward_set(spec)


def test_a_file_that_is_no_python_is_named_with_its_reward(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def f(media, prompts:\n    return media\n")
    with pytest.raises(ValueError, match=r"reward '.*broken.py:f': cannot import .*line 1"):
        load(f"{file}:f")
