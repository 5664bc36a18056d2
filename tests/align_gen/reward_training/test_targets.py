"""What rows say, as tensors; which prompts are held out."""

import math
from typing import Any

import pytest
import torch

from align_gen.errors import UserError
from align_gen.reward_training.targets import Targets, kind_of, split


def test_labels_are_read_from_the_dimension_then_the_row_then_the_sides() -> None:
    """label/a first, label where it is missing, 1 where both are; text and None are NaN."""
    rows: list[dict[str, Any]] = [
        {"label/a": -1, "label": 0},
        {"label": 0},
        {},
        {"label/a": None, "label": 1},
        {"label/a": "left"},
    ]
    labels = Targets.of(rows, ("a",), 0.0, None).labels[:, 0].tolist()
    assert labels[:3] == [-1, 0, 1]
    assert all(math.isnan(label) for label in labels[3:])


def test_votes_are_turned_into_the_chance_of_a_mistake() -> None:
    """Three votes in five: a label is wrong two times in five; margins come from their column."""
    rows: list[dict[str, Any]] = [{"votes": 0.6, "lead": 2.0}, {"votes": 1, "lead": 0}]
    targets = Targets.of(rows, ("overall",), "votes", "lead")
    torch.testing.assert_close(targets.wrong, torch.tensor([[0.4], [0.0]]))
    assert targets.margin.tolist() == [[2.0], [0.0]]
    plain = Targets.of(rows, ("overall",), 0.25, None)
    assert plain.wrong.tolist() == [[0.25], [0.25]] and plain.margin.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("votes", [True, 1.5, -0.1, math.nan, math.inf, "0.5", None])
def test_votes_that_are_no_share_are_named(votes: object) -> None:
    with pytest.raises(UserError, match=r"pair 0: votes is .*, want a number from 0 to 1"):
        Targets.of([{"votes": votes}], ("overall",), "votes", None)


def test_no_prompt_is_on_both_sides() -> None:
    """Ten prompts of three pairs, a fifth held out: two prompts; another seed holds out others."""
    rows = [{"prompt": f"thing {n % 10}"} for n in range(30)]
    learn, hold = split(rows, 0.2, seed=0)
    assert sorted([*learn.tolist(), *hold.tolist()]) == list(range(30))
    prompts = [{rows[i]["prompt"] for i in part.tolist()} for part in (learn, hold)]
    assert len(prompts[1]) == 2 and not prompts[0] & prompts[1]
    assert any(split(rows, 0.2, seed)[1].tolist() != hold.tolist() for seed in (1, 2, 3))


def test_one_prompt_at_least_is_on_either_side() -> None:
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    for share in (0.01, 0.99):
        learn, hold = split(rows, share, seed=0)
        assert len(learn) == len(hold) == 1


def test_videos_have_one_axis_more() -> None:
    assert kind_of([{"chosen": torch.zeros(3, 8, 8)}]) == "image"
    assert kind_of([{"chosen": torch.zeros(5, 3, 8, 8)}]) == "video"
