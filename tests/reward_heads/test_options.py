"""Options of heads: every one is described, and a wrong one is refused before anything loads."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from align_gen.reward_heads import load
from align_gen.reward_heads.base import RewardHead
from align_gen.reward_heads.options import check_options, in_words, options_of
from align_gen.reward_heads.registry import HEADS


@pytest.mark.parametrize("name", sorted(HEADS))
def test_every_option_of_every_head_has_a_type_and_a_line(name: str) -> None:
    options = options_of(name)
    assert len({option.name for option in options}) == len(options)
    for option in options:
        assert option.type
        assert len(option.description) > 10 and "\n" not in option.description
        assert option.name != "options"  # of another head


def test_an_option_as_it_is_read() -> None:
    (hue,) = options_of("mean_hue")
    assert (hue.name, hue.type, hue.default, hue.required) == ("hue", "a number", 0.0, False)
    assert hue.description == "degrees on the colour circle: 0 red, 120 green, 240 blue."
    path = options_of("clip")[0]
    assert path.name == "path" and path.required and path.default is None
    assert options_of("sharpness") == ()


def test_an_inherited_option_is_described() -> None:
    """video_reward has no ``Args:`` of its own."""
    assert [option.name for option in options_of("video_reward")] == [
        option.name for option in options_of("trained")
    ]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (float | None, "a number or null"),
        (Literal["a", "b", "c"], "a, b or c"),
        (Sequence[str] | str, "a list (each a text) or a text"),
        (Mapping[str, float], "a mapping (to a number)"),
        (str | RewardHead, "a text or a head"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert in_words(annotation) == words


def test_a_type_without_words_is_our_mistake() -> None:
    with pytest.raises(TypeError, match="no words"):
        in_words(bytes)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mean_hue", {"hue": "blue"}, "hue: want a number (degrees on the colour circle"),
        ("mean_hue", {"hue": True}, "hue: want a number"),
        ("mean_hue", {"hue": float("nan")}, "hue: want a number"),
        (
            "jpeg_size",
            {"quality": 95.5},
            "quality: want a whole number (quality of the JPEG, 0 to 100)",
        ),
        ("jpeg_size", {"goal": "tiny"}, "goal: want small or large"),
        ("clip", {"path": 3}, "path: want a text"),
        ("clip", {"path": "x", "goal": ["a", 1]}, "goal: want a list (each a text) or a text"),
        ("clip", {"path": "x", "dtype": "int8"}, "dtype: want float32, bfloat16, float16, fp32"),
        ("hps", {"antialias": "yes"}, "antialias: want true or false"),
        ("hps", {"version": "v3"}, "version: want v2.0 or v2.1"),
        ("ensemble", {"members": "clip"}, "members: want a list"),
        ("trained", {"path": "x", "weights": {"a": True}}, "weights: want a mapping"),
        ("clip", {}, "missing a required argument: 'path'; options are ['alpha'"),
        ("sharpness", {"by": 1}, "'by'; options are []"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_accepted(
    name: str, options: dict[str, Any], said: str
) -> None:
    for call in (lambda: check_options(name, options), lambda: load(name, **options)):
        with pytest.raises(ValueError, match=rf"^reward '{name}': .*{re.escape(said)}") as error:
            call()
        assert "\n" not in str(error.value)


def test_what_fits_passes() -> None:
    """A whole number is a number, a tuple is a list, and another head's options are not checked."""
    check_options("mean_hue", {"hue": 240})
    check_options("clip", {"path": "nowhere", "goal": ("a", "b"), "dtype": "bf16"})
    check_options("views", {"head": "mean_hue", "hue": 3.0})
    check_options("ensemble", {"members": ["jpeg_size", {"name": "mean_hue"}]})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clip:emoji-clip", "want clip:path=…; options are ['alpha', 'baseline'"),
        ("mean_hue:hue", "want mean_hue:hue=…; options are ['hue']"),
        ("sharpness:soft", "sharpness takes no options"),
    ],
)
def test_a_heads_name_before_a_colon_wants_options(name: str, said: str) -> None:
    """And is not taken for a package of that name."""
    with pytest.raises(ValueError, match=re.escape(said)):
        load(name)
