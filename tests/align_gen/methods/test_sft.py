"""Plain denoising: the gradient against autograd, what it converges to, and what dropout and
batches do to it.
"""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from align_gen import Recipe, finetune
from align_gen.errors import UserError
from align_gen.galleries.gallery import write_gallery
from align_gen.methods import sft
from align_gen.methods.batches import Media, Sampling
from align_gen.methods.denoising import draw_noise, draw_times, drop_captions, noise_generators
from align_gen.methods.state import TrainState
from align_gen.pipelines import Condition, Diffusion, Model, rollout
from align_gen.pipelines.families.toy import Toy, toy_diffusion
from align_gen.pipelines.seeding import generator
from align_gen.reward_heads import RewardSet
from tests.align_gen.methods.test_prdp import Recorder, toy
from tests.tiny import subject

MIXTURE: dict[str, Any] = {"means": ((-1.0, 0.5), (1.0, -0.5)), "stds": (0.5, 0.8)}
STEPS = 4


# --- what rwr and raft are tested with too --------------------------------------------------------


class Averaging(torch.optim.SGD):
    """Step sizes rate / 1, rate / 2, ...: where the loss is (s - y)^2 / (2 rate), s is the mean of
    all y so far.
    """

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        rate, group["taken"] = group["lr"], group.get("taken", 0) + 1
        group["lr"] = rate / group["taken"]
        super().step(closure)
        group["lr"] = rate


def short() -> Toy:
    """N(0, 1) under every 250th time of Stable Diffusion's schedule: training has the four times
    that sampling has.

    It predicts x0, so that the loss is (x0 - x0hat - shift)^2 and every time's shift is learned
    equally fast.
    """
    model = toy_diffusion()
    model.process = Diffusion(model.process.alphas_cumprod[249::250], 1.0, "sample")  # type: ignore[attr-defined]
    model.train_full()
    return model


def state_of(
    model: Model, *, lr: float = 0.1, micro_batch: int = 4096, optimizer: Any = Recorder
) -> TrainState:
    made = optimizer(model.parameters(), lr=lr)
    return TrainState(
        model, made, Accelerator(cpu=True), max_grad_norm=1e9, micro_batch=micro_batch
    )


def media_of(model: Model, media: Tensor, texts: Sequence[str]) -> Media:
    """Pictures that are there: those of one text are adjacent, their ids 0, 1, ..."""
    return Media(texts, model.encode_prompts(texts), range(len(media)), media)


def quantiles(count: int) -> Tensor:
    """The standard normal's, as pictures: their moments are its own, not a sample's."""
    return torch.special.ndtri((torch.arange(count) + 0.5) / count).view(-1, 1, 1, 1)


def fitted_shifts(model: Model, mean: float) -> list[float]:
    """Of every time, E[x0 - E_ref[x0 | x_t]] over data of this mean: mean (1 - alpha^2); E_ref[x0 |
    x_t] = alpha x_t.

    With it, the denoiser is that of N(mean, 1): mean + alpha (x_t - alpha mean).
    """
    times = torch.arange(STEPS)
    return [mean * (1 - float(alpha) ** 2) for alpha in model.process.coefficients(times)[0]]


def fitted_mean(model: Model, mean: float) -> float:
    """What the sampler makes of those shifts: mean (1 - alpha_T prod m_t), m_t the slope of step
    t's mean.

    Were x_T drawn around alpha_T mean, every x_t would lie around alpha_t mean; it is drawn around
    0.
    """
    points, condition = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), model.encode_prompts(["a", "a"])
    times = model.times(STEPS, (1, 1, 1))
    missing = mean * float(model.process.coefficients(times[0, 0])[0])
    for t, s in times:
        with model.as_reference():
            moved, _ = model.process.transition(
                points, model.predict(points, t, condition, 1.0), t, s, 1.0
            )
        missing *= (moved[1] - moved[0]).item()
    return mean - missing


def sample_std(model: Model) -> float:
    """Of what the sampler draws, from V <- m_t^2 V + std_t^2 and V = 1: few steps make it narrower
    than the data.
    """
    points, condition, variance = (
        torch.tensor([0.0, 1.0]).view(2, 1, 1, 1),
        model.encode_prompts(["a", "a"]),
        1.0,
    )
    for t, s in model.times(STEPS, (1, 1, 1)):
        with model.as_reference():
            means, std = model.process.transition(
                points, model.predict(points, t, condition, 1.0), t, s, 1.0
            )
        variance = (means[1] - means[0]).item() ** 2 * variance + std.item() ** 2
    return math.sqrt(variance)


def moved(model: Model) -> float:
    """How far the policy's samples lie from the reference's: the same noise gives the same sample,
    shifted.
    """
    condition = model.encode_prompts(["a"] * 4)

    def drawn() -> Tensor:
        g = torch.Generator().manual_seed(5)
        return rollout(model, condition, num_inference_steps=STEPS, generator=g).final

    policy = drawn()
    with model.as_reference():
        return (policy - drawn()).mean().item()


# --- the gradient ---------------------------------------------------------------------------------


def take(
    model: Model, media: Tensor, *, lr: float = 0.1, micro_batch: int = 4096, **more: Any
) -> Any:
    """One step on given pictures; (metrics, the gradient that the optimizer saw)."""
    state = state_of(model, lr=lr, micro_batch=micro_batch)
    batch, options = media_of(model, media, ["a"] * len(media)), sft.Options(**more)
    metrics = sft.step(
        state, batch, model, RewardSet({}), options, Sampling(num_inference_steps=STEPS)
    )
    ((_, (gradient,)),) = state.optimizer.seen  # type: ignore[attr-defined]
    return metrics, gradient


def pictures(count: int) -> Tensor:
    return torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(0))


def test_logit_normal_times_are_a_flows() -> None:
    with pytest.raises(
        UserError, match=r"method\.times: logit_normal is for flow models; want uniform"
    ):
        take(toy("toy-diffusion", **MIXTURE), pictures(2), times="logit_normal")


def test_captions_are_kept_as_they_were_given_where_none_is_dropped() -> None:
    """Of a family that wants pictures beside its captions, none can be: there the condition must be
    the given one.
    """
    model = subject("instruct-pix2pix").model
    pictures_to_edit = torch.rand(2, 3, 16, 16)
    condition = model.encode_prompts(["a", "b"], height=16, width=16, image=pictures_to_edit)
    state = state_of(toy(**MIXTURE))
    assert (
        drop_captions(model, condition, noise_generators(state, range(2)), 0.0, Sampling())
        is condition
    )
    with pytest.raises(UserError, match=r"method\.dropout: captions stand beside .* want 0"):
        drop_captions(model, condition, noise_generators(state, range(2)), 1.0, Sampling())


@pytest.mark.parametrize(
    ("name", "times"),
    [("toy-diffusion", "uniform"), ("toy-flow", "uniform"), ("toy-flow", "logit_normal")],
)
def test_the_gradient_is_that_of_the_mean_squared_error(name: str, times: Any) -> None:
    """Of |x1 - eps(x_t)|^2 or |x1 - x0 - v(x_t)|^2, written out, mean over elements and pictures;
    to 1e-6.
    """
    x0, model = pictures(12), toy(name, **MIXTURE)
    own = noise_generators(state_of(model), range(12))
    t, x1 = draw_times(model, own, times), draw_noise(x0, own)
    alpha, sigma = (c.float().view(-1, 1, 1, 1) for c in model.process.coefficients(t))
    output = model.predict(alpha * x0 + sigma * x1, t, model.encode_prompts(["a"] * 12), 1.0)
    loss = (output - (x1 if name == "toy-diffusion" else x1 - x0)).square().mean()
    (expected,) = torch.autograd.grad(loss, model.parameters())
    metrics, found = take(toy(name, **MIXTURE), x0, times=times)
    assert expected.any() and (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 5])
def test_micro_batches_change_nothing(micro_batch: int) -> None:
    metrics, whole = take(toy(**MIXTURE), pictures(12))
    parts, found = take(toy(**MIXTURE), pictures(12), micro_batch=micro_batch)
    assert parts == pytest.approx(metrics, rel=1e-6)
    assert (found - whole).abs().max() <= 1e-6 * whole.abs().max()


def test_one_picture_is_a_step() -> None:
    metrics, found = take(toy(**MIXTURE), pictures(1))
    assert math.isfinite(metrics["loss"]) and found.any()


def test_every_step_has_noise_of_its_own_and_repeats_it() -> None:
    """The same step again is the same gradient; the next one, on the same pictures, another."""
    seen = []
    for step in (0, 0, 1):
        model = toy(**MIXTURE)
        state = state_of(model)
        state.step = step
        batch = media_of(model, pictures(4), ["a"] * 4)
        sft.step(state, batch, model, RewardSet({}), sft.Options(), Sampling())
        seen.append(state.optimizer.seen[0][1][0])  # type: ignore[attr-defined]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


# --- what it converges to -------------------------------------------------------------------------


def test_it_learns_the_datas_mean() -> None:
    """N(0, 1) learns from pictures around 0.7: shift .7 (1 - alpha_t^2), and samples move as that
    predicts, to 0.03.
    """
    model = short()
    state = state_of(model, lr=STEPS / 2, optimizer=Averaging)
    batch = media_of(model, quantiles(400) + 0.7, ["a"] * 400)
    for state.step in range(40):
        sft.step(state, batch, model, RewardSet({}), sft.Options(), Sampling())
    shifts = model.denoiser.shift[:STEPS, 0].tolist()
    assert shifts == pytest.approx(fitted_shifts(model, 0.7), abs=0.03)
    assert moved(model) == pytest.approx(fitted_mean(model, 0.7), abs=0.03)
    assert not model.denoiser.shift[STEPS:].any()


# --- captions -------------------------------------------------------------------------------------


class Listening(Toy):
    """Remembers what captions it was called with."""

    heard: list[str]

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, guidance: Any) -> Tensor:
        self.heard += condition.prompts
        return super().predict(x_t, t, condition, guidance)


@pytest.mark.parametrize(("share", "few", "many"), [(0.0, 0, 0), (0.25, 35, 65), (1.0, 200, 200)])
def test_captions_are_dropped_at_that_share(share: float, few: int, many: int) -> None:
    """Of 200 a quarter is 50, with a deviation of 6; which ones is a function of the step, not of
    the batch.
    """
    made, heard = toy_diffusion(), []
    for micro_batch in (200, 7):
        model = Listening(copy.deepcopy(made.denoiser), made.process)
        model.train_full()
        model.heard = []
        take(model, quantiles(200), dropout=share, micro_batch=micro_batch)
        heard.append(model.heard)
    assert heard[0] == heard[1] and set(heard[0]) <= {"a", ""}
    assert few <= heard[0].count("") <= many


# --- a whole run ----------------------------------------------------------------------------------


def small_recipe(folder: Path, model: Path, method: dict[str, Any], **sections: Any) -> Recipe:
    """Two steps on pictures of 16 x 16 of a tiny Stable Diffusion."""
    (folder / "eval.txt").write_text("a green fox")
    data = {
        "model": {"path": str(model), "lora": {"rank": 2}},
        "method": method,
        "prompts": {"eval": str(folder / "eval.txt")},
        "eval_rewards": {"jpeg_size": 1.0},
        "sampling": {"num_inference_steps": 3, "guidance_scale": 2.0, "height": 16, "width": 16},
        "evaluate": {"every": 0, "num_inference_steps": 2, "seeds": [0]},
        "optim": {"lr": 1e-2, "micro_batch": 3},
        "run": {"steps": 2, "seed": 3, "save_every": 1},
    }
    return Recipe.parse({**data, **sections})


def given(folder: Path, each: int) -> Path:
    """A gallery of ``each`` pictures of two prompts."""
    media = torch.rand(2 * each, 3, 16, 16, generator=generator(0, "pictures"))
    write_gallery(
        folder / "given",
        media,
        [{"prompt": text} for text in ("a red dog", "a bird") for _ in range(each)],
    )
    return folder / "given"


def steps_of(run: Path) -> list[dict[str, Any]]:
    """A line of metrics for every training step, without the clock's."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "seconds"}
        for line in lines
        if "loss" in line
    ]


def whole_and_resumed(
    recipe: Recipe, folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The steps of a run, and of the same run stopped after its first step and taken up again."""

    class Stopped(Exception):
        pass

    def stop(phase: str, done: int, total: int, numbers: Any) -> None:
        if phase == "train" and done == 2:
            raise Stopped

    finetune(recipe, folder / "whole")
    with pytest.raises(Stopped):
        finetune(recipe, folder / "parts", progress=stop)
    finetune(recipe, folder / "parts")
    runs = [
        load_file(folder / run / "checkpoints/step-000002/weights.safetensors")
        for run in ("whole", "parts")
    ]
    assert runs[0] and all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    return steps_of(folder / "whole"), steps_of(folder / "parts")


def test_a_run_on_given_pictures_resumes_to_the_last_bit(tiny_folder: Path, tmp_path: Path) -> None:
    method = {"name": "sft", "prompts_per_step": 3}
    recipe = small_recipe(tmp_path, tiny_folder, method, data={"media": str(given(tmp_path, 3))})
    whole, resumed = whole_and_resumed(recipe, tmp_path)
    assert whole == resumed and [line["step"] for line in whole] == [1, 2]
    assert all(line["grad_norm"] > 0 and math.isfinite(line["loss"]) for line in whole)


def test_the_table_of_calls() -> None:
    """5 prompts x 2 pictures, each once, without guidance."""
    calls = sft.calls(sft.Options(images_per_prompt=2, prompts_per_step=5), Sampling(), 2)
    assert calls == {"forwards": 10, "backwards": 10, "images": 10}
