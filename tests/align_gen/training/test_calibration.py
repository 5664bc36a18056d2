"""The section `combine` of a recipe, and the scale that rewards have on a reference gallery."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen import Recipe, finetune
from align_gen.errors import UserError
from align_gen.galleries.gallery import write_gallery
from align_gen.galleries.scoring import score, score_file
from align_gen.galleries.table import ScoresTable
from align_gen.reward_heads import reward_set
from align_gen.training.calibration import Combine, combination, scales_of
from tests.kits.runs import small_recipe

SPEC: dict[str, Any] = {
    "hue": {"name": "mean_hue", "hue": 120.0},
    "size": {"name": "jpeg_size", "quality": 90},
}


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    noise = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * torch.rand(
        6, 1, 1, 1
    )
    write_gallery(tmp_path / "reference", noise, [{"prompt": f"p{n % 2}"} for n in range(6)])
    score_file(tmp_path / "reference", SPEC, tmp_path / "reference/scores.parquet")
    return tmp_path / "reference"


def test_on_its_own_reference_every_reward_is_centred_and_of_unit_spread(reference: Path) -> None:
    """Mean 0 within each prompt, deviation 1 over all: the definition, read back from what the set
    says.
    """
    rewards = reward_set(SPEC)
    for name in SPEC:
        alone = reward_set({name: SPEC[name]})
        alone.combination = combination(Combine(calibrate=str(reference)), alone)
        combined = torch.tensor(score(reference, alone).combined, dtype=torch.float64)
        assert combined.view(3, 2).mean(0).abs().max() < 1e-5
        assert combined.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    rewards.combination = combination(Combine(rule="min", calibrate=str(reference)), rewards)
    table = score(reference, rewards)
    scales = scales_of(str(reference), rewards)
    by_hand = [
        min(
            (float(table.heads[name][n] or 0) - scales[name].means[f"p{n % 2}"]) / scales[name].std
            for name in SPEC
        )
        for n in range(6)
    ]
    assert table.combined == pytest.approx(by_hand, abs=1e-5)
    assert table.uncertainty is not None  # members that disagree


def test_a_reference_scored_by_others_is_refused(reference: Path) -> None:
    """Other options, another name, a prompt without differences: each is named."""
    section = Combine(calibrate=str(reference))
    with pytest.raises(UserError, match=r"'hue' was scored with another options; score it again"):
        combination(section, reward_set({"hue": {"name": "mean_hue", "hue": 10.0}}))
    with pytest.raises(UserError, match=r"has no scores of 'other'; it has \['hue', 'size'\]"):
        combination(section, reward_set({"other": {"name": "mean_hue"}}))
    table = ScoresTable.load(reference / "scores.parquet")
    flat = ScoresTable(
        table.rows, {**table.heads, "hue": [0.5] * 6}, table.errors, table.provenance, {}
    )
    flat.save(reference / "scores.parquet")
    with pytest.raises(UserError, match="'hue': its scores do not differ within any prompt"):
        combination(section, reward_set(SPEC))
    with pytest.raises(UserError, match=r"no scores\.parquet in it"):
        combination(Combine(calibrate=str(reference.parent)), reward_set(SPEC))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"rule": "max"}, "combine.rule"),
        ({"rule": "min"}, "min takes each reward alike; want weights of 1"),
        ({"gates": {"nothing": 1.0}}, "combine.gates: no reward 'nothing'; have"),
        ({"gates": {"hue": 0.1, "size": -9.0}}, "every reward is a gate"),
        ({"temperature": 0}, "combine.temperature"),
        ({"calibrate": "nowhere"}, "nowhere: no such file"),
        ({"when": 1}, "unknown key combine.when"),
    ],
    ids=str,
)
def test_a_mistake_in_combine_is_one_line_before_anything_is_written(
    tiny_folder: Path, tmp_path: Path, section: dict[str, Any], message: str
) -> None:
    rewards = {**SPEC, "hue": {**SPEC["hue"], "weight": 2.0}}
    with pytest.raises(UserError, match=message):
        finetune(combining_recipe(tmp_path, tiny_folder, rewards, section), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def combining_recipe(
    folder: Path, model: Path, rewards: dict[Any, Any], section: dict[str, Any]
) -> Recipe:
    """One step of 2 prompts x 4 pictures."""
    return small_recipe(
        folder,
        model,
        {"name": "ddpo", "images_per_prompt": 4, "clip": 1.0},
        rewards=rewards,
        combine=section,
        eval_rewards={"held": {"name": "mean_hue"}},
        run={"steps": 1},
    )


@pytest.mark.slow
def test_a_run_optimises_what_the_recipe_combines(tiny_folder: Path, tmp_path: Path) -> None:
    """Grouped: within each prompt each head has mean 0 and deviation 1, so the step's reward has
    mean 0.

    A head of tiny spread then counts as much as one of large. Galleries keep the combined reward.
    """

    def huge(media: Tensor, prompts: Sequence[str]) -> Tensor:
        return 1000 * media.mean((1, 2, 3))

    rewards = {"huge": {"name": huge}, "hue": {"name": "mean_hue", "hue": 120.0}}
    grouped = combining_recipe(tmp_path, tiny_folder, rewards, {"normalise": "group"})
    run = finetune(grouped, tmp_path / "grouped")
    [line] = [line for line in run.metrics if "reward/combined" in line]
    assert line["reward/combined"] == pytest.approx(0, abs=1e-5) and 0.5 < line["reward/std"] < 2.1
    plain = finetune(combining_recipe(tmp_path, tiny_folder, rewards, {}), tmp_path / "plain")
    table = ScoresTable.load(plain.folder / "samples/final/scores.parquet")
    sums = [a + b for a, b in zip(table.heads["huge"], table.heads["hue"], strict=True)]  # type: ignore[operator]
    assert table.combined == pytest.approx(sums, abs=1e-3)
    assert "combine:" in (run.folder / "recipe.yaml").read_text()
    assert json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[1])["step"] == 1
