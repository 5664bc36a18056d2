"""Paired changes against hand arithmetic and laws; pairing, slices, refusals and gates."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from align_gen.errors import UserError
from align_gen.galleries.comparison import Comparison, compare
from align_gen.galleries.gallery import write_gallery
from align_gen.galleries.intervals import Change, paired_change
from align_gen.galleries.scoring import score
from align_gen.galleries.table import ScoresTable
from align_gen.galleries.verdicts import parse_condition

PROVENANCE = {
    "weights_sha256": "ab",
    "preprocessing": "x-1",
    "dtype": "float32",
    "options": {"goal": ["3d"]},
}


def change(
    differences: Sequence[float], prompts: Sequence[str] | None = None, **options: Any
) -> Change:
    """Of pairs that start from zero; a prompt each, unless told."""
    names = prompts or [f"p{n:03d}" for n in range(len(differences))]
    return paired_change([0.0] * len(differences), differences, names, **options)


def table(
    values: Sequence[float | None], prompts: str = "aabb", **columns: Sequence[Any]
) -> ScoresTable:
    """One head "clip"; row n has the n-th letter as prompt and counts its seeds from 0."""
    rows = [
        {"prompt": p, "seed": prompts[:n].count(p), "file_name": f"{n}.png"}
        for n, p in enumerate(prompts)
    ]
    for name, column in columns.items():
        for row, value in zip(rows, column, strict=True):
            row[name] = value
    errors = [None if value is not None else "gone" for value in values]
    return ScoresTable(rows, {"clip": list(values)}, errors, {"clip": PROVENANCE}, {})


# --- one column -----------------------------------------------------------------------------------


def test_means_by_hand() -> None:
    """before 1, 2, 3: mean 2, std 1. after 1, 4, 2: mean 7/3. 0, 2, -1: mean 1/3; half a win, a
    win, a loss.
    """
    found = paired_change([1, 2, 3], [1, 4, 2], ["a", "b", "c"])
    assert (found.n, found.prompts, found.before, found.std, found.win_rate) == (
        3,
        3,
        2.0,
        1.0,
        0.5,
    )
    assert found.after == pytest.approx(7 / 3)
    assert found.delta == pytest.approx(1 / 3)


def test_bootstrap_interval_of_four_prompts_by_hand() -> None:
    """Differences 0, 1, 2, 3. Of the 4^4 = 256 resamples the total is 0 in 1, 1 in 4, 2 in 10. 2.5
    % is the 6.4th: total 2, mean 0.5. By symmetry the upper end is 2.5.
    """
    totals = sorted(sum(draw) for draw in product(range(4), repeat=4))
    assert [totals.count(total) for total in (0, 1, 2)] == [1, 4, 10]
    found = change([0, 1, 2, 3])
    assert (found.ci_low, found.ci_high) == (0.5, 2.5)


def test_bootstrap_weighs_a_prompt_by_its_pairs() -> None:
    """Prompt a: 3 pairs of 1; b: 1 pair of 0. Resamples: aa 1, ab 3/4, bb 0, of chance 1/4, 1/2,
    1/4; delta 3/4.
    """
    found = change([1, 1, 1, 0], list("aaab"))
    assert (found.delta, found.ci_low, found.ci_high) == (0.75, 0.0, 1.0)
    many = change([1, 1, 1, 0] * 40, [f"{k}{p}" for k in range(40) for p in "aaab"])
    assert many.delta == 0.75
    assert many.ci_low < 0.75 < many.ci_high
    assert (
        many.ci_high - 0.75 < 0.75 - many.ci_low
    )  # a ratio: skewed away from its upper bound of 1


def test_bootstrap_agrees_with_the_normal_limit() -> None:
    """400 prompts: the interval is delta -+ 1.96 sd / sqrt(400), within 5 % of its width."""
    noise = np.random.default_rng(0).normal(0.1, 1, 400)
    found = change(list(noise))
    half = 1.96 * noise.std() / 20
    assert found.ci_low == pytest.approx(noise.mean() - half, abs=0.1 * half)
    assert found.ci_high == pytest.approx(noise.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_sign_flips_of_equal_gains(n: int) -> None:
    """Only all-plus and all-minus reach the observed total: p = 2 / 2^n."""
    assert change([0.1] * n).p == 2 / 2**n


def test_sign_flips_by_hand() -> None:
    """Differences 1, 2, 3: totals of the 8 patterns +-6, +-4, +-2, 0, 0; |total| >= 6 in 2. For -1,
    2, 3: >= 4 in 4.
    """
    assert change([1, 2, 3]).p == 2 / 8
    assert change([-1, 2, 3]).p == 4 / 8
    assert change([0, 0, 0]).p == 1


def test_sign_flips_that_tie_survive_rounding() -> None:
    """-3, -3, -2, 1: of 16 totals -7, -9, 7 and 9 are as far out as -7. In tenths the sums are
    inexact.
    """
    tenths = (-3, -3, -2, 1)
    hits = sum(
        abs(sum(s * t for s, t in zip(signs, tenths, strict=True))) >= 7
        for signs in product((-1, 1), repeat=4)
    )
    assert hits == 4
    assert change([t / 10 for t in tenths]).p == hits / 16


def test_sampled_sign_flips_agree_with_the_binomial() -> None:
    """20 prompts, 15 gains and 5 losses of 1: P(|15 - 5| or further) = 2 sum_{k<=5} C(20,k) / 2^20
    = 0.0414. 9,999 draws have a standard error of 0.002.
    """
    exact = 2 * sum(math.comb(20, k) for k in range(6)) / 2**20
    assert change([1.0] * 15 + [-1.0] * 5).p == pytest.approx(exact, abs=0.008)
    assert (
        change([1.0] * 40, resamples=999).p == 1 / 1000
    )  # never zero: the observed pattern counts


def test_whole_prompts_are_flipped() -> None:
    """8 seeds of one prompt are one observation: p = 2 / 2^2 for two prompts, not 2 / 2^16."""
    assert change([1.0] * 16, ["a"] * 8 + ["b"] * 8).p == 0.5


def test_swapping_sides_mirrors_everything() -> None:
    before, after = np.random.default_rng(1).normal(0, 1, (2, 60))
    prompts = [f"p{n // 3}" for n in range(60)]
    there, back = (
        paired_change(list(before), list(after), prompts),
        paired_change(list(after), list(before), prompts),
    )
    assert back.delta == -there.delta
    assert (back.ci_low, back.ci_high) == pytest.approx((-there.ci_high, -there.ci_low), abs=1e-12)
    assert back.p == there.p
    assert back.win_rate == pytest.approx(1 - there.win_rate)
    assert (back.before, back.after) == (there.after, there.before)


def test_a_constant_shifts_the_interval_and_only_means_on_both_sides() -> None:
    differences = list(np.random.default_rng(2).normal(0, 1, 30))
    plain, shifted = change(differences), change([d + 5 for d in differences])
    for field in ("delta", "ci_low", "ci_high"):
        assert getattr(shifted, field) == pytest.approx(getattr(plain, field) + 5)
    both = paired_change([5.0] * 30, [d + 5 for d in differences], [f"p{n:03d}" for n in range(30)])
    assert both.delta == pytest.approx(plain.delta)
    assert (both.ci_low, both.ci_high) == pytest.approx((plain.ci_low, plain.ci_high))
    assert both.p == plain.p


def test_copies_within_a_prompt_are_no_evidence() -> None:
    """Ten times the pairs, the same prompts: the interval and p stay. As prompts of their own they
    do narrow it.
    """
    differences = list(np.random.default_rng(3).normal(0.2, 1, 20))
    once, prompts = change(differences), [f"p{n:03d}" for n in range(20)]
    copies = change(differences * 10, prompts * 10)
    assert (copies.ci_low, copies.ci_high) == pytest.approx((once.ci_low, once.ci_high))
    assert copies.p == once.p
    apart = change(differences * 10)
    assert apart.ci_high - apart.ci_low < 0.5 * (once.ci_high - once.ci_low)


def test_the_order_of_pairs_does_not_matter_and_the_seed_does() -> None:
    differences, prompts = (
        list(np.random.default_rng(4).normal(0, 1, 40)),
        [f"p{n // 2}" for n in range(40)],
    )
    order = list(np.random.default_rng(5).permutation(40))
    first = change(differences, prompts)
    again = change([differences[i] for i in order], [prompts[i] for i in order])
    assert (again.ci_low, again.ci_high, again.p) == pytest.approx(
        (first.ci_low, first.ci_high, first.p)
    )
    assert change(differences, prompts) == first
    assert change(differences, prompts, seed=1).ci_low != first.ci_low


def test_one_prompt_has_no_interval() -> None:
    found = change([1.0, 2.0], ["a", "a"])
    assert math.isnan(found.ci_low)
    assert math.isnan(found.ci_high)
    assert found.p == 1
    assert math.isnan(change([1.0]).std)


@pytest.mark.parametrize(
    "arguments",
    [([], [], []), ([1.0], [1.0, 2.0], ["a"]), ([1.0], [2.0], []), ([math.nan], [1.0], ["a"])],
)
def test_unpaired_or_missing_numbers_are_refused(arguments: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ValueError, match="want"):
        paired_change(*arguments)


# --- two tables -----------------------------------------------------------------------------------


def test_pairs_are_found_by_prompt_and_seed_not_by_place() -> None:
    """a0: 1 -> 2, a1: 2 -> 2, b0: 3 -> 1, b1: 4 -> 4; B is stored backwards. Differences 1, 0, -2,
    0: mean -1/4.
    """
    after = table([2, 2, 1, 4])
    backwards = ScoresTable(
        after.rows[::-1], {"clip": [4, 1, 2, 2]}, after.errors, after.provenance, {}
    )
    found = compare(table([1, 2, 3, 4]), backwards)
    assert found.columns["clip"] == paired_change([1, 2, 3, 4], [2, 2, 1, 4], list("aabb"))
    assert (found.columns["clip"].delta, found.columns["clip"].prompts, found.unmatched) == (
        -0.25,
        2,
        (0, 0),
    )
    assert found.regressions["clip"] == [
        {"prompt": "b", "seed": 0, "before": 3, "after": 1, "delta": -2, "file_name": "2.png",
         "before_file_name": "2.png"}]  # fmt: skip


def test_rows_without_a_partner_or_a_number_are_left_out_and_counted() -> None:
    """A: a0 a1 b0 b1 with a1 unreadable; B: a0 a1 b0 c0 with b0 unreadable. Only a0 pairs."""
    found = compare(table([1, None, 3, 4]), table([2, 2, None, 9], "aabc"))
    assert found.columns["clip"].n == 1
    assert found.columns["clip"].delta == 1
    assert found.unmatched == (3, 3)
    with pytest.raises(UserError, match="nothing to compare"):
        compare(table([1], "a"), table([1], "b"))


def test_slices_partition_the_pairs() -> None:
    """Style x holds differences 1, 0 and y -2, 0: their counts and totals add up to the whole."""
    found = compare(table([1, 2, 3, 4], style=["x", "x", 7, 7]), table([2, 2, 1, 4]), by="style")
    assert {value: part["clip"].delta for value, part in found.slices.items()} == {
        "7": -1.0,
        "x": 0.5,
    }
    assert sum(part["clip"].n for part in found.slices.values()) == 4
    with pytest.raises(
        UserError, match=r"by: no column 'stlye'; want one of prompt, seed, file_name, style"
    ):
        compare(table([1], "a", style=["x"]), table([1], "a"), by="stlye")


def test_the_worst_pairs_come_first() -> None:
    before, after = table([0] * 5, "abcde"), table([-1, 1, -3, -2, 0], "abcde")
    assert [row["prompt"] for row in compare(before, after, worst=2).regressions["clip"]] == [
        "c",
        "d",
    ]
    assert [row["prompt"] for row in compare(before, after).regressions["clip"]] == ["c", "d", "a"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("weights_sha256", "cd"), ("preprocessing", "x-2"), ("options", {"goal": ["flat"]})],
)
def test_columns_made_differently_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    before, after = table([1, 2, 3, 4]), table([1, 2, 3, 4])
    after.provenance = {"clip": PROVENANCE | {key: value}}
    before.save(tmp_path / "a.parquet")
    after.save(tmp_path / "b.parquet")
    with pytest.raises(UserError, match=f"column 'clip': {key} differs") as caught:
        compare(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert repr(PROVENANCE[key]) in str(caught.value)
    assert repr(value) in str(caught.value)


def test_a_key_that_occurs_twice_is_named() -> None:
    twice = table([1, 2, 3, 4])
    twice.rows[1]["seed"] = 0
    with pytest.raises(UserError, match=r'B: {"prompt": "a", "seed": 0} occurs twice'):
        compare(table([1, 2, 3, 4]), twice)


def test_other_columns_can_pair() -> None:
    """By file_name alone; without a prompt each pair stands for itself."""
    before, after = table([1, 2, 3, 4]), table([2, 3, 4, 5])
    for row in before.rows + after.rows:
        del row["prompt"]
    assert compare(before, after, on=["file_name"]).columns["clip"].prompts == 4
    with pytest.raises(
        UserError, match="A row 0: no column 'prompt' to pair on; it has seed, file_name"
    ):
        compare(before, after)


def test_columns_must_be_on_both_sides() -> None:
    with pytest.raises(UserError, match="column 'hps': not scored on both sides; want one of clip"):
        compare(table([1], "a"), table([1], "a"), columns=["hps"])
    other = table([1], "a")
    other.heads = {"hps": [1.0]}
    with pytest.raises(UserError, match="no reward in common: A has clip; B has hps"):
        compare(table([1], "a"), other)


def test_json_has_no_nan() -> None:
    found = json.loads(
        json.dumps(compare(table([1], "a"), table([2], "a")).to_json(), allow_nan=False)
    )
    assert found["columns"]["clip"]["ci_low"] is None
    assert found["columns"]["clip"]["delta"] == 1
    assert found["unmatched"] == [0, 0]


# --- sources --------------------------------------------------------------------------------------


def level(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """The mean pixel, in 255ths."""
    return (media.mean((1, 2, 3)) * 255).round()


def gallery(folder: Path, *levels: int, scored: bool = True) -> Path:
    media = (torch.tensor(levels) / 255).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    write_gallery(folder, media, [{"prompt": str(n // 2), "seed": n} for n in range(len(levels))])
    if scored:
        score(folder, [level]).save(folder / "scores.parquet")
    return folder


def test_galleries_files_and_tables_are_one(tmp_path: Path) -> None:
    a, b = gallery(tmp_path / "a", 10, 20, 30, 40), gallery(tmp_path / "b", 11, 22, 33, 44)
    expected = compare(
        ScoresTable.load(a / "scores.parquet"), ScoresTable.load(b / "scores.parquet")
    )
    assert expected.columns["level"].delta == 2.5
    assert compare(a, str(b)) == expected
    assert compare(a / "scores.parquet", b) == expected
    assert compare(a, b, rewards=[level]) == expected


def test_a_gallery_without_scores_needs_rewards(tmp_path: Path) -> None:
    a, b = gallery(tmp_path / "a", 10, scored=False), gallery(tmp_path / "b", 13, scored=False)
    with pytest.raises(UserError, match=r"a: no scores\.parquet"):
        compare(a, b)
    assert compare(a, b, rewards=[level]).columns["level"].delta == 3
    with pytest.raises(UserError, match="no such file"):
        compare(tmp_path / "nowhere", b)


def run_directory(folder: Path, start: int, end: int) -> Path:
    (folder / "samples").mkdir(parents=True)
    (folder / "recipe.yaml").touch()
    gallery(folder / "before", start)
    gallery(folder / "samples" / "final", end)
    return folder


def test_a_run_stands_for_its_final_samples_and_with_itself_for_its_change(tmp_path: Path) -> None:
    """Run a goes 10 -> 15, run b 10 -> 18: a against itself +5, a against b +3."""
    a, b = run_directory(tmp_path / "a", 10, 15), run_directory(tmp_path / "b", 10, 18)
    assert compare(a, a).columns["level"].delta == 5
    assert compare(a, b).columns["level"].delta == 3
    assert compare(a / "before", a).columns["level"].delta == 5
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "recipe.yaml").touch()
    with pytest.raises(UserError, match="want a run that has finished"):
        compare(a, tmp_path / "c")


def test_a_comparison_names_the_rows_of_its_pairs() -> None:
    """By key, in A's order; also the pair whose picture could not be read, which counts nowhere."""
    a = table([1.0, None, 3.0, 4.0], "aabb")
    b = table([7.0, 6.0, 5.0], "bba")
    found = compare(a, b)
    assert found.pairs == ((0, 2), (2, 0), (3, 1))
    assert compare(a, table([1.0, 2.0, 3.0], "aab")).pairs == ((0, 0), (1, 1), (2, 2))
    assert "pairs" not in found.to_json()


# --- gates ----------------------------------------------------------------------------------------


def made(**intervals: tuple[float, float]) -> Comparison:
    """A comparison whose columns have the given intervals."""
    plain = change([1.0, 2.0])
    columns = {
        name: replace(plain, ci_low=low, ci_high=high) for name, (low, high) in intervals.items()
    }
    return Comparison(columns, {}, {}, (0, 0))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("heldout.ci_low < 0", True),
        ("heldout.ci_low<-1", False),
        ("heldout.ci_low <= -1", True),
        ("heldout.ci_high > 2e0", False),
        (" heldout.ci_high >= +2. ", True),
        ("heldout.n >= 2", True),
        ("a.b.ci_low > .5", True),
    ],
)
def test_conditions(text: str, holds: bool) -> None:
    assert parse_condition(text)(made(heldout=(-1, 2), **{"a.b": (1, 2)})) is holds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "heldout",
        "heldout.ci_low",
        "heldout.mean < 0",
        "heldout.ci_low == 0",
        "heldout.ci_low < nan",
        "a.n < b.n",
        "heldout.ci_low < 0 or 1",
        "__import__('os').system('true') < 0",
        "heldout.__class__ < 0",
        ".n < 1",
    ],
)
def test_anything_else_is_no_condition(text: str) -> None:
    with pytest.raises(UserError, match=r"want COLUMN\.FIELD OP NUMBER"):
        parse_condition(text)


def test_a_gate_that_cannot_measure_does_not_pass() -> None:
    with pytest.raises(UserError, match="column 'heldout': not compared; want one of clip"):
        parse_condition("heldout.ci_low < 0")(made(clip=(1, 2)))
    with pytest.raises(UserError, match=r"clip\.ci_low is not a number"):
        parse_condition("clip.ci_low < 0")(made(clip=(math.nan, math.nan)))


def test_a_comparison_prints_as_one_short_line() -> None:
    """B is A plus a half everywhere."""
    rows = [{"file_name": f"{i}.png", "prompt": str(i), "seed": 0} for i in range(3)]
    none: list[str | None] = [None] * 3
    a = ScoresTable(rows, {"a": [0.0, 1.0, 2.0]}, none, {}, {})
    b = ScoresTable(rows, {"a": [0.5, 1.5, 2.5]}, none, {}, {})
    assert repr(compare(a, b)) == "Comparison(3 pairs; a +0.5000)"
