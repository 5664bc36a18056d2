"""A head says that it reads prompts exactly where another prompt gives another score."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen.bundled import model_path
from align_gen.reward_heads import RewardHead, load, reward_set
from align_gen.reward_heads.base import label
from align_gen.reward_heads.registry import HEADS

CLIP = {"path": model_path("emoji-clip")}
GOAL = {**CLIP, "goal": "a glossy 3d emoji"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("clip", CLIP),
    "a goal": ("clip", GOAL),
    "a goal and a baseline": ("clip", {**GOAL, "baseline": "a flat icon"}),
    "a goal that quotes the prompt": ("clip", {**CLIP, "goal": ["red", "{prompt} in blue"]}),
    "a baseline that does": ("clip", {**GOAL, "baseline": "{prompt}"}),
    "hps": ("hps", {"path": model_path("emoji-hps")}),
    "colour": ("colour", {}),
    "jpeg_size": ("jpeg_size", {}),
    "mean_hue": ("mean_hue", {}),
    "sharpness": ("sharpness", {}),
    "views of clip": ("views", {"head": "clip", **CLIP}),
    "views of a goal": ("views", {"head": "clip", **GOAL}),
    "views of colours": ("views", {"head": "colour"}),
    "segments of clip": ("segments", {"head": "clip", **CLIP, "segments": 1}),
    "segments of colours": ("segments", {"head": "colour", "segments": 1}),
    "one of several": ("ensemble", {"members": ["colour", {"name": "clip", **CLIP}]}),
    "none of several": ("ensemble", {"members": ["colour", "mean_hue"]}),
}


def answers_to_prompts(head: RewardHead) -> bool:
    media = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    media = media if head.media == "image" else media[:, None]
    return not torch.equal(head(media, ["a red car"]), head(media, ["two green frogs"]))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_head_says_what_it_does(case: str) -> None:
    name, options = CASES[case]
    head = load(name, **options)
    assert head.reads_prompt == answers_to_prompts(head)


@pytest.mark.slow
def test_both_answers_are_among_the_cases() -> None:
    said = {load(name, **options).reads_prompt for name, options in CASES.values()}
    assert said == {True, False}
    # Those of random weights are tried beside their own tests, and of no weights at all in none.
    elsewhere = {"aesthetic", "image_reward", "ocr", "pick_score", "siglip", "trained"}
    elsewhere |= {"video_reward"}
    assert {name for name, _ in CASES.values()} | elsewhere == set(HEADS)


def test_nothing_is_known_of_a_function_unless_it_says_so() -> None:
    def silent(media: Tensor, prompts: Sequence[str]) -> list[float]:
        return [float(len(prompt)) for prompt in prompts]

    def honest(media: Tensor, prompts: Sequence[str]) -> list[float]:
        return [float(len(prompt)) for prompt in prompts]

    honest.reads_prompt = True  # type: ignore[attr-defined]
    assert not load(silent).reads_prompt and load(honest).reads_prompt
    assert reward_set([silent, honest, "colour"]).prompt_readers == [label(honest)]
