"""Galleries drawn by a model, made again by diffusers alone."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from align_gen import sample
from align_gen.errors import UserError
from align_gen.galleries.gallery import Gallery
from align_gen.pipelines.guidance.best_of import BestOf
from align_gen.reward_heads import RewardFailure, reward_set

SETTINGS: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0}


@pytest.mark.slow
def test_a_rows_seed_makes_the_picture_again_in_diffusers(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """manual_seed(row["seed"]) in the stock pipeline gives the stored picture, to the rounding of a
    PNG (1/255).
    """
    gallery = sample(
        str(tiny_folder), ["a cat", "a dog"], out=tmp_path / "gallery", seeds=(0, 1), **SETTINGS
    )
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    assert [row["prompt"] for row in gallery.rows] == ["a cat", "a cat", "a dog", "a dog"]
    assert len({row["seed"] for row in gallery.rows}) == 4
    for index, row in enumerate(gallery.rows):
        generator = torch.Generator().manual_seed(row["seed"])
        theirs = pipeline(row["prompt"], generator=generator, output_type="pt", **SETTINGS).images[
            0
        ]
        assert (theirs - gallery.image(index)).abs().max() <= 0.51 / 255


@pytest.mark.slow
def test_a_gallerys_rows_make_the_gallery_again(tiny_folder: Path, tmp_path: Path) -> None:
    first = sample(
        str(tiny_folder),
        [{"prompt": "a cat", "group": "pets"}],
        out=tmp_path / "one",
        seed=3,
        **SETTINGS,
    )
    rows = [{key: value for key, value in row.items() if key != "file_name"} for row in first.rows]
    again = sample(str(tiny_folder), rows, out=tmp_path / "two", seeds=(7, 8, 9), **SETTINGS)
    assert again.rows == first.rows
    assert torch.equal(again.image(0), first.image(0))


@pytest.mark.slow
def test_seeds_do_not_depend_on_the_other_prompts(tiny_folder: Path, tmp_path: Path) -> None:
    alone = sample(str(tiny_folder), ["a dog"], out=tmp_path / "alone", seed=0, **SETTINGS)
    among = sample(str(tiny_folder), ["a cat", "a dog"], out=tmp_path / "among", seed=0, **SETTINGS)
    assert among.rows[1]["seed"] == alone.rows[0]["seed"]
    assert (
        among.image(1) - alone.image(0)
    ).abs().max() <= 1.01 / 255  # another batch, another rounding
    assert Gallery.load(tmp_path / "among").rows == among.rows


def brightness(media: torch.Tensor, prompts: Any) -> torch.Tensor:
    return media.mean((1, 2, 3))


@pytest.mark.slow
def test_the_rows_of_best_of_say_n_the_rewards_and_the_winning_score(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """The score is that of the picture in the file; batches of one and of three agree."""
    prompts = ["a cat", "a dog", "a bird"]
    guide = BestOf(reward_set({"bright": {"name": brightness}}), 3)
    galleries = [
        sample(
            str(tiny_folder), prompts, out=tmp_path / str(size), guide=guide, batch_size=size,
            **SETTINGS,
        )
        for size in (1, 3)
    ]  # fmt: skip
    for gallery in galleries:
        for index, row in enumerate(gallery):
            assert (row["made"]["best-of"], row["made"]["rewards"]) == ("3", ["bright"])
            score = gallery.image(index).mean().item()
            assert row["guide_score"] == pytest.approx(score, abs=0.51 / 255)
    plain = sample(str(tiny_folder), prompts, out=tmp_path / "plain", **SETTINGS)
    assert all("guide_score" not in row and "best-of" not in row["made"] for row in plain)
    assert [row["seed"] for row in plain] == [row["seed"] for row in galleries[0]]
    brighter = [a["guide_score"] - plain.image(n).mean() for n, a in enumerate(galleries[0])]
    assert min(brighter) > -0.51 / 255 and max(brighter) > 1 / 255


@pytest.mark.slow
def test_what_the_caller_says_of_a_guide_stands(tiny_folder: Path, tmp_path: Path) -> None:
    """The command line's own text of the reward says more than names; another guide says nothing.

    A row of a guided gallery that is made again without the guide loses the guide's score.
    """
    origin = {"reward": "mean_hue:hue=120", "best-of": "2"}
    guided = sample(
        str(tiny_folder), "a cat", out=tmp_path / "a", guide=BestOf(brightness, 2), origin=origin,
        **SETTINGS,
    )  # fmt: skip
    assert {key: guided.rows[0]["made"][key] for key in origin} == origin
    assert "rewards" not in guided.rows[0]["made"] and "guide_score" in guided.rows[0]
    again = sample(str(tiny_folder), guided.rows, out=tmp_path / "b", **SETTINGS)
    assert "guide_score" not in again.rows[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda media, prompts: media.mean(), r"returned shape \(\), want \(1,\)"),
        (lambda media, prompts: media.mean((2, 3)), r"returned shape \(1, 3\), want \(1,\)"),
        (lambda media, prompts: media.mean((1, 2, 3)) * float("nan"), "1 non-finite of 1 scores"),
        (lambda media, prompts: None, "failed: "),
        (lambda media, prompts: 1 / 0, "failed: ZeroDivisionError"),
    ],
    ids=["one score", "a score a channel", "no number", "nothing", "an error"],
)
def test_a_reward_that_gives_no_scores_is_refused(
    tiny_folder: Path, tmp_path: Path, reward: Any, said: str
) -> None:
    with pytest.raises(RewardFailure, match=f"^reward .*{said}") as error:
        sample(str(tiny_folder), "a cat", out=tmp_path / "g", guide=BestOf(reward, 2), **SETTINGS)
    assert "\n" not in str(error.value) and not (tmp_path / "g").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "reward",
    ["mean_hue", ["mean_hue"], {"mean_hue": 1.0}, {"red": {"name": "mean_hue", "hue": 0.0}}],
    ids=["a name", "a list", "weights", "options"],
)
def test_the_best_is_chosen_by_any_spelling_of_a_reward(
    tiny_folder: Path, tmp_path: Path, reward: Any
) -> None:
    """As `score` takes rewards; all of these are one, and choose one picture."""
    settings = {**SETTINGS, "seed": 1}
    guide = BestOf(reward_set({"mean_hue": 1.0}), 3)
    best = sample(str(tiny_folder), "a cat", out=tmp_path / "a", guide=guide, **settings)
    found = sample(
        str(tiny_folder), "a cat", out=tmp_path / "b", guide=BestOf(reward, 3), **settings
    )
    assert torch.equal(found.image(0), best.image(0))
    assert found.rows[0]["guide_score"] == best.rows[0]["guide_score"]


def test_one_text_is_one_prompt_and_names_and_folder_have_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gallery = sample("emoji-sd", "a cat", num_inference_steps=1)
    assert [row["prompt"] for row in gallery] == ["a cat"]
    assert Gallery.load(tmp_path / "gallery").rows == gallery.rows


@pytest.mark.slow
def test_what_an_object_draws_is_not_known(
    tiny_folder: Path, tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    """A name stands for the same pictures; an object may have been trained, a guide changed.

    A negative prompt gives other pictures, so it is among what is compared.
    """
    arguments: dict[str, Any] = {"out": tmp_path / "g", **SETTINGS}
    first = sample(tiny_folder, ["a cat"], **arguments)
    kept = (tmp_path / "g/00000.png").stat().st_mtime_ns
    assert first.rows[0]["made"]["model"] == tiny_folder.name
    assert sample(str(tiny_folder), ["a cat"], **arguments).rows == first.rows
    with pytest.raises(UserError, match="differs in negative"):
        sample(tiny_folder, ["a cat"], negative="a dog", **arguments)
    with pytest.raises(UserError, match="a gallery is there"):
        sample(tiny_model(), ["a cat"], origin={"model": str(tiny_folder)}, **arguments)
    with pytest.raises(UserError, match="a gallery is there"):
        sample(tiny_folder, ["a cat"], guide=BestOf(brightness, 2), **arguments)
    assert (tmp_path / "g/00000.png").stat().st_mtime_ns == kept
    again = sample(tiny_model(), ["a cat"], overwrite=True, **arguments)
    assert "model" not in again.rows[0]["made"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"height": 0, "width": 0}, "height: 0, want 1 or more"),
        ({"width": -8}, "width: -8"),
        ({"num_frames": 0}, "num_frames: 0"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"prompts": [{"prompt": "a", "error": "x"}]}, "row 0: column 'error'"),
        ({"prompts": ["a", {"prompt": "b", "note": "\ud800"}]}, "row 1: column 'note'"),
        ({"prompts": [{"prompt": "a", "seed": 2**64}]}, "row 0: seed"),
        ({"note": {"sha256": "x"}}, "column 'sha256'"),
    ],
    ids=str,
)
def test_a_mistake_is_told_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr("align_gen.galleries.sampling.open_model", None)
    with pytest.raises(UserError, match=says):
        sample("emoji-sd", **{"prompts": ["a"], "out": tmp_path / "g", **options})
    assert not [*tmp_path.iterdir()]


SHARED = """
import sys
from accelerate import Accelerator
from align_gen import sample
from align_gen.pipelines.guidance.best_of import BestOf

guide = BestOf(lambda media, prompts: media.mean((1, 2, 3)), 2)
prompts = ["a cat", "a dog", "a bird"]
options = {"num_inference_steps": 2, "guidance_scale": 2.0, "batch_size": 1, "guide": guide}
sample(sys.argv[1], prompts, out=sys.argv[2], accelerator=Accelerator(), **options)
"""


@pytest.mark.slow
def test_two_processes_write_the_rows_of_one(tiny_folder: Path, tmp_path: Path) -> None:
    """One draws a cat, the other a dog and a bird; the scores stand in the rows of their pictures.

    Two processes may round a sum otherwise than one does.
    """
    (tmp_path / "shared.py").write_text(SHARED)
    arguments = [str(tmp_path / "shared.py"), str(tiny_folder)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    root = str(Path(__file__).parents[3])
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": root,
    }  # fmt: skip
    for name, words in (("one", []), ("two", launch)):
        command = [sys.executable, *words, *arguments, str(tmp_path / name)]
        subprocess.run(command, env=environment, check=True)
    one, two = (Gallery.load(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["guide_score"] == pytest.approx(b["guide_score"], abs=1e-5)
        assert {**a, "guide_score": 0} == {**b, "guide_score": 0}
    assert len({row["guide_score"] for row in two}) == 3
