"""Whole runs on a tiny Stable Diffusion: complete, resumable to the last bit, and what they leave
when they fail.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from align_gen import Recipe, finetune, pipelines
from align_gen.errors import UserError
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.table import ScoresTable
from align_gen.methods.state import TrainState
from align_gen.progress import ProgressCallback
from align_gen.reward_heads import RewardFailure, reward_set
from align_gen.reward_heads.base import CallableHead
from align_gen.training import engine
from align_gen.training.data import PromptData
from align_gen.training.engine import Run
from tests.tiny import PIPELINES, subject

STEPS = 3
TRAIN, HELD_OUT = (
    ["a red dog", "a blue cat", "a bird", "two owls", "one bee"],
    ["a green fox", "an elk"],
)


@pytest.fixture(scope="module")
def recipe(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Three steps of 2 prompts x 2 pictures of 16 x 16, measured before, at step 2 and after."""
    lists = tmp_path_factory.mktemp("prompts")
    (lists / "train.txt").write_text("\n".join(TRAIN))
    (lists / "eval.txt").write_text("\n".join(HELD_OUT))
    return Recipe.parse(
        {
            "model": {"path": str(tiny_folder), "lora": {"rank": 2}},
            "method": {
                "name": "prdp", "images_per_prompt": 2, "prompts_per_step": 2, "gradient_steps": 2,
                "beta": 1e-3, "clip": 1e-5,
            },
            "prompts": {"train": str(lists / "train.txt"), "eval": str(lists / "eval.txt")},
            "rewards": {"mean_hue": {"hue": 120.0}},
            "eval_rewards": {"jpeg_size": 1.0},
            "sampling": {"num_inference_steps": 3, "guidance_scale": 2.0, "height": 16, "width": 16},
            "evaluate": {"every": 2, "num_inference_steps": 2, "seeds": [0]},
            "optim": {"lr": 1e-2, "ema": 0.5, "micro_batch": 4},
            "run": {"steps": STEPS, "seed": 3, "save_every": 1},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted run that others are held against. Only to be read."""
    return finetune(recipe, tmp_path_factory.mktemp("runs") / "whole")


class Stopped(Exception):
    """What a kill looks like from inside."""


def stop_at(step: int) -> ProgressCallback:
    def listen(phase: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        if phase == "train" and done == step:
            raise Stopped

    return listen


def lines(run: Path) -> list[dict[str, Any]]:
    """The metrics without the clock's."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def weights(run: Path, step: int = STEPS) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = load_file(
        run / "checkpoints" / f"step-{step:06d}" / "weights.safetensors"
    )
    return loaded


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def digests(run: Path) -> dict[str, str]:
    """Every file with its content's hash."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def pictures(run: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(run).items() if name.endswith(".png")}


# --- what is counted, and what no recipe has ------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "sd3", "wan"])
def test_rows_are_counted_however_a_network_is_called(family: str) -> None:
    """By position or by name: two prompts with guidance are four rows."""
    one = subject(family)
    state = TrainState(one.model, None, None, 1.0)  # type: ignore[arg-type]
    x = one.latents()
    with engine.counted_calls(state), torch.no_grad():
        one.model.predict(x, one.model.times(4, x.shape[1:])[1, 0], one.condition(), 3.0)
    assert state.denoiser_calls == 4


def test_a_family_that_wants_pictures_is_refused_before_anything_is_written(
    recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"ControlNet wants \('control',\) beside each prompt, which no recipe has"
    ):
        finetune(recipe, tmp_path / "run", model=PIPELINES["controlnet"]())
    assert not (tmp_path / "run").exists()


# --- videos ---------------------------------------------------------------------------------------


def test_a_video_model_runs_from_galleries_to_export(recipe: Recipe, tmp_path: Path) -> None:
    """AnimateDiff, three frames: before and after are videos of the scores' order, and the export
    loads.
    """
    options = {"sampling": {"num_frames": 3}, "evaluate": {"every": 0}, "run": {"steps": 2}}
    run = finetune(recipe.replace(**options), tmp_path / "run", model=PIPELINES["animatediff"]())
    for folder in ("before", "samples/final"):
        gallery = Gallery.load(run.folder / folder)
        assert {Path(row["file_name"]).suffix for row in gallery.rows} == {".mp4"}
        assert gallery.media(0).shape == (3, 3, 16, 16)
        scores = ScoresTable.load(run.folder / folder / "scores.parquet")
        assert scores.errors == [None] * len(gallery) and all(scores.heads["mean_hue"])
    assert [line["step"] for line in run.metrics] == [0, 1, 2]
    again = pipelines.load(PIPELINES["animatediff"]())
    again.reload(run.folder / "export")


# --- a finished run -------------------------------------------------------------------------------


def test_the_run_directory_is_complete(finished: Run, recipe: Recipe) -> None:
    run = finished.folder
    assert (run / "recipe.yaml").read_text() == recipe.to_yaml()
    state = json.loads((run / "state.json").read_text())
    assert (state["format"], state["step"], state["checkpoint"]) == (1, STEPS, f"step-{STEPS:06d}")
    assert (run / "checkpoints" / state["checkpoint"] / "optimizer.pt").is_file()
    assert list((run / "export").glob("*.safetensors"))
    for name in ("before", "samples/step-000002", "samples/final"):
        assert {row["prompt"] for row in Gallery.load(run / name).rows} == set(HELD_OUT)
        assert set(ScoresTable.load(run / name / "scores.parquet").heads) == {
            "mean_hue",
            "jpeg_size",
        }
    assert not [path for path in run.rglob("*") if path.name.endswith(".part")]


def test_the_metrics_say_what_happened(finished: Run) -> None:
    """A line a training step, and one a measurement: before, at step 2 and at the end."""
    found = lines(finished.folder)
    assert [line["step"] for line in found] == [0, 1, 2, 2, 3, 3]
    steps, looks = (
        [line for line in found if key in line] for key in ("loss", "eval/jpeg_size/mean")
    )
    assert [line["step"] for line in steps] == [1, 2, 3] and [line["step"] for line in looks] == [
        0,
        2,
        3,
    ]
    assert {
        "loss",
        "grad_norm",
        "clip_fraction",
        "kl",
        "reward/mean_hue",
        "reward/combined",
    } <= steps[0].keys()
    table = ScoresTable.load(finished.folder / "samples/step-000002/scores.parquet")
    assert looks[1]["eval/jpeg_size/mean"] == pytest.approx(table.mean("jpeg_size"))
    assert [line["step"] for line in finished.metrics] == [0, 1, 2, 3] and finished.metrics[2] == {
        **steps[1],
        **looks[1],
        "seconds": finished.metrics[2]["seconds"],
    }


def test_it_learned_something(finished: Run) -> None:
    """Other pictures than before, of the same prompts and seeds; the clip bound on some steps."""
    before, after = (Gallery.load(finished.folder / name) for name in ("before", "samples/final"))
    assert [(r["prompt"], r["seed"]) for r in before.rows] == [
        (r["prompt"], r["seed"]) for r in after.rows
    ]
    assert not torch.equal(before.image(0), after.image(0))
    assert any(line.get("clip_fraction", 0) > 0 for line in lines(finished.folder))


def test_denoiser_calls_are_counted(finished: Run) -> None:
    """A step: 4 samples, doubled by guidance; 3 rollout steps, and 3 with a density (the schedule's
    offset keeps the last one above zero noise) for the reference, the second first pass, and at
    most 2 backward passes: 8 x 15 = 120.

    Calls whose coefficients all vanish are left out, so at least 8 x 9 are left.
    """
    assert 8 * 9 * STEPS <= finished.denoiser_calls <= 8 * 15 * STEPS
    assert (
        json.loads((finished.folder / "state.json").read_text())["denoiser_calls"]
        == finished.denoiser_calls
    )


def test_called_again_it_returns_what_is_there(finished: Run, recipe: Recipe) -> None:
    kept, heard = digests(finished.folder), []
    again = finetune(recipe, finished.folder, progress=lambda phase, *rest: heard.append(phase))
    assert not heard  # neither a training step nor a picture
    assert again.metrics == finished.metrics and again.denoiser_calls == finished.denoiser_calls
    assert again.after.heads == finished.after.heads
    after = digests(finished.folder)
    assert {name: after.get(name) for name in kept if "export" not in name} == {
        name: kept[name] for name in kept if "export" not in name
    }


def test_the_same_recipe_gives_the_same_run(finished: Run, recipe: Recipe, tmp_path: Path) -> None:
    """A run is a function of its recipe, its seed among it, whatever the process drew before."""
    torch.manual_seed(12345)
    finetune(recipe, tmp_path / "again")
    assert lines(tmp_path / "again") == lines(finished.folder)
    assert same(weights(tmp_path / "again"), weights(finished.folder))
    assert pictures(tmp_path / "again") == pictures(finished.folder)


def test_another_seed_gives_another_run(finished: Run, recipe: Recipe, tmp_path: Path) -> None:
    finetune(recipe.replace(run={"seed": 4, "steps": 1}), tmp_path / "other")
    assert (
        lines(tmp_path / "other")[1]["reward/mean_hue"]
        != lines(finished.folder)[1]["reward/mean_hue"]
    )


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    finished: Run, recipe: Recipe, tmp_path: Path, step: int
) -> None:
    """Stopped after step k was logged and before it was saved: the same call repeats that step and
    goes on.

    At step 1 there is no checkpoint yet. Weights, averages, metrics and pictures agree to the last
    bit.
    """
    with pytest.raises(Stopped):
        finetune(recipe, tmp_path / "run", progress=stop_at(step))
    torch.rand(7)  # another process has another history
    resumed = finetune(recipe, tmp_path / "run")
    assert same(weights(resumed.folder), weights(finished.folder))
    assert lines(resumed.folder) == lines(finished.folder)
    assert pictures(resumed.folder) == pictures(finished.folder)
    assert resumed.denoiser_calls == finished.denoiser_calls


def test_resuming_with_the_same_model_object(
    recipe: Recipe, tiny_folder: Path, tmp_path: Path
) -> None:
    """In a notebook the pipeline outlives the interruption; its half-trained weights must not
    become the reference.
    """
    from diffusers import StableDiffusionPipeline

    def fresh() -> Any:
        return StableDiffusionPipeline.from_pretrained(tiny_folder)

    whole = finetune(recipe, tmp_path / "whole", model=fresh())
    pipeline = fresh()
    with pytest.raises(Stopped):
        finetune(recipe, tmp_path / "run", model=pipeline, progress=stop_at(2))
    resumed = finetune(recipe, tmp_path / "run", model=pipeline)
    assert same(weights(resumed.folder), weights(whole.folder))


def test_a_torn_line_of_metrics_is_dropped(recipe: Recipe, tmp_path: Path) -> None:
    """A kill in the middle of a write: the line is of a step that will be repeated."""
    with pytest.raises(Stopped):
        finetune(recipe, tmp_path, progress=stop_at(2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    finetune(recipe, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 2, 3, 3]


def test_what_a_kill_left_beside_the_recipe_does_not_lock_the_folder(
    recipe: Recipe, tmp_path: Path
) -> None:
    """A kill while recipe.yaml was being written leaves only its part; the same command must
    go on.
    """
    (tmp_path / ".recipe.yaml.part").write_text("model:")
    finetune(recipe.replace(run={"steps": 1}), tmp_path)
    assert (tmp_path / "samples/final/scores.parquet").is_file()


def test_a_run_directory_of_another_recipe_is_refused(finished: Run, recipe: Recipe) -> None:
    kept = digests(finished.folder)
    with pytest.raises(UserError) as error:
        finetune(recipe.replace(optim={"lr": 0.02}), finished.folder)
    assert str(error.value).endswith("differs in: -lr: 0.01; +lr: 0.02")
    assert digests(finished.folder) == kept


def test_a_folder_of_something_else_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="want a new or empty folder"):
        finetune(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# --- rewards --------------------------------------------------------------------------------------


class Sour:
    """The mean of green, which turns to NaN at one call."""

    def __init__(self, bad_call: int | None):
        self.calls, self.bad_call = 0, bad_call

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        self.calls += 1
        return media[:, 1].mean((1, 2)) + (float("nan") if self.calls == self.bad_call else 0.0)


def test_a_callable_object_is_written_down_by_a_name_that_lasts(recipe: Recipe) -> None:
    """Its repr holds an address: the same program started again would be refused its own run
    directory.
    """
    assert (
        recipe.replace(rewards={Sour(1): 1.0}).to_yaml()
        == recipe.replace(rewards={Sour(1): 1.0}).to_yaml()
    )


def test_a_nan_reward_stops_the_run_with_its_last_checkpoint_intact(
    recipe: Recipe, tmp_path: Path
) -> None:
    """Call 1 is the gallery before, 2 and 3 are steps, 4 is the gallery at step 2, 5 is step 3:
    NaN. Then mended.
    """
    with pytest.raises(RewardFailure, match="'Sour' returned 4 non-finite of 4"):
        finetune(recipe.replace(rewards={Sour(5): 1.0}), tmp_path)
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 2
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path, 2).values())
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 2]
    done = finetune(recipe.replace(rewards={Sour(None): 1.0}), tmp_path)
    assert [line["step"] for line in done.metrics] == [0, 1, 2, 3]


def test_a_loaded_head_is_watched_under_its_own_name(recipe: Recipe, tmp_path: Path) -> None:
    """A held-out reward as ``load`` returns it is called what it was named, also where it is
    measured on the way.
    """
    head = CallableHead(lambda media, prompts: media.mean((1, 2, 3)), name="brightness")
    run = finetune(
        recipe.replace(eval_rewards={head: 1.0}, evaluate={"every": 1}, run={"steps": 2}), tmp_path
    )
    assert "eval/brightness/mean" in run.metrics[1]


class Watcher:
    """A held-out reward that remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        self.seen += prompts
        return -media.mean((1, 2, 3))


def test_held_out_rewards_are_measured_and_never_optimised(recipe: Recipe, tmp_path: Path) -> None:
    """They see held-out pictures alone, once each at the three measurements; without them the
    weights are the same.
    """
    watcher = Watcher()
    finetune(recipe.replace(eval_rewards={watcher: 5.0}), tmp_path / "watched")
    assert sorted(watcher.seen) == sorted(3 * HELD_OUT)
    finetune(recipe.replace(eval_rewards={}), tmp_path / "alone")
    assert same(weights(tmp_path / "watched"), weights(tmp_path / "alone"))


def test_two_rewards_of_one_name_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    """The held-out one would take the optimised one's column, and the report would judge a run by
    what it optimised.
    """

    def brightness(media: Tensor, prompts: Sequence[str]) -> Tensor:
        return media.mean((1, 2, 3))

    optimised = brightness

    def brightness(media: Tensor, prompts: Sequence[str]) -> Tensor:  # type: ignore[no-redef]
        return -media.mean((1, 2, 3))

    with pytest.raises(UserError, match="brightness"):
        finetune(
            recipe.replace(rewards={optimised: 1.0}, eval_rewards={brightness: 1.0}),
            tmp_path / "run",
        )


def test_the_placebo_trains_on_shuffled_rewards(recipe: Recipe, tmp_path: Path) -> None:
    """Same rollouts at step 1, another update; and it is itself reproducible."""
    short = recipe.replace(run={"steps": 1}, evaluate={"every": 0}, method={"images_per_prompt": 4})
    runs = {}
    for name, placebo in (("real", False), ("placebo", True), ("again", True)):
        runs[name] = finetune(short.replace(run={"placebo": placebo}), tmp_path / name)
    found = {name: lines(run.folder)[1] for name, run in runs.items()}
    assert found["real"]["reward/mean_hue"] == found["placebo"]["reward/mean_hue"]
    assert found["real"]["reward/std"] == pytest.approx(found["placebo"]["reward/std"])
    assert not same(weights(runs["real"].folder, 1), weights(runs["placebo"].folder, 1))
    assert same(weights(runs["placebo"].folder, 1), weights(runs["again"].folder, 1))


def test_a_reward_that_always_ties_leaves_the_model_alone(recipe: Recipe, tmp_path: Path) -> None:
    def constant(media: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.ones(len(media))

    run = finetune(recipe.replace(rewards={constant: 1.0}, run={"steps": 1}), tmp_path)
    assert lines(tmp_path)[1]["zero_variance"] == 1
    assert torch.equal(
        Gallery.load(tmp_path / "before").image(0),
        Gallery.load(tmp_path / "samples/final").image(0),
    )
    assert run.before.heads == run.after.heads


# --- what is taken away ---------------------------------------------------------------------------


def test_the_export_in_a_fresh_pipeline_makes_the_final_pictures(
    finished: Run, tiny_folder: Path
) -> None:
    """diffusers alone: load_lora_weights, DDIM, a generator with the row's seed. To 1e-5 of our own
    sample, and within half a level of the PNG.
    """
    from diffusers import StableDiffusionPipeline

    fresh = StableDiffusionPipeline.from_pretrained(tiny_folder)
    fresh.set_progress_bar_config(disable=True)
    gallery = Gallery.load(finished.folder / "samples/final")

    def make() -> Tensor:
        made = [
            fresh(
                row["prompt"], num_inference_steps=2, guidance_scale=2.0, eta=0.0, height=16, width=16,
                generator=torch.Generator().manual_seed(row["seed"]), output_type="pt",
            ).images
            for row in gallery.rows
        ]  # fmt: skip
        return torch.cat(made)

    untrained = make()
    fresh.load_lora_weights(str(finished.folder / "export"))
    tuned, kept = make(), torch.stack([gallery.image(i) for i in range(len(gallery))])
    assert (tuned - kept).abs().max() <= 0.5 / 255 + 1e-5
    assert (untrained - kept).abs().max() > 1 / 255

    model = pipelines.load(str(tiny_folder))
    model.reload(finished.folder / "export")
    condition = model.encode_prompts([row["prompt"] for row in gallery.rows], height=16, width=16)
    generators = [torch.Generator().manual_seed(row["seed"]) for row in gallery.rows]
    ours = pipelines.sample(
        model, condition, num_inference_steps=2, guidance_scale=2.0, generator=generators
    )
    torch.testing.assert_close(ours, tuned, rtol=0, atol=1e-5)


@pytest.mark.parametrize("average", [0.5, None], ids=["averaged", "raw"])
def test_export_and_final_pictures_use_the_average_where_there_is_one(
    finished: Run, recipe: Recipe, tmp_path: Path, average: float | None
) -> None:
    """Every exported matrix stands in the checkpoint under "ema." with an average, under "policy."
    without.
    """
    run = finished if average else finetune(recipe.replace(optim={"ema": None}), tmp_path)
    kept = weights(run.folder)
    (file,) = (run.folder / "export").glob("*.safetensors")
    exported = load_file(file)
    names = {"ema." if average else "policy."}
    assert {key.split(".")[0] + "." for key in kept} == {"policy.", *names}
    mine = [value for key, value in kept.items() if key.startswith(tuple(names))]
    assert len(exported) == len(mine) > 0
    assert all(
        any(a.shape == b.shape and torch.equal(a, b) for b in exported.values()) for a in mine
    )
    if average:
        raw = [value for key, value in kept.items() if key.startswith("policy.")]
        assert not any(torch.equal(a, b) for a, b in zip(raw, mine, strict=True) if bool(a.any()))


def test_full_fine_tuning(recipe: Recipe, tiny_folder: Path, tmp_path: Path) -> None:
    """Every weight of the UNet, against a frozen copy; resumed to the last bit; the export is a
    UNet that reloads.
    """
    full = recipe.replace(
        model={"lora": None}, optim={"lr": 1e-4}, evaluate={"every": 0}, run={"steps": 2}
    )
    whole = finetune(full, tmp_path / "whole")
    with pytest.raises(Stopped):
        finetune(full, tmp_path / "run", progress=stop_at(2))
    resumed = finetune(full, tmp_path / "run")
    assert same(weights(resumed.folder, 2), weights(whole.folder, 2))
    assert pictures(resumed.folder) == pictures(whole.folder)
    before, after = (
        Gallery.load(whole.folder / name).image(0) for name in ("before", "samples/final")
    )
    assert not torch.equal(before, after)

    model = pipelines.load(str(tiny_folder))
    model.reload(whole.folder / "export")
    kept = weights(whole.folder, 2)
    state = model.pipeline.unet.state_dict()
    assert state and all(
        torch.equal(kept[f"ema.unet.{name}"], value) for name, value in state.items()
    )


def test_an_export_is_gone_on_from(finished: Run, recipe: Recipe, tmp_path: Path) -> None:
    """model.adapter: the earlier LoRA is where training starts and what it is held to: the
    galleries join.
    """
    more = recipe.replace(model={"adapter": str(finished.folder / "export")}, run={"steps": 1})
    run = finetune(more, tmp_path)
    assert pictures(run.folder / "before") == pictures(finished.folder / "samples/final")


# --- mistakes, and nothing half-written -----------------------------------------------------------

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "size": ({"sampling": {"height": 17}}, "17"),
    "tracker": ({"run": {"tracker": "scoreboard"}}, "scoreboard"),
    "tracker that is not installed": (
        {"run": {"tracker": "aim"}},
        r"run\.tracker: 'aim' is not installed",
    ),
    "more steps than the schedule has": ({"sampling": {"num_inference_steps": 2000}}, "2000"),
    "more steps than the schedule has, to measure": (
        {"evaluate": {"num_inference_steps": 2000}},
        "2000",
    ),
    "a column of the prompts named as a reward": (
        {"eval_rewards": {"prompt": {"name": "jpeg_size"}}},
        "'prompt'",
    ),
    "reward that is no callable": ({"rewards": {"z": {"name": 5}}}, "5: want a name or a callable"),
    "target modules": ({"model": {"lora": {"target_modules": ["to_nothing"]}}}, "to_nothing"),
    "adapter": ({"model": {"adapter": "nowhere"}}, "nowhere"),
    "model": ({"model": {"path": "nowhere"}}, "nowhere"),
    "train prompts": ({"prompts": {"train": "nowhere.txt"}}, "nowhere"),
    "reward": ({"rewards": {"nothing": 1.0}}, "'nothing'; have .*jpeg_size"),
    "reward's option": ({"rewards": {"mean_hue": {"heu": 1.0}}}, "mean_hue.*heu"),
    "reward's value": ({"rewards": {"mean_hue": {"hue": "green"}}}, "mean_hue|hue"),
    "reward's weight": ({"rewards": {"mean_hue": {"weight": "much"}}}, "mean_hue|weight"),
    "reward of nothing": ({"rewards": {"mean_hue": [1.0]}}, "mean_hue"),
    "held-out reward": ({"eval_rewards": {"nothing": 1.0}}, "nothing"),
}


@pytest.mark.parametrize("case", sorted(MISTAKES))
def test_a_mistake_is_found_before_anything_is_written(
    recipe: Recipe, tmp_path: Path, case: str
) -> None:
    change, pattern = MISTAKES[case]
    with pytest.raises(UserError, match=pattern) as error:
        finetune(recipe.replace(**change), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_reward_without_options_has_weight_one() -> None:
    """In YAML a ``jpeg_size:`` with nothing behind it is None; what else could it mean."""
    assert reward_set({"jpeg_size": None}).weights == {"jpeg_size": 1.0}


def test_missing_context_is_named(recipe: Recipe, tmp_path: Path) -> None:
    def like_the_map(media: Tensor, prompts: Sequence[str], control: Tensor) -> Tensor:
        return -(media - control).abs().mean((1, 2, 3))

    like_the_map.required_context = ("control",)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"like_the_map' needs 'control'"):
        finetune(recipe.replace(rewards={like_the_map: 1.0}), tmp_path / "run")
    with pytest.raises(UserError, match=r"like_the_map' needs 'control'"):
        finetune(recipe.replace(eval_rewards={like_the_map: 1.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "out",
    ["{file}/run", "/proc/align-gen-run", "{folder}/" + "x" * 300],
    ids=["file", "proc", "long"],
)
def test_an_unwritable_out(recipe: Recipe, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("")
    path = out.format(file=tmp_path / "file", folder=tmp_path)
    with pytest.raises(UserError) as error:
        finetune(recipe, path)
    assert path[:60] in str(error.value) and "\n" not in str(error.value)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_the_same_object_goes_on_from_run_to_run(
    recipe: Recipe, tiny_folder: Path, tmp_path: Path
) -> None:
    """A trained object keeps its LoRA: the next run starts from it, the third from the second, the
    fourth likewise.
    """
    model = pipelines.load(str(tiny_folder))
    plain = recipe.replace(optim={"ema": None}, evaluate={"every": 0}, run={"steps": 1})
    runs = [finetune(plain, tmp_path / str(i), model=model) for i in range(3)]
    for earlier, later in pairwise(runs):
        assert pictures(later.folder / "before") == pictures(earlier.folder / "samples/final")
        assert pictures(later.folder / "before") != pictures(later.folder / "samples/final")


def test_a_failure_before_the_first_step_gives_the_model_back(
    recipe: Recipe, tiny_folder: Path, tmp_path: Path
) -> None:
    model = pipelines.load(str(tiny_folder))
    with pytest.raises(UserError):
        finetune(recipe, "/proc/align-gen-run", model=model)
    assert not model.parameters() and not getattr(model.pipeline.unet, "peft_config", {})
    wider = recipe.replace(model={"lora": {"rank": 3}}, evaluate={"every": 0}, run={"steps": 1})
    assert finetune(wider, tmp_path / "run", model=model).metrics[-1]["step"] == 1


def test_in_half_precision_training_starts_at_its_reference(recipe: Recipe) -> None:
    """Full training in bf16: float32 weights under autocast. A copy that ran otherwise would show a
    KL of its own.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    half = recipe.replace(model={"lora": None, "dtype": "bf16"})
    AcceleratorState._reset_state(reset_partial_state=False)
    model = engine.load_model(half)
    engine.prepare_model(half, model)
    engine.prepare_state(half, model, Accelerator(cpu=True, mixed_precision="bf16"))
    condition, t = model.encode_prompts(["a cat"]), torch.tensor(301.0)
    latents = torch.randn(1, *condition.latent_shape)
    with torch.no_grad():
        policy = model.predict(latents, t, condition, 2.0)
    with model.as_reference():
        assert torch.equal(model.predict(latents, t, condition, 2.0), policy)


def test_tensorboard_shows_curves_and_pictures(recipe: Recipe, tmp_path: Path) -> None:
    """What metrics.jsonl says, TensorBoard's own reader finds in the run directory; and the
    galleries' pictures.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = finetune(
        recipe.replace(run={"tracker": "tensorboard", "steps": 2}, evaluate={"every": 0}), tmp_path
    )
    file = min(
        tmp_path.rglob("events.out.tfevents*"), key=lambda file: len(file.parts)
    )  # deeper: hyper-parameters
    events = EventAccumulator(str(file.parent)).Reload()
    found = [(event.step, event.value) for event in events.Scalars("reward/combined")]
    assert found == [
        (line["step"], pytest.approx(line["reward/combined"])) for line in run.metrics[1:]
    ]
    looks = [(event.step, event.value) for event in events.Scalars("eval/jpeg_size/mean")]
    assert looks == [
        (line["step"], pytest.approx(line["eval/jpeg_size/mean"]))
        for line in (run.metrics[0], run.metrics[2])
    ]
    shown = [(event.step, event.height, event.width) for event in events.Images("held-out")]
    assert shown == [(0, 16, 32), (2, 16, 32)]  # two pictures of 16 pixels, side by side


def test_two_precisions_in_one_process(recipe: Recipe, finished: Run, tmp_path: Path) -> None:
    """After a run in float32, one in bfloat16: nothing of the first lingers."""
    short = recipe.replace(model={"dtype": "bf16"}, run={"steps": 1}, evaluate={"every": 0})
    assert finetune(short, tmp_path).metrics[-1]["step"] == 1


# --- parts ----------------------------------------------------------------------------------------


def drawn(recipe: Recipe, prompts: list[str], steps: int) -> list[Any]:
    from accelerate import Accelerator

    model = engine.load_model(recipe)
    engine.prepare_model(recipe, model)
    state = engine.prepare_state(recipe, model, Accelerator(cpu=True))
    batches = []
    for state.step in range(steps):
        batches.append(engine.draw_batch(PromptData(prompts), recipe, state))
    return batches


def test_every_epoch_is_a_permutation(recipe: Recipe) -> None:
    """5 prompts, 2 a step: five steps are two epochs, in which every prompt comes twice, once in
    each.
    """
    texts = [text for batch in drawn(recipe, list(TRAIN), 5) for text in batch.texts]
    assert sorted(texts[:5]) == sorted(texts[5:]) == sorted(TRAIN)


def test_a_prompt_twice_in_a_step_is_two_draws(recipe: Recipe) -> None:
    """Where an epoch ends inside a step, a prompt can come twice in it; with the same id it would
    be the same noise and half of the work for nothing (45 prompts, 32 a step, as in the paper: in
    two steps of three).
    """
    for batch in drawn(recipe, ["a"], 2):
        assert list(batch.texts) == ["a", "a"]
        assert len(set(batch.ids)) == 2


def test_a_run_whose_held_out_reward_falls_stops_and_stays_stopped(
    recipe: Recipe, tmp_path: Path
) -> None:
    """A held-out reward that falls with every look: patience 1 stops at the first measurement, step
    1 of 3.
    """

    class Falling:
        looks = 0

        def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
            self.looks += 1
            return torch.arange(len(media)) - 10.0 * self.looks

    watched = recipe.replace(
        eval_rewards={Falling(): 1.0},
        evaluate={"every": 1},
        stop={"when": "eval_rewards_fall", "patience": 1},
    )
    for _ in range(2):  # resumed, it does not go on
        run = finetune(watched, tmp_path)
        assert [line["step"] for line in run.metrics] == [0, 1] and "loss" in run.metrics[1]
    assert not (tmp_path / "best").exists()  # nothing was better than the untouched model


def test_the_best_measurement_is_kept(recipe: Recipe, tmp_path: Path) -> None:
    """Held out: 0, then 5, 2, 1 at steps 1 to 3 of 3. What step 1 had is kept beside the end's
    export, and differs.
    """

    class Peak:
        def __init__(self) -> None:
            self.means = [0.0, 5.0, 2.0, 1.0]

        def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
            return torch.arange(len(media)) + self.means.pop(0)

    run = finetune(recipe.replace(eval_rewards={Peak(): 1.0}, evaluate={"every": 1}), tmp_path)
    best, end = (
        load_file(tmp_path / name / "pytorch_lora_weights.safetensors")
        for name in ("best", "export")
    )
    averages = {
        key.removeprefix("ema.unet."): value
        for key, value in weights(tmp_path, 2).items()
        if "ema." in key
    }
    assert best.keys() == end.keys() and not same(best, end) and averages
    assert json.loads((tmp_path / "state.json").read_text())["best_step"] == 1
    again = pipelines.load(recipe.model.path)
    again.reload(tmp_path / "best")
    assert run.metrics[-1]["eval/Peak/mean"] == pytest.approx(1.5)
