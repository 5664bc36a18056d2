"""Plain denoising: the gradient against autograd, what it converges to, and what dropout and
batches do to it.
"""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen.errors import UserError
from align_gen.methods import sft
from align_gen.methods.batches import Sampling
from align_gen.methods.denoising import draw_noise, draw_times, drop_captions
from align_gen.pipelines import Condition, Model
from align_gen.pipelines.families.toy import Toy, toy_diffusion
from tests.kits import methods as kit
from tests.kits.fitting import (
    Averaging,
    distance_moved,
    fitted_mean,
    fitted_shifts,
    quantiles,
    short,
)
from tests.kits.methods import (
    MIXTURE,
    STEPS,
    Taken,
    cost,
    media_of,
    pictures,
    state_of,
    step_of,
    toy,
)
from tests.tiny import subject

# --- the gradient ---------------------------------------------------------------------------------


def take(model: Model, media: Tensor, **more: Any) -> Taken:
    """One step on given pictures."""
    batch = media_of(model, media, ["a"] * len(media))
    return kit.take("sft", model, (), batch=batch, **more)


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
    generators = state_of(toy(**MIXTURE)).generators("denoising", range(2))
    assert drop_captions(model, condition, generators, 0.0, Sampling()) is condition
    with pytest.raises(UserError, match=r"method\.dropout: captions stand beside .* want 0"):
        drop_captions(model, condition, generators, 1.0, Sampling())


@pytest.mark.parametrize(
    ("name", "times"),
    [("toy-diffusion", "uniform"), ("toy-flow", "uniform"), ("toy-flow", "logit_normal")],
)
def test_the_gradient_is_that_of_the_mean_squared_error(name: str, times: Any) -> None:
    """Of |x1 - eps(x_t)|^2 or |x1 - x0 - v(x_t)|^2, written out, mean over elements and pictures;
    to 1e-6.
    """
    x0, model = pictures(12), toy(name, **MIXTURE)
    generators = state_of(model).generators("denoising", range(12))
    t, x1 = draw_times(model, generators, times), draw_noise(x0, generators)
    alpha, sigma = (c.float().view(-1, 1, 1, 1) for c in model.process.coefficients(t))
    output = model.predict(alpha * x0 + sigma * x1, t, model.encode_prompts(["a"] * 12), 1.0)
    loss = (output - (x1 if name == "toy-diffusion" else x1 - x0)).square().mean()
    (expected,) = torch.autograd.grad(loss, model.parameters())
    metrics, (found,) = take(toy(name, **MIXTURE), x0, times=times)
    assert expected.any() and (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-5)


def test_one_picture_is_a_step() -> None:
    metrics, (found,) = take(toy(**MIXTURE), pictures(1))
    assert math.isfinite(metrics["loss"]) and found.any()


def test_every_step_has_noise_of_its_own_and_repeats_it() -> None:
    """The same step again is the same gradient; the next one, on the same pictures, another."""
    seen = []
    for step in (0, 0, 1):
        _, (gradient,) = take(toy(**MIXTURE), pictures(4), step=step)
        seen.append(gradient)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


# --- what it converges to -------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_the_datas_mean() -> None:
    """N(0, 1) learns from pictures around 0.7: shift .7 (1 - alpha_t^2), and samples move as that
    predicts, to 0.03.
    """
    model = short()
    state = state_of(model, Averaging(model.parameters(), lr=STEPS / 2))
    batch = media_of(model, quantiles(400) + 0.7, ["a"] * 400)
    for state.step in range(40):
        step_of(state, batch, sft.Options())
    shifts = model.denoiser.shift[:STEPS, 0].tolist()
    assert shifts == pytest.approx(fitted_shifts(model, 0.7), abs=0.03)
    assert distance_moved(model) == pytest.approx(fitted_mean(model, 0.7), abs=0.03)
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


# --- options --------------------------------------------------------------------------------------


def test_the_table_of_calls() -> None:
    """5 prompts x 2 pictures, each once, without guidance."""
    calls = cost(sft.Options(images_per_prompt=2, prompts_per_step=5), Sampling(), 2)
    assert calls == {"forwards": 10, "backwards": 10, "images": 10}
