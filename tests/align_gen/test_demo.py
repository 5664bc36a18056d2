"""The demo, cut short: every part of it on the bundled models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from align_gen.demo import COLUMNS, HeldOutFigures, demo
from align_gen.errors import UserError
from align_gen.training.recipe import Recipe

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {"before", "after", "std", "ci_low", "ci_high", "p"}


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of the demo on six held-out prompts."""
    folder = tmp_path_factory.mktemp("demo")
    prompts = (ROOT / "assets" / "prompts" / "emoji-heldout.jsonl").read_text().splitlines()[:6]
    (folder / "few.jsonl").write_text("\n".join(prompts))
    demo(out=folder / "run", overrides=overrides(folder))
    return folder / "run"


def overrides(folder: Path) -> tuple[str, ...]:
    return (
        "run.steps=1",
        "optim.lr=1e-4",  # a first step at the full rate would clip everything
        "method.prompts_per_step=1",
        "sampling.num_inference_steps=3",
        "evaluate.num_inference_steps=3",
        f"prompts.eval={folder / 'few.jsonl'}",
    )


def test_summary_has_every_figure(short: Path) -> None:
    summary = json.loads((short / "summary.json").read_text())
    assert {
        "method",
        "steps",
        "seconds",
        "images",
        "clip_fraction",
        "denoiser_calls",
    } <= summary.keys()
    assert summary["method"] == "prdp"
    assert summary["steps"] == 1
    assert summary["prompts"] == 6
    assert summary["verdict"].startswith("Too few prompts to say (6 of at least 10): ")
    for name in COLUMNS:
        assert summary[name].keys() >= FIGURES
    # 16 images drawn in 3 steps, 4 learned from over the stochastic ones: reference, backward,
    # replay, backward. In the first step one sample is replayed alone, to know the noise of the
    # arithmetic. Guidance doubles all.
    stochastic = 3
    assert summary["denoiser_calls"] == 2 * (16 * 3 + 4 * 4 * stochastic + stochastic)
    assert 0 < summary["clip_fraction"] < 1


def test_a_finished_demo_is_only_summed_up_again(short: Path) -> None:
    """The same call again trains nothing, says the same, and does not count its own seconds."""
    text = (short / "summary.json").read_text()
    demo(out=short, overrides=overrides(short.parent))
    assert (short / "summary.json").read_text() == text


def test_a_folder_of_something_else_is_refused_whatever_it_holds(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(UserError, match="want a new or empty folder"):
        demo(out=tmp_path)


def test_figures_can_be_recomputed_without_us(short: Path) -> None:
    """scripts/recheck_demo.py imports open_clip and nothing of align_gen, and agrees to 1e-4."""
    script = ROOT / "scripts" / "recheck_demo.py"
    assert "align_gen" not in [
        line.split()[1].split(".")[0]
        for line in script.read_text().splitlines()
        if line.startswith(("import ", "from "))
    ]
    done = subprocess.run([sys.executable, str(script), str(short)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_demo_recipe_lets_the_clip_act() -> None:
    """With one gradient step theta = theta_old throughout and the clip could never act (algorithm 1
    with K = 1).
    """
    recipe = Recipe.load("emoji-sd-prdp")
    assert recipe.method.model_dump()["gradient_steps"] >= 2
    assert len(recipe.evaluate.seeds) >= 2  # diversity within a prompt needs two


def test_judged_knows_a_perfect_gallery(short: Path) -> None:
    """Recall is a share and diversity a mean of 1 - cosine: in [0, 1] and [0, 2]."""
    from align_gen.galleries.table import ScoresTable

    judged = HeldOutFigures.of(
        ScoresTable.load(short / "before" / "scores.parquet"),
        str(ROOT / "assets/models/emoji-heldout-clip"),
    )
    assert 0 <= judged.recall_at_5 <= 1
    assert 0 < judged.diversity < 2
