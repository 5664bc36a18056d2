"""What watches a run: the arithmetic of falls and best measurements, and warnings of mismatches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen import Recipe, pipelines
from align_gen.galleries.diversity import diversity, embeddings
from align_gen.galleries.gallery import Gallery, write_gallery
from align_gen.galleries.table import ScoresTable
from align_gen.training.early_stopping import EarlyStopping
from align_gen.training.setup import mismatches

HELD_OUT = ("heldout",)


def table(values: list[float], **more: list[float]) -> ScoresTable:
    rows: list[dict[str, Any]] = [{"file_name": str(i)} for i in range(len(values))]
    heads: dict[str, list[float | None]] = {
        "heldout": [*values],
        **{name: [*each] for name, each in more.items()},
    }
    return ScoresTable(rows, heads, [None] * len(values), {}, {})


def moved(shift: float) -> ScoresTable:
    """Before: 0 +- 1 (ddof 1)."""
    return table([-1.0 + shift, shift, 1.0 + shift])


def test_it_counts_falls_in_a_row() -> None:
    """A mean of -.2 is within .25 std, -.3 is not; a recovery starts the count again; without
    patience, never stop.
    """
    stopping, patient = (EarlyStopping(moved(0.0), HELD_OUT, patience) for patience in (2, None))
    stops = []
    for step, shift in enumerate((-0.3, -0.2, -0.3, -0.3), start=1):
        stopping.update(step, moved(shift))
        patient.update(step, moved(shift))
        stops.append(stopping.stop)
    assert stops == [False, False, False, True] and stopping.worse == patient.worse == 2
    assert not patient.stop


def test_what_falls_is_said_once_for_each_measurement(caplog: pytest.LogCaptureFixture) -> None:
    stopping = EarlyStopping(moved(0.0), HELD_OUT, 1)
    assert stopping.update(5, moved(0.1)) == {"eval/fallen": 0.0} and not caplog.text
    assert stopping.update(10, moved(-0.5)) == {"eval/fallen": 1.0}
    assert "step 10: held out and fallen" in caplog.text and "heldout by 0.50" in caplog.text
    assert "the run stops here (stop.patience: 1)" in caplog.text


def test_the_best_is_the_largest_mean_rise() -> None:
    """Two heads: rises .4 and .2 make .3 at step 1; -.1 and .9 make .4 at step 3. Optimised heads
    do not count.
    """
    zeros = moved(0.0).heads["heldout"]

    def both(a: float, b: float) -> ScoresTable:
        return table(
            [-1 + a, a, 1 + a], other=[-10 + 10 * b, 10 * b, 10 + 10 * b], reward=[9.0, 9.0, 9.0]
        )

    stopping = EarlyStopping(both(0.0, 0.0), ("heldout", "other"))
    assert stopping.change_in_std("other", both(0.0, 0.2)) == pytest.approx(0.2)
    seen = []
    for step, (a, b) in enumerate([(0.4, 0.2), (0.0, 0.0), (-0.1, 0.9), (0.3, 0.3)], start=1):
        stopping.update(step, both(a, b))
        seen.append((stopping.best_step, stopping.best_rise))
    assert [step for step, _ in seen] == [1, 1, 3, 3]
    assert [rise for _, rise in seen] == pytest.approx([0.3, 0.3, 0.4, 0.4]) and zeros == [
        -1.0,
        0.0,
        1.0,
    ]


def test_nothing_better_than_the_start_is_no_best() -> None:
    stopping = EarlyStopping(moved(0.0), HELD_OUT)
    stopping.update(1, moved(-0.1))
    assert (stopping.best_step, stopping.best_rise) == (0, 0.0)


def test_a_stopping_goes_on_from_a_checkpoint() -> None:
    recipe = Recipe.load(
        "emoji-sd-prdp", ["stop.when=eval_rewards_fall", "stop.patience=2", "evaluate.every=1"]
    )
    before = table([0.0, 1.0], alignment=[0.0, 1.0])
    first = EarlyStopping.of(recipe, before, {})
    first.update(1, table([-1.0, 0.0], alignment=[0.0, 1.0]))
    again = EarlyStopping.of(recipe, before, first.progress())
    assert again == first and not again.stop
    again.update(2, table([-1.0, 0.0], alignment=[0.0, 1.0]))
    assert again.stop


def test_settings_that_differ_from_inference_are_said() -> None:
    """The demo trains on 8 steps and draws with 20; at half of the model's size it says that
    too.
    """
    model = pipelines.load(str(Path(__file__).parents[3] / "assets/models/emoji-sd"))
    (one,) = mismatches(Recipe.load("emoji-sd-prdp"), model)
    assert "8 denoising steps, and galleries are drawn with 20" in one
    smaller = ["sampling.height=32", "sampling.width=32", "sampling.num_inference_steps=20"]
    (one,) = mismatches(Recipe.load("emoji-sd-prdp", smaller), model)
    assert "trains at 32x32, and the model's own size is 64x64" in one


class Eye:
    """Embeds a picture as its mean colour, a unit vector."""

    def embed_images(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.mean((-1, -2)), dim=-1)


def test_diversity_is_the_mean_distance_within_a_prompt(tmp_path: Path) -> None:
    """Prompt a: red, red, green: distances 0, 1, 1, mean 2/3. Prompt b: red, blue: 1. c is alone
    and does not count.

    Each prompt counts alike: (2/3 + 1) / 2 = 5/6. A broken picture of a's is left out.
    """
    colours = torch.eye(3)[[0, 0, 1, 0, 2, 1, 1]]  # red, red, green, red, blue, green, green
    rows = [{"prompt": prompt, "seed": i} for i, prompt in enumerate("aaabbca")]
    write_gallery(tmp_path / "g", colours[:, :, None, None].expand(-1, 3, 8, 8), rows)
    (tmp_path / "g" / "00006.png").write_bytes(b"")
    gallery = Gallery.load(tmp_path / "g")
    vectors = embeddings(gallery, Eye(), batch_size=2)
    assert sorted(vectors) == [0, 1, 2, 3, 4, 5]
    assert diversity(gallery.rows, vectors) == pytest.approx(5 / 6)
    assert diversity(gallery.rows, {0: colours[0]}) is None
