"""Laws that every method obeys, a row each; a method's own file has its closed form and its hand
arithmetic.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align_gen.methods import METHODS
from align_gen.methods.batches import Batch, Media, Pairs, Sampling
from align_gen.pipelines import Model
from tests.kits.methods import (
    GROUP,
    SAMPLING,
    STEPS,
    TEXTS,
    batch_kind,
    cost,
    first_coordinate,
    flat,
    flat_for_b,
    media_of,
    moved,
    options_of,
    pairs_of,
    pictures,
    prompts_of,
    take,
)
from tests.kits.runs import given_media, given_pairs, held_out_only, small_recipe, whole_and_resumed

PICTURES = len(TEXTS) * GROUP
DRAWN = PICTURES * STEPS
REPLAYED = PICTURES * (STEPS - 1)  # the last step has no noise, and so no density
WINDOW = PICTURES * 2
NOISED = PICTURES * 3  # a picture is noised at three times


@dataclass(frozen=True)
class Row:
    """A setting of a method on a toy, and what a step of it costs, counted by hand.

    ``forwards`` are rows of the policy and of the reference, ``backwards`` those with a gradient;
    both where no clip leaves a call out. ``compares``: ties teach nothing. ``step_wide``: what a
    sample teaches depends on the whole step.
    """

    method: str
    options: dict[str, Any]
    forwards: int
    backwards: int
    toy: str = "toy-diffusion"
    compares: bool = False
    step_wide: bool = False


ROWS = {
    # A gradient step replays without a gradient first, but for the first one; and one sample alone
    # is replayed for ``replay_error``.
    "prdp": Row(
        "prdp",
        {"gradient_steps": 2, "beta": 5.0, "clip": 1e-3},
        forwards=DRAWN + REPLAYED + (STEPS - 1) + 3 * REPLAYED,
        backwards=2 * REPLAYED,
        compares=True,
    ),
    "prdp, 2 kept": Row(
        "prdp",
        {"gradient_steps": 2, "beta": 5.0, "clip": 1e-3, "keep": 2},
        forwards=DRAWN + REPLAYED // 3 + (STEPS - 1) + 3 * REPLAYED // 3,
        backwards=2 * REPLAYED // 3,
        compares=True,
    ),
    "ddpo": Row(
        "ddpo",
        {"gradient_steps": 2, "clip": 1e-3},
        forwards=DRAWN + 2 * REPLAYED,
        backwards=2 * REPLAYED,
        compares=True,
    ),
    "ddpo, graph kept": Row(
        "ddpo",
        {"keep_graph": True, "clip": 1e-3},
        forwards=DRAWN,
        backwards=REPLAYED,
        compares=True,
    ),
    "grpo": Row(
        "grpo",
        {"window": 2, "gradient_steps": 2, "clip": 1e-3},
        forwards=DRAWN + 2 * WINDOW,
        backwards=2 * WINDOW,
        compares=True,
    ),
    "grpo, by step": Row(
        "grpo",
        {"window": 2, "gradient_steps": 2, "clip": 1e-3, "kl": 0.1, "std": "step"},
        forwards=DRAWN + 4 * WINDOW,
        backwards=2 * WINDOW,
        toy="toy-flow",
        step_wide=True,
    ),
    # The outputs of the first gradient step are the old policy's.
    "nft": Row(
        "nft",
        {"gradient_steps": 2, "times_per_image": 3},
        forwards=DRAWN + 2 * NOISED,
        backwards=2 * NOISED,
        compares=True,
    ),
    "nft, kl": Row(
        "nft",
        {
            "gradient_steps": 2,
            "times_per_image": 3,
            "kl": 0.1,
            "dropout": 0.5,
            "times": "logit_normal",
        },
        forwards=DRAWN + 4 * NOISED,
        backwards=2 * NOISED,
        toy="toy-flow",
    ),
    "raft": Row("raft", {"gradient_steps": 2}, forwards=DRAWN + 2 * 2, backwards=2 * 2),
    "raft, prior": Row(
        "raft",
        {"gradient_steps": 2, "prior_weight": 0.5},
        forwards=DRAWN + 4 * 2,
        backwards=2 * 2,
    ),
    "raft, half of the prompts": Row(
        "raft",
        {"gradient_steps": 2, "temperature": 0.3, "prompt_share": 0.5},
        forwards=DRAWN + 2 * 1,
        backwards=2 * 1,
        step_wide=True,
    ),
    "rwr": Row(
        "rwr",
        {"gradient_steps": 2, "min_ess": 1.5},
        forwards=DRAWN + 2 * PICTURES,
        backwards=2 * PICTURES,
    ),
    "rwr, given": Row(
        "rwr",
        {"gradient_steps": 2, "min_ess": 1.5, "offline": True},
        forwards=2 * PICTURES,
        backwards=2 * PICTURES,
    ),
    "sft": Row("sft", {}, forwards=PICTURES, backwards=PICTURES),
    "dpo": Row(
        "dpo",
        {"gradient_steps": 2, "beta": 3.0, "images_per_prompt": 2},
        forwards=4 * 4,
        backwards=2 * 4,
    ),
    "dpo, online": Row(
        "dpo",
        {"gradient_steps": 2, "beta": 3.0, "online": True},
        forwards=DRAWN + 4 * 4,
        backwards=2 * 4,
        compares=True,
    ),
}
rows = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


def settings(row: Row, **more: Any) -> dict[str, Any]:
    return {"images_per_prompt": GROUP, "prompts_per_step": len(TEXTS), **row.options, **more}


def batch_of(row: Row, model: Model) -> Batch:
    """Two prompts, or what is given of them: a pair each, or six pictures each."""
    kind = batch_kind(options_of(row.method, **settings(row)))
    if kind == "prompts":
        return prompts_of(model, *TEXTS)
    if kind == "pairs":
        chosen, rejected = pictures(4).chunk(2)
        return pairs_of(model, chosen, rejected, TEXTS)
    texts = [text for text in TEXTS for _ in range(GROUP)]
    return media_of(model, pictures(len(texts)), texts)


def part_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch, with the ids that they have in it."""
    fields: dict[str, Any] = {
        "texts": batch.texts[rows],
        "condition": batch.condition[rows],
        "ids": batch.ids[rows],
    }
    if isinstance(batch, Pairs):
        fields |= {"chosen": batch.chosen[rows], "rejected": batch.rejected[rows]}
    if isinstance(batch, Media):
        fields |= {"media": batch.media[rows]}
    return replace(batch, **fields)


def test_every_method_has_a_row() -> None:
    assert {row.method for row in ROWS.values()} == set(METHODS)
    assert {run.method["name"] for run in RUNS.values()} == set(METHODS)


@pytest.mark.slow
@rows
@pytest.mark.parametrize("micro_batch", [1, 5])
def test_micro_batches_change_nothing(row: Row, micro_batch: int) -> None:
    """12 samples at once, one by one, or unevenly: same gradients at both updates, and metrics, to
    1e-6.

    What a metric is a difference of (a change of log-probabilities, a loss whose advantages add up
    to 0) is of the size of 1 and rounded to 1e-7 of that, so 1e-6 absolute.
    """
    (expected, whole), (metrics, parts) = (
        take(
            row.method,
            model := moved(row.toy),
            batch=batch_of(row, model),
            lr=0.05,
            micro_batch=size,
            **settings(row),
        )
        for size in (100, micro_batch)
    )
    assert metrics == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert len(whole) == row.options.get("gradient_steps", 1)
    for a, b in zip(whole, parts, strict=True):
        assert a.any() and (a - b).abs().max() <= 1e-6 * a.abs().max()


@pytest.mark.parametrize(
    "row", [row for row in ROWS.values() if not row.step_wide], ids=lambda row: row.method
)
def test_a_sample_does_not_depend_on_its_batch_mates(row: Row) -> None:
    """The gradient of a step of two prompts is the mean of each one's alone, to rounding: a sum of
    at most 36 terms in another order, each rounded to 6e-8 of the largest.
    """
    model = moved(row.toy)
    batch = batch_of(row, model)
    half = len(batch) // 2
    _, (together, *_) = take(row.method, moved(row.toy), batch=batch, **settings(row))
    alone = []
    for rows in (slice(half), slice(half, None)):
        part = part_of(batch, rows)
        more = settings(row, prompts_per_step=1)
        alone.append(take(row.method, moved(row.toy), batch=part, **more).gradients[0])
    assert not torch.equal(*alone)
    mean = torch.stack(alone).mean(0)
    assert (mean - together).abs().max() <= NOISED * 6e-8 * together.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sharded"),
    [(name, sharded) for name, row in ROWS.items() if row.compares for sharded in (False, True)],
)
def test_ties_do_not_move_the_model(name: str, sharded: bool) -> None:
    """All rewards tie: nothing is divided by zero, the optimizer is not called, the weights stay.

    A network in shards is called for ties too, and learns nothing. Where one prompt of two ties,
    the step is one of the other.
    """
    row = ROWS[name]
    model = moved(row.toy)
    before = model.parameters()[0].detach().clone()
    metrics, gradients = take(row.method, model, flat, sharded=sharded, **settings(row))
    assert metrics["zero_variance"] == 1
    assert not gradients or (sharded and not torch.stack(gradients).any())
    assert metrics.get("grad_norm", 0) == 0 and (sharded or metrics.get("loss", 0) == 0)
    assert all(math.isfinite(value) for value in metrics.values())
    assert torch.equal(model.parameters()[0], before)

    metrics, gradients = take(row.method, model, flat_for_b, sharded=sharded, **settings(row))
    assert metrics["zero_variance"] == 0.5 and all(gradient.any() for gradient in gradients)
    assert len(gradients) == row.options.get("gradient_steps", 1)


@rows
def test_the_table_of_calls_bounds_the_calls(row: Row) -> None:
    """Rows are as many as counted by hand where no clip leaves one out, and no more than
    promised.
    """
    more = settings(row)
    if "clip" in more:
        more["clip"] = 1e9
    model = moved(row.toy)
    counts = {True: 0, False: 0}

    def count(module: Any, inputs: tuple[Any, ...]) -> None:
        counts[torch.is_grad_enabled()] += len(inputs[0])

    for network in (*model.trainable.values(), *model.reference_copies.values()):
        network.register_forward_pre_hook(count)
    take(row.method, model, first_coordinate, batch=batch_of(row, model), lr=0.01, **more)
    assert (counts[True] + counts[False], counts[True]) == (row.forwards, row.backwards)
    promised = cost(options_of(row.method, **more), SAMPLING, 1)
    assert row.forwards <= promised["forwards"] and row.backwards <= promised["backwards"]


# --- whole runs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunRow:
    """A setting of a method in a whole run, and what holds of its metrics in every step."""

    method: dict[str, Any]
    holds: Callable[[dict[str, Any]], bool] = lambda line: True
    given: str | None = None
    sampling: Sampling | None = None
    once: int = 0  # rows of the first step alone, which no table has


RUNS = {
    "prdp": RunRow(
        {"name": "prdp", "gradient_steps": 2, "beta": 1e-3, "clip": 1.0},
        lambda line: line["kl_binding"] >= 0,
        once=2 * 3,  # one sample, guided, is replayed in three steps for ``replay_error``
    ),
    "ddpo": RunRow({"name": "ddpo"}, lambda line: line["clip_fraction"] == 0),
    "grpo": RunRow(
        {"name": "grpo", "window": 1, "kl": 0.1, "gradient_steps": 2}, lambda line: line["kl"] >= 0
    ),
    "nft": RunRow(
        {"name": "nft", "kl": 0.1, "gradient_steps": 2, "times_per_image": 2},
        lambda line: line["output_change"] > 0,
    ),
    "nft, average": RunRow(
        {"name": "nft", "old": "average", "kl": 0.1, "gradient_steps": 2, "times_per_image": 2},
        lambda line: line["output_change"] > 0,
    ),
    "raft": RunRow(
        {"name": "raft", "images_per_prompt": 3, "gradient_steps": 2},
        lambda line: line["kept_reward"] >= line["reward/combined"] and "prior" not in line,
    ),
    "raft, prior": RunRow(
        {
            "name": "raft",
            "images_per_prompt": 3,
            "gradient_steps": 2,
            "temperature": 5.0,
            "prompt_share": 0.5,
            "prior_weight": 0.1,
        },
        lambda line: line["prior"] > 0 or line["step"] == 1,
    ),
    "rwr": RunRow(
        {"name": "rwr", "images_per_prompt": 3, "gradient_steps": 2, "beta": 100.0},
        lambda line: 0 < line["ess"] <= 1 and line["skipped"] == 0,
    ),
    "rwr, given": RunRow(
        {
            "name": "rwr",
            "images_per_prompt": 3,
            "gradient_steps": 2,
            "beta": 100.0,
            "offline": True,
        },
        lambda line: 0 < line["ess"] <= 1 and line["skipped"] == 0,
        given="media",
    ),
    "sft": RunRow(
        {"name": "sft", "images_per_prompt": 1, "prompts_per_step": 3},
        lambda line: math.isfinite(line["loss"]),
        given="media",
    ),
    "dpo": RunRow(
        {"name": "dpo", "beta": 100.0},
        lambda line: 0 <= line["accuracy"] <= 1,
        given="pairs",
    ),
    "dpo, online": RunRow(
        {"name": "dpo", "online": True, "images_per_prompt": 3, "gradient_steps": 2, "beta": 100.0},
        lambda line: {"margin", "accuracy"} <= line.keys(),
        sampling=Sampling(num_inference_steps=2, guidance_scale=2.0, eta=0.0, height=16, width=16),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", RUNS.values(), ids=RUNS)
def test_a_run_resumes_to_the_last_bit(row: RunRow, tiny_folder: Path, tmp_path: Path) -> None:
    """With a LoRA, whose reference is itself switched off; and as many calls as promised or
    fewer.
    """
    sections: dict[str, Any] = {}
    if row.given is not None:
        gallery = given_pairs(tmp_path) if row.given == "pairs" else given_media(tmp_path, 3)
        sections |= {"data": {row.given: str(gallery)}, "prompts": held_out_only(tmp_path)}
    if row.given is not None and row.method["name"] != "rwr":
        sections |= {"rewards": {}, "eval_rewards": {"jpeg_size": 1.0}}
    if row.sampling is not None:
        sections["sampling"] = row.sampling.model_dump()
    recipe = small_recipe(tmp_path, tiny_folder, row.method, **sections)

    run = whole_and_resumed(recipe, tmp_path)
    steps = [line for line in run.metrics if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        assert line["grad_norm"] > 0 and row.holds(line), line
        if "rewards" not in sections:
            expected = {"reward/mean_hue", "reward/combined", "reward/std", "zero_variance"}
            assert expected <= line.keys()
    promised = cost(recipe.method, recipe.sampling, 2)["forwards"]
    assert 0 < run.denoiser_calls <= len(steps) * promised + row.once
