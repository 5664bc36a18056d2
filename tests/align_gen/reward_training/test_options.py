"""Options of reward training: where they come from, and what is said of a mistake."""

from typing import Any

import pytest

from align_gen.errors import UserError
from align_gen.reward_training import RewardTraining


def test_options_come_as_an_instance_a_mapping_or_keywords() -> None:
    asked = RewardTraining(rank=3, epochs=2)
    assert RewardTraining.parse(asked, {}) == asked
    assert RewardTraining.parse({"rank": 3}, {"epochs": 2}) == asked
    assert RewardTraining.parse(None, {"rank": 3, "epochs": 2}) == asked
    assert RewardTraining.parse(asked, {"rank": 5}).rank == 5  # the keyword wins


def test_the_learning_rate_is_the_modes_unless_given() -> None:
    assert RewardTraining().learning_rate == 1e-3
    assert RewardTraining(mode="frozen").learning_rate == 3e-3
    assert RewardTraining(lr=0.0).learning_rate == 0.0
    assert RewardTraining(mode="frozen").recorded()["lr"] == 3e-3


def test_every_option_says_what_it_is() -> None:
    assert all(field.description for field in RewardTraining.model_fields.values())


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"mode": "full"}, "^mode: 'full', want one of lora, frozen$"),
        ({"rnak": 4}, "^no option 'rnak' of reward training; did you mean 'rank'"),
        ({"zzz": 4}, "^no option 'zzz' of reward training; known: .*'batch_size'"),
        ({"rank": True}, "^rank: True, .*no truth value"),
        ({"centre": float("inf")}, "^centre: inf, .*finite.*weight of the loss"),
        ({"label_smoothing": 1.5}, r"^label_smoothing: 1\.5, .*from 0 to 1; or votes"),
        ({"loss": "btt", "margin": "lead"}, "^label_smoothing, margin: go with loss bt"),
        ({"dimensions": ()}, "^dimensions: none; want one or more different names$"),
        ({"dimensions": ("a", "b")}, "^mode lora: one dimension of pictures, got 2"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_that_names_the_option(options: dict[str, Any], pattern: str) -> None:
    with pytest.raises(UserError, match=pattern) as raised:
        RewardTraining.parse(options, {})
    assert "\n" not in str(raised.value)
