"""The bench of steps: medians and floors by hand, calls counted on real steps, and a plain loop
that does the same.
"""

import json
import re
import sys
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from align_gen import cli
from align_gen.bench import steps
from align_gen.bench.plain import plain_step
from align_gen.bench.steps import METHODS, PLAIN, RECIPES, Bare, count_calls
from align_gen.bench.timing import Row, in_turns, row, spread
from align_gen.training.recipe import Recipe
from align_gen.training.setup import Session
from tests.kits.methods import cost

SMALL = [
    "sampling.num_inference_steps=3",
    "method.images_per_prompt=4",
    "method.prompts_per_step=1",
]


def test_rows_are_medians_and_the_ratio_is_that_of_rounds() -> None:
    """Seconds 1, 2, 6 and floors 1, 1, 2: medians 2 and 1, ratios 1, 2, 3 with median 2, 10 / 2
    images a second.
    """
    made = row("x", "m", 10, [1.0, 2.0, 6.0], [1.0, 1.0, 2.0])
    assert (made.seconds, made.floor_seconds, made.ratio, made.images_per_second) == (
        2.0,
        1.0,
        2.0,
        5.0,
    )
    assert made.iqr == 5.0 and spread([1.0]) == 0.0
    assert row("x", "m", 1, [1.0]).ratio is None


def test_works_take_turns() -> None:
    order: list[str] = []
    works = {name: partial(order.append, name) for name in "ab"}
    found = in_turns(works, 2, torch.device("cpu"))
    assert order == ["a", "b", "a", "b"] and [len(each) for each in found.values()] == [2, 2]


def test_the_floor_is_calls_times_what_they_cost() -> None:
    """10 rows at 2 s for 4, 6 at 3 s for 2, 8 decoded at 1 s for 8, 8 scored at .5 s for 4: 5 + 9 +
    1 + 1 = 16.
    """
    bare = Bare({}, {"forwards": 4, "backwards": 2, "decoded": 8, "scored": 4})
    calls = {"forwards": 10, "backwards": 6, "decoded": 8, "scored": 8}
    seconds = {"forwards": 2.0, "backwards": 3.0, "decoded": 1.0, "scored": 0.5}
    assert bare.floor(calls, seconds) == 16


def model_and_method(name: str, method: str) -> Any:
    """A model made ready for a method; its tests stay in one process, which makes it once."""
    group = f"{name}-{method}"
    return pytest.param((name, method), id=group, marks=pytest.mark.xdist_group(group))


@pytest.fixture(
    scope="module",
    params=[model_and_method(name, method) for name in RECIPES for method in METHODS],
)
def setting(request: Any) -> Session:
    name, method = request.param
    keep = ["method.keep=null"] if method == "prdp" else []
    made = Session.of(
        Recipe.load(RECIPES[name], [*METHODS[method], *SMALL, *keep]), Accelerator(cpu=True)
    )
    made.step()
    return made


@pytest.mark.slow
def test_a_step_makes_no_call_beyond_the_methods_table(setting: Session) -> None:
    """The table is an upper bound: it counts steps without noise, and calls that the clip or a tie
    leaves out.
    """
    calls = count_calls(setting)
    recipe = setting.recipe
    passes = setting.model.rows_per_sample(recipe.sampling.guidance_scale)
    table = cost(recipe.method, recipe.sampling, passes)
    assert 0 < calls["forwards"] + calls["backwards"] <= table["forwards"]
    assert 0 < calls["backwards"] <= table["backwards"] and calls["decoded"] == calls["scored"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        model_and_method(name, method)
        for name in RECIPES
        for method in METHODS
        if method.startswith(PLAIN)
    ],
    indirect=True,
)
def test_a_plain_loop_learns_the_same_way(setting: Session) -> None:
    """It moves what is trained and nothing else, and makes as many calls or more."""
    before = [parameter.detach().clone() for parameter in setting.model.parameters()]
    frozen = [
        p.detach().clone()
        for part in setting.model.components().values()
        for p in part.parameters()
    ]
    counts = {True: 0, False: 0}

    def count(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        counts[torch.is_grad_enabled()] += len(inputs[0] if inputs else named["hidden_states"])

    (network,) = setting.model.trainable.values()
    hook = network.register_forward_pre_hook(count, with_kwargs=True)
    plain_step(setting)
    hook.remove()
    ours = count_calls(setting)
    assert (
        counts[True] >= ours["backwards"]
        and counts[True] + counts[False] >= ours["forwards"] + ours["backwards"]
    )
    assert any(
        not torch.equal(a, b) for a, b in zip(before, setting.model.parameters(), strict=True)
    )
    after = [p for part in setting.model.components().values() for p in part.parameters()]
    trained = {id(p) for p in setting.model.parameters()}
    assert all(
        torch.equal(a, b) for a, b in zip(frozen, after, strict=True) if id(b) not in trained
    )


def test_the_command_prints_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list of rows of the promised keys; the numbers are the machine's, so none is looked at."""
    made = Row("prdp", "emoji-sd", 2.0, 1.9, 1.05, 0.1, 16.0)
    monkeypatch.setattr(steps, "bench_steps", lambda *_, **__: [made])
    monkeypatch.setattr(
        "align_gen.bench.scoring.bench_scoring", lambda *_, **__: Row("score", "c", 1, 1, 1, 0, 9)
    )
    for arguments in (["bench", "--json"], ["bench"]):
        monkeypatch.setattr(sys, "argv", ["align-gen", *arguments])
        cli.main()
        out = capsys.readouterr().out
        if arguments[-1] == "--json":
            keys = {
                "name",
                "model",
                "seconds",
                "floor_seconds",
                "ratio",
                "iqr",
                "images_per_second",
            }
            assert [row["name"] for row in json.loads(out)] == [
                "prdp",
                "score",
            ] and keys <= json.loads(out)[0].keys()
        else:
            assert re.search(r"prdp +emoji-sd", out) and "1.05" in out
