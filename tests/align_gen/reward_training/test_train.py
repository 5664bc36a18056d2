"""Reward training on tiny random CLIPs and pictures with a rule to find."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align_gen.errors import RunFailure, UserError
from align_gen.galleries.gallery import write_gallery
from align_gen.galleries.pairs import write_pairs
from align_gen.reward_heads import load
from align_gen.reward_heads.heads.clip import ClipHead
from align_gen.reward_heads.heads.trained import TrainedHead
from align_gen.reward_training.agreement import calibration_error
from align_gen.reward_training.targets import split
from align_gen.reward_training.train import train_reward, warm_cosine
from tests.kits.preferences import bright_pairs, fresh, order, pictures

NAN = math.nan


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_tuned_clip_learns_the_rule_and_loads_as_any_other(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Held-out prompts rise far over chance; ``clip`` alone reads what was written, and orders new
    pictures so.
    """
    base = request.getfixturevalue(kind)
    found = train_reward(
        bright_pairs(), str(base), tmp_path / "hps", epochs=6, lr=3e-3, held_out=0.25
    )
    assert found["trained"]["overall"]["accuracy"] > 0.85
    assert found["held-out prompts"] == 3 and found["pairs"] == 72 and found["held-out pairs"] == 24
    media, brightness = fresh()
    scores = ClipHead(str(tmp_path / "hps"))(media, ["thing 3"] * len(media))
    assert order(scores, brightness) > 0.8
    assert json.loads((tmp_path / "hps" / "measured.json").read_text()) == found


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [0, 8])
def test_a_head_on_frozen_features_learns_the_rule(vit: Path, tmp_path: Path, hidden: int) -> None:
    found = train_reward(
        bright_pairs(),
        str(vit),
        tmp_path / "head",
        mode="frozen",
        epochs=20,
        lr=1e-2,
        hidden=hidden,
    )
    assert found["trained"]["overall"]["accuracy"] > 0.85
    media, brightness = fresh()
    scores = TrainedHead(str(tmp_path / "head"))(media, ["thing 3"] * len(media))
    assert order(scores, brightness) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "frozen"])
def test_swapped_labels_mirror_the_order(vit: Path, tmp_path: Path, mode: Any) -> None:
    """The same pairs the other way round: what scored high scores low."""
    media, brightness = fresh()
    reached = []
    for darker in (False, True):
        out = tmp_path / f"{darker}"
        train_reward(bright_pairs(darker=darker), str(vit), out, mode=mode, epochs=8, lr=5e-3)
        head = ClipHead(str(out)) if mode == "lora" else TrainedHead(str(out))
        reached.append(order(head(media, ["thing 1"] * len(media)), brightness))
    assert reached[0] > 0.8 and reached[1] < 0.2


@pytest.mark.slow
def test_a_label_says_which_one_is_better(vit: Path, tmp_path: Path) -> None:
    """Every row swapped and labelled -1 teaches what the rows did: the same weights to rounding."""
    rows = bright_pairs(48)
    swapped = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"], "label": -1} for row in rows
    ]
    media, _ = fresh()
    scores = []
    for name, labelled in (("a", rows), ("b", swapped)):
        train_reward(labelled, str(vit), tmp_path / name, mode="frozen", epochs=3)
        head = TrainedHead(str(tmp_path / name))
        scores.append(head.scorer(head.features(media, ["thing 1"] * len(media))))
    torch.testing.assert_close(*scores)


def test_the_same_arguments_write_the_same_bytes(vit: Path, tmp_path: Path) -> None:
    """And another seed others; what the global generator did before does not matter."""
    written = []
    for n, seed in enumerate((0, 0, 1)):
        torch.rand(n + 1)
        train_reward(bright_pairs(32), str(vit), tmp_path / str(n), epochs=1, seed=seed)
        written.append((tmp_path / str(n) / "open_clip_model.safetensors").read_bytes())
    assert written[0] == written[1] != written[2]


def test_training_leaves_the_loaded_base_alone(vit: Path, tmp_path: Path) -> None:
    """Heads of one folder share a model: the one in use must not learn."""
    media, _ = fresh()
    head = ClipHead(str(vit))
    before = head(media, ["a"] * len(media))
    train_reward(bright_pairs(32), str(vit), tmp_path / "out", epochs=1)
    torch.testing.assert_close(head(media, ["a"] * len(media)), before, rtol=0, atol=0)


def test_pairs_come_from_a_file_too(vit: Path, tmp_path: Path) -> None:
    """Gallery, pairs in Parquet, training: as the same rows in memory, on a picture's 8 bits."""
    rows = bright_pairs(16)
    media = (
        torch.stack([row[side] for row in rows for side in ("chosen", "rejected")]) * 255
    ).round() / 255
    gallery = write_gallery(
        tmp_path / "g", media, [{"prompt": row["prompt"]} for row in rows for _ in range(2)]
    )
    names = [row["file_name"] for row in gallery.rows]
    kept = [
        {"prompt": row["prompt"], "chosen": names[2 * n], "rejected": names[2 * n + 1]}
        for n, row in enumerate(rows)
    ]
    write_pairs(tmp_path / "p.parquet", kept, gallery.folder)
    here = [
        {"prompt": row["prompt"], "chosen": media[2 * n], "rejected": media[2 * n + 1]}
        for n, row in enumerate(rows)
    ]
    found = train_reward(tmp_path / "p.parquet", str(vit), tmp_path / "a", epochs=1)
    expected = train_reward(here, str(vit), tmp_path / "b", epochs=1)
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}


def test_every_step_is_reported(vit: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    train_reward(
        bright_pairs(40),
        str(vit),
        tmp_path / "out",
        mode="frozen",
        epochs=2,
        batch_size=16,
        progress=lambda phase, done, total, numbers: calls.append((phase, done, total)),
    )
    assert [each for each in calls if each[0] == "features"] == [
        ("features", n, 40) for n in (16, 32, 40)
    ]
    assert [each for each in calls if each[0] == "train"] == [("train", n, 4) for n in (1, 2, 3, 4)]


# --- several dimensions, ties, votes, margins -----------------------------------------------------


def two_rules() -> list[dict[str, Any]]:
    """Dimension "light": the brighter; dimension "red": the redder, where nobody knows of every
    third pair.
    """
    rows = []
    for n, row in enumerate(bright_pairs(120)):
        red = [(row[side][0] - row[side][2]).mean().item() for side in ("chosen", "rejected")]
        rows.append(
            {
                **row,
                "label/light": 1,
                "label/red": NAN if n % 3 == 0 else 1 if red[0] > red[1] else -1,
            }
        )
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bt", "btt"])
def test_dimensions_learn_apart(vit: Path, tmp_path: Path, loss: Any) -> None:
    """Each follows its own rule and not the other's; the sum and one of them are what the parts
    say.
    """
    options = {"mode": "frozen", "dimensions": ("light", "red"), "epochs": 25, "lr": 1e-2}
    train_reward(two_rules(), str(vit), tmp_path / "head", options, loss=loss)
    media, brightness = fresh()
    prompts = ["thing 2"] * len(media)
    light, red = (
        TrainedHead(str(tmp_path / "head"), dimension=name)(media, prompts)
        for name in ("light", "red")
    )
    redness = (media[:, 0] - media[:, 2]).mean((1, 2))
    assert order(light, brightness) > 0.85 and order(red, redness) > 0.7
    assert abs(order(red, brightness) - 0.5) < 0.2
    torch.testing.assert_close(TrainedHead(str(tmp_path / "head"))(media, prompts), light + red)


def test_pairs_that_nobody_could_judge_teach_nothing(vit: Path, tmp_path: Path) -> None:
    """All labels unknown but those of one dimension: the other's tower stays as it began."""
    rows = [{**row, "label/a": 1, "label/b": None} for row in bright_pairs(32)]
    train_reward(
        rows,
        str(vit),
        tmp_path / "x",
        mode="frozen",
        dimensions=("a", "b"),
        epochs=1,
        weight_decay=0.0,
    )
    train_reward(
        rows,
        str(vit),
        tmp_path / "y",
        mode="frozen",
        dimensions=("a", "b"),
        epochs=4,
        weight_decay=0.0,
    )
    x, y = (TrainedHead(str(tmp_path / name)).scorer.state_dict() for name in "xy")
    for name in x:
        assert torch.equal(x[name], y[name]) == name.startswith("towers.1") or "bias" in name
    measured = json.loads((tmp_path / "x" / "measured.json").read_text())
    assert (
        measured["trained"]["b"]["accuracy"] is None
        and measured["trained"]["b"]["decided pairs"] == 0
    )


@pytest.mark.slow
def test_ties_pull_scores_together(vit: Path, tmp_path: Path) -> None:
    """The same pairs, first with a better one, then all ties: with btt, differences shrink to a
    fraction.
    """
    spread = []
    for name, label in (("better", 1), ("ties", 0)):
        rows = [{**row, "label": label} for row in bright_pairs(64)]
        train_reward(rows, str(vit), tmp_path / name, mode="frozen", loss="btt", epochs=20, lr=1e-2)
        head = TrainedHead(str(tmp_path / name))
        media, _ = fresh()
        spread.append(head.scorer(head.features(media, ["thing 1"] * len(media))).std().item())
    assert spread[1] < 0.3 * spread[0]


@pytest.mark.slow
def test_votes_and_margins_set_how_far_scores_part(vit: Path, tmp_path: Path) -> None:
    """Close votes hold the lead of the better one back, a margin drives it on."""
    leads = {}
    rows = [{**row, "votes": 0.6, "lead": 4.0} for row in bright_pairs(64)]
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "votes": {"label_smoothing": "votes"},
        "lead": {"margin": "lead"},
    }
    for name, more in options.items():
        train_reward(rows, str(vit), tmp_path / name, mode="frozen", epochs=30, lr=1e-2, **more)
        head = TrainedHead(str(tmp_path / name))
        both = [
            head.scorer(
                head.features(
                    torch.stack([row[side] for row in rows]), [row["prompt"] for row in rows]
                )
            )
            for side in ("chosen", "rejected")
        ]
        leads[name] = (both[0] - both[1]).mean().item()
    assert leads["votes"] < 0.5 * leads["plain"] and leads["lead"] > 1.2 * leads["plain"]
    assert leads["votes"] == pytest.approx(
        math.log(0.6 / 0.4), abs=0.3
    )  # the log-odds of three votes in five


def test_half_precision_is_measured_as_written(vit: Path, tmp_path: Path) -> None:
    """The calibration error of what ``clip`` reads from float16 is the one reported, of the two
    prompts held out.

    Deltas are logits: cosines times the model's scale, 1 / .07 as CLIP starts. The unrounded
    weights would be off.
    """
    rows = bright_pairs(64)
    found = train_reward(rows, str(vit), tmp_path / "half", epochs=3, dtype="float16")
    size = (tmp_path / "half" / "open_clip_model.safetensors").stat().st_size
    assert size < 0.6 * (vit / "open_clip_model.safetensors").stat().st_size
    head, prompts = ClipHead(str(tmp_path / "half")), [row["prompt"] for row in rows]
    chosen, rejected = (
        head(torch.stack([row[side] for row in rows]), prompts) for side in ("chosen", "rejected")
    )
    lead = {
        prompt: ((chosen - rejected) * head.clip.model.logit_scale.exp())[
            [each == prompt for each in prompts]
        ].double()
        for prompt in dict.fromkeys(prompts)
    }
    errors = [
        calibration_error(torch.cat([lead[a], lead[b]])) for a, b in itertools.combinations(lead, 2)
    ]
    reported = found["trained"]["overall"]["calibration error"]
    assert found["held-out prompts"] == 2
    assert min(abs(error - reported) for error in errors if error is not None) < 2e-6


def test_the_rate_warms_up_and_ends_near_zero() -> None:
    """100 steps: five of warm-up, then a cosine; half way cos(pi / 2) leaves 1/2."""
    rates = [warm_cosine(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[50] == pytest.approx(0.5) and rates[99] < 1e-3


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"mode": "full"}, "mode: 'full', want one of lora, frozen"),
        ({"loss": "mse"}, "loss: 'mse'"),
        ({"rank": 0}, "rank: 0"),
        ({"lr": -1.0}, "lr: -1.0"),
        ({"held_out": 1.0}, "held_out: 1.0"),
        ({"theta": 0.5}, "theta: 0.5"),
        ({"label_smoothing": "half"}, "label_smoothing: 'half'"),
        ({"label_smoothing": "votes"}, "pair 0: votes is None, want a number from 0 to 1"),
        ({"margin": "lead"}, "pair 0: lead is None, want a number from 0"),
        ({"loss": "btt", "label_smoothing": 0.1}, "go with loss bt"),
        ({"dimensions": ("a", "b")}, "mode lora: one dimension of pictures"),
        ({"dimensions": ("a", "a"), "mode": "frozen"}, "dimensions: a, a"),
        ({"base": "./nowhere"}, "path ./nowhere: want an open_clip folder"),
        ({"base": "ViT-B-32"}, "path 'ViT-B-32': an architecture needs pretrained"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_named(
    vit: Path, tmp_path: Path, options: dict[str, Any], pattern: str
) -> None:
    with pytest.raises(UserError, match=pattern):
        train_reward(bright_pairs(16), **{"base": str(vit), "out": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "frozen"])
def test_a_training_that_diverges_writes_nothing(vit: Path, tmp_path: Path, mode: Any) -> None:
    """A rate of 1e30 makes the scores infinite within a few steps."""
    with pytest.raises(RunFailure, match=r"train-reward: diverged at .*; want lr below 1e\+30"):
        train_reward(bright_pairs(16), str(vit), tmp_path / "out", mode=mode, lr=1e30)
    assert not list(tmp_path.iterdir())


def test_pairs_that_cannot_be_learned_from_are_named(vit: Path, tmp_path: Path) -> None:
    train: Callable[..., Any] = train_reward
    with pytest.raises(UserError, match="pairs: none to learn from"):
        train([], str(vit), tmp_path / "out")
    with pytest.raises(UserError, match="all of the prompt 'thing 0'"):
        train(bright_pairs(8), str(vit), tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already; want a new or empty folder"):
        train(bright_pairs(16), str(vit), tmp_path / "out")
    assert (tmp_path / "out" / "kept.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_head_that_is_worse_than_its_base_is_warned_of(
    vit: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A head that learned the opposite of what its base prefers; and a base that learned nothing.

    The base prefers the first picture of every pair, and all labels but the held-out ones say -1.
    """
    head = ClipHead(str(vit))
    rows = []
    for row in bright_pairs(64):
        scores = head(torch.stack([row["chosen"], row["rejected"]]), [row["prompt"]] * 2)
        swap = bool(scores[0] < scores[1])
        best, worst = ("rejected", "chosen") if swap else ("chosen", "rejected")
        rows.append({**row, "chosen": row[best], "rejected": row[worst]})
    _, hold = split(rows, 0.2, seed=0)
    flipped = [{**row, "label": 1 if n in hold.tolist() else -1} for n, row in enumerate(rows)]
    opposite = {"mode": "frozen", "epochs": 10, "lr": 1e-2}
    nothing = {"mode": "lora", "epochs": 1, "lr": 0.0}
    for name, learned, options, expected in (
        ("worse", flipped, opposite, 1),
        ("equal", rows, nothing, 0),
    ):
        caplog.clear()
        measured = train_reward(learned, str(vit), tmp_path / name, options)
        assert measured["base"]["overall"]["accuracy"] == 1
        warned = [r.getMessage() for r in caplog.records if "worse than its base" in r.getMessage()]
        assert len(warned) == expected, (name, measured)


def test_a_head_can_be_named_by_path(vit: Path, tmp_path: Path) -> None:
    """The written head is a reward as any other: by file and attribute until it has a row in the
    table.
    """
    train_reward(bright_pairs(16), str(vit), tmp_path / "head", mode="frozen", epochs=1)
    head = load("align_gen.reward_heads.heads.trained:TrainedHead", path=str(tmp_path / "head"))
    assert head(pictures(1, 0), ["a"]).shape == (1,)
