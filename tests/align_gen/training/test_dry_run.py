"""The memory estimate of a dry run: what it is made of, and what a real step of the emoji model
really takes.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from align_gen import Recipe
from align_gen.peak_memory import PeakMemory
from align_gen.training.dry_run import estimate, outline

SCRIPTS = Path(__file__).resolve().parent.parent.parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
memory_page: Any = import_module("write_memory")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [[], ["memory.checkpointing=true"], ["model.lora=null"]],
    ids=["lora", "checkpointing", "full"],
)
def test_the_estimate_is_within_a_fifth_of_what_a_step_takes(more: list[str]) -> None:
    recipe = Recipe.load(memory_page.RECIPE, [*memory_page.SMALL, *more])
    expected, measured = (
        estimate(outline(recipe), recipe).peak / 2**20,
        memory_page.measured("step", *more),
    )
    print(f"{more}: estimated {expected:.0f} MiB, measured {measured:.0f} MiB")
    assert 0.8 <= expected / measured <= 1.2


def test_bytes_are_counted_while_they_live() -> None:
    """1000 floats and their double, 8000 bytes; then the first is freed, a view is nothing new, and
    a 10 x 10 comes.
    """
    with PeakMemory() as memory:
        first = torch.zeros(1000)
        second = first * 2
        del first
        product = second.view(10, 100) @ second.view(100, 10)
        assert (memory.now, memory.peak) == (4400, 8000)
        del second, product
        assert memory.now == 0


def test_what_was_there_before_is_not_counted() -> None:
    weight = torch.zeros(1000)
    with PeakMemory() as memory:
        weight.t()
        weight.add_(1)
    assert memory.peak == 0
