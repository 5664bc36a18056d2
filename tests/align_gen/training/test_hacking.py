"""A run that hacks on purpose: emoji-sd learns to make pictures that compress badly, whatever the
prompt.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from align_gen import Recipe, finetune
from align_gen.report.runs import alarm_of, report_run
from align_gen.reward_heads.loading import load

PROMPTS = {
    "train": ["a dog", "a red car", "a tree", "an apple"],
    "eval": [
        "a cat",
        "a lemon",
        "a whale",
        "a rose",
        "a burger",
        "a frog",
        "a pig",
        "a smiling face",
    ],
}


def jpeg_kilobytes(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """The larger the file, the better."""
    scores: Tensor = -load("jpeg_size")(media, prompts)
    return scores


def test_the_guard_stops_it_and_the_report_is_red(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files grow; the alignment to the prompt falls, twice in a row, and that is the end, far
    before step 60.
    """
    for name, prompts in PROMPTS.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(prompts))
    recipe = Recipe.load("emoji-sd-prdp").replace(
        method={
            "name": "ddpo",
            "images_per_prompt": 8,
            "prompts_per_step": 2,
            "gradient_steps": 1,
            "clip": 0.1,
            "keep_graph": True,
        },
        prompts={name: str(tmp_path / f"{name}.txt") for name in PROMPTS},
        rewards={jpeg_kilobytes: 1.0},
        eval_rewards={"alignment": {"name": "clip", "path": "emoji-heldout-clip"}},
        sampling={"num_inference_steps": 5},
        evaluate={"every": 4, "num_inference_steps": 5, "seeds": [0, 1, 2, 3]},
        stop={"when": "eval_rewards_fall", "patience": 2},
        optim={"lr": 3e-3, "ema": None, "micro_batch": 16},
        run={"steps": 60, "save_every": 100, "out": None},
    )
    run = finetune(recipe, tmp_path / "run")
    last = run.metrics[-1]["step"]
    assert last < 40 and [line["eval/fallen"] for line in run.metrics if "eval/fallen" in line][
        -2:
    ] == [1.0, 1.0]
    assert run.after.mean("jpeg_kilobytes") > run.before.mean("jpeg_kilobytes")
    assert run.after.mean("alignment") < run.before.mean("alignment")
    assert (
        f"step {last}: held out and fallen" in caplog.text and "the run stops here" in caplog.text
    )
    assert caplog.text.count("the run stops here") == 1
    page = report_run(run.folder).read_text()
    assert re.search(r'<section id="verdict" class="bad".*?Held-out rewards fell', page, re.DOTALL)
    assert f"The run was stopped at step {last} of 60." in page


def test_what_the_report_says_of_a_guard() -> None:
    def line(step: int, fallen: float) -> dict[str, float]:
        return {"step": step, "eval/fallen": fallen}

    assert alarm_of([], 9) is None and alarm_of([line(3, 1.0), line(6, 0.0)], 9) is None
    assert alarm_of([line(3, 1.0), line(6, 0.0), line(9, 2.0)], 9) == (
        "More than a quarter of a standard deviation below their start at step 3, 9."
    )
    assert str(alarm_of([line(3, 1.0)], 9)).endswith(" The run was stopped at step 3 of 9.")
