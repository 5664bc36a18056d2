"""What reward training writes beside the weights: the model card, whose snippet runs."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from align_gen.errors import UserError
from align_gen.reward_training import train_reward
from align_gen.reward_training.export import held, model_card, new_folder
from tests.kits.preferences import bright_pairs, pictures


def measured(accuracy: float) -> dict[str, Any]:
    """Figures of one dimension whose base is right three times in four."""
    return {
        "pairs": 40,
        "held-out pairs": 8,
        "held-out prompts": 2,
        "base": {"overall": {"accuracy": 0.75, "decided pairs": 8}},
        "trained": {"overall": {"accuracy": accuracy, "decided pairs": 8}},
        "options": {"mode": "frozen"},
    }


@pytest.mark.parametrize("mode", ["lora", "frozen"])
def test_the_cards_snippet_scores(vit: Path, tmp_path: Path, mode: str) -> None:
    train_reward(bright_pairs(16), str(vit), tmp_path / "head", mode=mode, epochs=1)
    card = (tmp_path / "head" / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet is not None
    names: dict[str, Any] = {"media": pictures(2, 0), "prompts": ["a", "b"]}
    exec(snippet[1], names)
    assert names["scores"].shape == (2,)


def test_the_card_says_base_licence_pairs_and_accuracy(tmp_path: Path) -> None:
    card = model_card(measured(0.875), "owner/base", "image", tmp_path / "mine")
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "other" and header["license_name"] == "as-the-base"
    assert "Base: `owner/base`" in card and "Licence: as the base's." in card
    assert "40 pairs" in card and "8 pairs of\n2 other prompts" in card
    assert "| overall | 75.0% | 87.5% | 8 |" in card
    assert "worse than its base" not in card


def test_the_card_says_when_the_head_is_worse_than_its_base(tmp_path: Path) -> None:
    card = model_card(measured(0.625), "owner/base", "video", tmp_path / "mine")
    assert "**overall: worse than its base: right on 62.5% of 8 held-out pairs" in card
    assert "load('video_reward'" in card and "(B, F, 3, H, W)" in card


def test_only_a_new_or_empty_folder_is_written(tmp_path: Path) -> None:
    assert new_folder(tmp_path) == tmp_path.resolve()
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already; want a new or empty folder"):
        new_folder(tmp_path)


def test_of_two_trainings_into_one_folder_the_second_is_told(tmp_path: Path) -> None:
    target = new_folder(tmp_path / "mine")
    told = rf"mine: is being written by process {os.getpid()} on"
    with held(target), pytest.raises(UserError, match=told), held(target):
        pass
    assert [*tmp_path.iterdir()] == []


def test_what_came_between_look_and_lock_is_refused(tmp_path: Path) -> None:
    target = new_folder(tmp_path / "mine")
    target.mkdir()
    (target / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"), held(target):
        pass
    assert (target / "kept.txt").read_text() == "mine"
