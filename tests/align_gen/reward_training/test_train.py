"""Reward training on tiny random CLIPs and pictures with a rule to find; what it measures, by
hand.
"""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from align_gen.errors import UserError
from align_gen.galleries.gallery import write_gallery
from align_gen.galleries.pairs import write_pairs
from align_gen.reward_heads import load
from align_gen.reward_heads.heads.clip import ClipHead
from align_gen.reward_heads.heads.trained import TrainedHead
from align_gen.reward_training.train import (
    accuracy,
    add_lora,
    calibration_error,
    measure,
    merge_lora,
    tie_calibrated_accuracy,
    train_reward,
    warm_cosine,
)
from tests.tiny.parts import clip_tokenizer

SIZE = 32
NAN = math.nan


def write_clip(folder: Path, kind: str) -> Path:
    """A random open_clip folder whose pictures do not all look alike."""
    folder.mkdir(parents=True)
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(folder)
    vision: dict[str, Any] = {"image_size": SIZE, "width": 16, "head_width": 8}
    vision |= {"layers": [1, 1, 1, 1]} if kind == "resnet" else {"layers": 2, "patch_size": 8}
    text: dict[str, Any] = {
        "context_length": 24,
        "vocab_size": len(tokenizer),
        "width": 16,
        "heads": 2,
        "layers": 1,
    }
    text |= {
        "hf_tokenizer_name": "tokenizer",
        "tokenizer_kwargs": {"clean_up_tokenization_spaces": False},
    }
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
    preprocess |= {"resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
        for weight in model.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    from safetensors.torch import save_file

    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "vit", "vit")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "resnet", "resnet")


def pictures(count: int, seed: int) -> Tensor:
    """Coarse patches of random colours, as bright as a random number says; (count, 3, 32, 32) in
    [0, 1].
    """
    g = torch.Generator().manual_seed(seed)
    patches = (
        torch.rand(count, 3, 4, 4, generator=g) * 0.5
        + torch.rand(count, 1, 1, 1, generator=g) * 0.5
    )
    return F.interpolate(patches, (SIZE, SIZE), mode="nearest")


def bright_pairs(count: int = 96, seed: int = 0, darker: bool = False) -> list[dict[str, Any]]:
    """Of two pictures the brighter one is chosen, or the darker one; eight pairs a prompt."""
    first, second = pictures(count, seed), pictures(count, seed + 1)
    rows = []
    for n, (a, b) in enumerate(zip(first, second, strict=True)):
        swap = (a.mean() < b.mean()).item() != darker
        rows.append(
            {"prompt": f"thing {n // 8}", "chosen": b if swap else a, "rejected": a if swap else b}
        )
    return rows


def fresh() -> tuple[Tensor, Tensor]:
    """Pictures no training saw, and how bright they are."""
    media = pictures(64, seed=99)
    return media, media.mean((1, 2, 3))


def order(scores: Tensor, brightness: Tensor) -> float:
    """Share of pairs that both put in the same order."""
    i, j = torch.triu_indices(len(scores), len(scores), 1)
    return ((scores[i] > scores[j]) == (brightness[i] > brightness[j])).double().mean().item()


# --- learning -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("mode", ["lora", "frozen"])
def test_swapped_labels_mirror_the_order(vit: Path, tmp_path: Path, mode: Any) -> None:
    """The same pairs told the other way round: what scored high scores low."""
    media, brightness = fresh()
    reached = []
    for darker in (False, True):
        out = tmp_path / f"{darker}"
        train_reward(bright_pairs(darker=darker), str(vit), out, mode=mode, epochs=8, lr=5e-3)
        head = ClipHead(str(out)) if mode == "lora" else TrainedHead(str(out))
        reached.append(order(head(media, ["thing 1"] * len(media)), brightness))
    assert reached[0] > 0.8 and reached[1] < 0.2


def test_a_label_says_which_one_is_better(vit: Path, tmp_path: Path) -> None:
    """Every row swapped and labelled -1 teaches what the rows did: the same weights to rounding."""
    rows = bright_pairs(48)
    swapped = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"], "label": -1} for row in rows
    ]
    media, _ = fresh()
    scores = []
    for name, told in (("a", rows), ("b", swapped)):
        train_reward(told, str(vit), tmp_path / name, mode="frozen", epochs=3)
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


def test_every_step_is_told(vit: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    train_reward(
        bright_pairs(40),
        str(vit),
        tmp_path / "out",
        mode="frozen",
        epochs=2,
        batch_size=16,
        progress=lambda phase, done, total, numbers: told.append((phase, done, total)),
    )
    assert [each for each in told if each[0] == "features"] == [
        ("features", n, 40) for n in (16, 32, 40)
    ]
    assert [each for each in told if each[0] == "train"] == [("train", n, 4) for n in (1, 2, 3, 4)]


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


@pytest.mark.parametrize("loss", ["bt", "btt"])
def test_dimensions_learn_apart(vit: Path, tmp_path: Path, loss: Any) -> None:
    """Each follows its own rule and not the other's; the sum and one of them are what the parts
    say.
    """
    train_reward(two_rules(), str(vit), tmp_path / "head", mode="frozen", dimensions=("light", "red"), loss=loss,
                 epochs=25, lr=1e-2)  # fmt: skip
    media, brightness = fresh()
    told = ["thing 2"] * len(media)
    light, red = (
        TrainedHead(str(tmp_path / "head"), dimension=name)(media, told)
        for name in ("light", "red")
    )
    redness = (media[:, 0] - media[:, 2]).mean((1, 2))
    assert order(light, brightness) > 0.85 and order(red, redness) > 0.7
    assert abs(order(red, brightness) - 0.5) < 0.2
    torch.testing.assert_close(TrainedHead(str(tmp_path / "head"))(media, told), light + red)


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


# --- low-rank changes -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_low_rank_changes_are_nothing_at_first_and_merge_exactly(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Bit by bit the base at the start; every change reaches the output; merged, the same numbers
    and names.
    """
    folder = request.getfixturevalue(kind)
    model = open_clip.create_model(f"local-dir:{folder}").eval().requires_grad_(False)
    names = list(model.state_dict())
    embeddings = [model.positional_embedding.clone(), model.token_embedding.weight.clone()]
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a dog", "a cat"])

    def outputs() -> Tensor:
        return torch.cat([model.encode_image(pictures(2, 0)), model.encode_text(tokens)])

    with torch.no_grad():  # attention takes another way where gradients are wanted
        before = outputs()
        changes = add_lora(model, rank=3, seed=0)
        assert torch.equal(outputs(), before)
    outputs().square().sum().backward()
    assert len(changes) > 8
    assert all(change.up.grad is not None and change.up.grad.any() for change in changes)
    for change in changes:
        change.up.data.normal_(std=0.1)
    moved = outputs().detach()
    assert (moved - before).abs().max() > 1e-3
    merge_lora(model)
    assert sorted(model.state_dict()) == sorted(names)
    torch.testing.assert_close(outputs(), moved)
    assert torch.equal(model.positional_embedding, embeddings[0])
    assert torch.equal(model.token_embedding.weight, embeddings[1])
    assert not any(p.requires_grad for p in model.parameters())


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
    head, told = ClipHead(str(tmp_path / "half")), [row["prompt"] for row in rows]
    chosen, rejected = (
        head(torch.stack([row[side] for row in rows]), told) for side in ("chosen", "rejected")
    )
    lead = {
        prompt: ((chosen - rejected) * head.clip.model.logit_scale.exp())[
            [each == prompt for each in told]
        ].double()
        for prompt in dict.fromkeys(told)
    }
    errors = [
        calibration_error(torch.cat([lead[a], lead[b]])) for a, b in itertools.combinations(lead, 2)
    ]
    reported = found["trained"]["overall"]["calibration error"]
    assert found["held-out prompts"] == 2
    assert min(abs(error - reported) for error in errors if error is not None) < 2e-6


# --- measuring ------------------------------------------------------------------------------------


def test_accuracy_by_hand() -> None:
    """Right, wrong, right (the second is better and leads), no lead: (1 + 0 + 1 + 1/2) / 4."""
    assert (
        accuracy(torch.tensor([2.0, -1.0, -3.0, 0.0]), torch.tensor([1.0, 1.0, -1.0, 1.0])) == 0.625
    )
    assert accuracy(torch.tensor([]), torch.tensor([])) is None


def test_tie_calibration_by_hand() -> None:
    """|delta| .1 (tie), .2 (tie), .3 (right), .4 (tie), .9 (wrong), 1.5 (right).

    Threshold 0: 2 right of 6. .1: 3. .2: 4 of 6. .3: 3. .4: 2 ties and... (.1, .2, .4) = 3 and 1.5
    is right: 4. The smaller of the two that reach 4 / 6 is .2.
    """
    delta = torch.tensor([0.9, 0.1, -0.3, 0.2, 1.5, -0.4])
    label = torch.tensor([-1.0, 0.0, -1.0, 0.0, 1.0, 0.0])
    share, threshold = tie_calibrated_accuracy(delta, label)
    assert share == pytest.approx(4 / 6) and threshold == pytest.approx(0.2)


def test_tie_calibration_equals_a_search() -> None:
    """All thresholds tried one by one, also where many deltas are of one size."""
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        delta = (torch.randn(30, generator=g) * 3).round() / 3
        label = torch.randint(-1, 2, (30,), generator=g).float()
        reached = []
        for threshold in [-1.0, *delta.abs().unique().tolist()]:
            guess = torch.where(delta.abs() <= threshold, 0.0, delta.sign())
            # below all, a lead of nothing is no tie either, and right about nothing
            right = (guess == label) & ~((delta == 0) & (threshold < 0))
            reached.append(right.double().mean().item())
        assert tie_calibrated_accuracy(delta, label)[0] == pytest.approx(max(reached))


def test_without_ties_the_threshold_is_zero() -> None:
    share, threshold = tie_calibrated_accuracy(
        torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, 1.0, 1.0])
    )
    assert share == pytest.approx(2 / 3) and threshold == 0


def test_calibration_error_by_hand() -> None:
    """Four pairs at confidence .8, two of them right: |.5 - .8|. Two at .55, both right: |1 - .55|.

    (4 (.3) + 2 (.45)) / 6 = .35.
    """
    sure, hardly = math.log(0.8 / 0.2), math.log(0.55 / 0.45)
    lead = torch.tensor([sure, sure, -sure, -sure, hardly, hardly], dtype=torch.float64)
    assert calibration_error(lead) == pytest.approx(0.35)


def test_a_judge_that_knows_its_chances_is_calibrated() -> None:
    """Labels drawn from sigmoid(delta) themselves: an error of sampling noise; twice the deltas:
    overconfident.
    """
    g = torch.Generator().manual_seed(0)
    delta = torch.randn(20_000, generator=g, dtype=torch.float64) * 2
    lead = torch.where(torch.rand(20_000, generator=g) < delta.sigmoid(), delta, -delta)
    honest, bold = calibration_error(lead), calibration_error(3 * lead)
    assert honest is not None and bold is not None and honest < 0.015 and bold > 0.05


def test_measuring_leaves_out_what_nobody_knows() -> None:
    found = measure(torch.tensor([1.0, 5.0, -1.0]), torch.tensor([1.0, NAN, -1.0]))
    assert found["decided pairs"] == 2 and found["accuracy"] == 1
    assert measure(torch.tensor([1.0]), torch.tensor([9.0]))["accuracy with ties"] is None


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


def test_a_head_can_be_named_by_path(vit: Path, tmp_path: Path) -> None:
    """The written head is a reward as any other: by file and attribute until it has a row in the
    table.
    """
    train_reward(bright_pairs(16), str(vit), tmp_path / "head", mode="frozen", epochs=1)
    head = load("align_gen.reward_heads.heads.trained:TrainedHead", path=str(tmp_path / "head"))
    assert head(pictures(1, 0), ["a"]).shape == (1,)
