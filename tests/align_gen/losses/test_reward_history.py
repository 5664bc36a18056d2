"""A prompt's rewards remembered over steps: the buffer, what is compared with it, and DDPO's steps
with it.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen.losses import advantages, history_advantages, remembered
from align_gen.losses.reward_history import History
from align_gen.methods import ddpo
from align_gen.methods.batches import Sampling
from tests.kits import methods as kit
from tests.kits.methods import require, toy
from tests.kits.runs import small_recipe, whole_and_resumed

# Two prompts of one image each on the toy, with what was remembered before.
take = partial(kit.take, "ddpo", images_per_prompt=1, prompts_per_step=2, history=4, min_count=3)


def test_first_in_first_out() -> None:
    """Three are kept of each prompt, the oldest goes first; what was there before is not
    touched.
    """
    before = {"a": [1.0, 2.0]}
    after = remembered(before, ["a", "b", "a"], torch.tensor([3.0, 9.0, 4.0]), 3)
    assert after == {"a": [2.0, 3.0, 4.0], "b": [9.0]} and before == {"a": [1.0, 2.0]}
    assert remembered(after, ["b"], torch.tensor([8.0]), 3)["b"] == [9.0, 8.0]


def test_it_is_the_same_from_json_to_the_last_bit() -> None:
    """Stopped and taken up at every step, it ends as if it had not been: float32 rewards are exact
    in JSON.
    """
    g, kept, stopped = torch.Generator().manual_seed(0), History(), History()
    for _ in range(5):
        rewards = torch.randn(4, generator=g)
        kept = remembered(kept, ["a", "b", "a", "ü"], rewards, 6)
        stopped = json.loads(json.dumps(remembered(stopped, ["a", "b", "a", "ü"], rewards, 6)))
    assert stopped == kept and len(kept["a"]) == 6 and len(kept["b"]) == 5


def test_advantages_by_hand() -> None:
    """a has 1, 2, 3, 2 (mean 2, deviation sqrt(1/2)), so 3 is sqrt 2; b has too few and is held
    against the step.

    The step's 3, 5, 1 have mean 3 and deviation sqrt(8/3), so 5 is 2 / sqrt(8/3) = sqrt(3/2).
    """
    history = {"a": [1.0, 2.0, 3.0, 2.0], "b": [5.0], "c": [1.0]}
    rewards = torch.tensor([3.0, 5.0, 1.0])
    found = history_advantages(history, ["a", "b", "c"], rewards, rewards, 4, 5.0)
    assert found.tolist() == pytest.approx([2**0.5, 1.5**0.5, -(1.5**0.5)])
    assert found.dtype == torch.float32
    assert history_advantages(
        history, ["a", "b", "c"], rewards, rewards, 4, 1.3
    ).tolist() == pytest.approx([1.3, 1.5**0.5, -(1.5**0.5)])


def test_ties_have_no_advantage() -> None:
    """Among the remembered, and among a step's own; one image alone is a tie."""
    tied = 3 * [0.1 + 0.2]
    rewards = torch.tensor([0.1 + 0.2, 7.0], dtype=torch.float64)
    assert history_advantages(
        {"a": tied, "b": [7.0]}, ["a", "b"], rewards, rewards[1:], 3, 5.0
    ).tolist() == [0, 0]


def test_with_nothing_but_the_step_remembered_it_is_the_group_itself() -> None:
    """The first step of two prompts of four, min_count 4: what ``advantages`` gives siblings."""
    rewards, prompts = torch.randn(8, generator=torch.Generator().manual_seed(0)), list("aaaabbbb")
    history = remembered({}, prompts, rewards, 16)
    found = history_advantages(history, prompts, rewards, rewards, 4, 5.0)
    torch.testing.assert_close(found, advantages(rewards, 4, 5.0))


def test_a_reward_for_each_prompt() -> None:
    with pytest.raises(ValueError, match=r"want rewards \(2,\), one for each prompt, got \(3,\)"):
        remembered({}, ["a", "b"], torch.zeros(3), 4)


# --- DDPO with it ---------------------------------------------------------------------------------


def test_one_image_of_a_prompt_learns_from_what_came_before() -> None:
    """Prompt a is above its memory and b below: signs that the step's own two rewards, the other
    way round, hide.
    """
    memory = {"rewards": {"a": [0.0, 0.1, 0.0], "b": [5.0, 5.1, 5.0]}}

    def reward(media: Tensor, prompts: Any) -> Tensor:
        return torch.tensor([1.0 if prompt == "a" else 4.0 for prompt in prompts])

    metrics, (felt,) = take(toy(), reward, memory=memory)
    assert memory == {"rewards": {"a": [0.0, 0.1, 0.0, 1.0], "b": [5.0, 5.1, 5.0, 4.0]}}
    _, (first,) = take(toy(), reward)  # too few remembered: b is the better of the two
    assert metrics["zero_variance"] == 0
    cosine = torch.nn.functional.cosine_similarity(felt.flatten(), first.flatten(), dim=0)
    assert cosine < -0.9


def test_without_a_history_nothing_is_remembered() -> None:
    memory: dict[str, Any] = {}
    take(toy(), memory=memory, images_per_prompt=4, history=None)
    assert memory == {}


def test_what_a_history_needs() -> None:
    with pytest.raises(
        ValueError, match=r"method\.images_per_prompt: 1 has nothing to be compared with"
    ):
        require(ddpo.Options(images_per_prompt=1), Sampling())
    with pytest.raises(
        ValueError, match=r"method\.images_per_prompt: 1 has nothing to be compared with"
    ):
        require(ddpo.Options(images_per_prompt=1, prompts_per_step=1, history=32), Sampling())
    with pytest.raises(ValueError, match=r"method\.history: 8 never holds method\.min_count, 16"):
        require(ddpo.Options(history=8), Sampling())
    require(ddpo.Options(images_per_prompt=1, history=16), Sampling())


@pytest.mark.slow
def test_a_run_from_end_to_end(tiny_folder: Path, tmp_path: Path) -> None:
    """Three steps of two of three prompts: what is remembered outlives a stop, and the checkpoint
    has it in JSON.
    """
    method = {"name": "ddpo", "history": 3, "min_count": 3}
    recipe = small_recipe(tmp_path, tiny_folder, method)
    whole_and_resumed(recipe, tmp_path)
    found = json.loads((tmp_path / "run" / "state.json").read_text())["memory"]["rewards"]
    assert set(found) == {"a red dog", "a blue cat", "a bird"} and all(
        len(values) == 3 for values in found.values()
    )
