"""RWR: its weights by hand, plain denoising where rewards are equal, the tilt where they are not,
and what it skips.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen.losses import effective_sample_size, exponential_weights, softmax_weights
from align_gen.methods import rwr
from align_gen.methods.batches import Batch, Prompts, Sampling
from align_gen.methods.denoising import draw_noise, draw_times
from align_gen.pipelines import Model
from tests.kits import methods as kit
from tests.kits.fitting import (
    Averaging,
    distance_moved,
    fitted_mean,
    fitted_shifts,
    quantiles,
    sample_std,
    short,
)
from tests.kits.methods import (
    GROUP,
    MIXTURE,
    STEPS,
    TEXTS,
    Taken,
    batch_kind,
    cost,
    first_coordinate,
    media_of,
    pictures,
    require,
    state_of,
    step_of,
    toy,
)

# --- weights --------------------------------------------------------------------------------------


def test_softmax_weights_by_hand() -> None:
    """r = ln 1, ln 3 with beta 1: 2 (1/4, 3/4) = .5, 1.5; ESS 2^2 / (.25 + 2.25) = 1.6. beta 2:
    shares 1 : sqrt 3.
    """
    rewards = torch.tensor([0.0, math.log(3), 5.0, 5.0])
    weights = softmax_weights(rewards, 2, 1.0)
    assert weights.tolist() == pytest.approx([0.5, 1.5, 1, 1])
    assert effective_sample_size(weights, 2).tolist() == pytest.approx([1.6, 2.0])
    root = 3**0.5
    assert softmax_weights(rewards, 2, 2.0).tolist() == pytest.approx(
        [2 / (1 + root), 2 * root / (1 + root), 1, 1]
    )
    assert softmax_weights(rewards, 2, 1.0, cap=1.2).tolist() == pytest.approx([0.5, 1.2, 1, 1])


def test_exponential_weights_by_hand() -> None:
    """1, 2, 3, 2: mean 2, std sqrt .5, so z = -sqrt 2, 0, sqrt 2, 0; e^sqrt 2 = 4.113, with beta 2
    e^.7071 = 2.028.
    """
    rewards = torch.tensor([1.0, 2.0, 3.0, 2.0] + 4 * [0.1 + 0.2])
    assert exponential_weights(rewards, 4, 1.0).tolist() == pytest.approx(
        [0.24312, 1, 4.11325, 1, 1, 1, 1, 1], rel=1e-4
    )
    assert exponential_weights(rewards, 4, 2.0)[2].item() == pytest.approx(2.0281, rel=1e-4)
    assert exponential_weights(rewards, 4, 1.0, cap=3.0)[2].item() == 3
    moved = exponential_weights(100 * rewards[:4] - 7, 4, 1.0)  # another unit
    torch.testing.assert_close(moved, exponential_weights(rewards[:4], 4, 1.0))


@pytest.mark.parametrize("seed", range(3))
def test_softmax_weights_do_not_see_an_offset_and_survive_large_rewards(seed: int) -> None:
    """Their mean is 1 in every group, whatever a prompt's level is; 1e4 would overflow exp."""
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = softmax_weights(rewards, 4, 0.5)
    assert weights.view(3, 4).mean(1).tolist() == pytest.approx([1, 1, 1])
    torch.testing.assert_close(softmax_weights(rewards + 1e4, 4, 0.5), weights, rtol=1e-8, atol=0)


@pytest.mark.parametrize("weigh", [softmax_weights, exponential_weights])
@pytest.mark.parametrize("group", [2, 3, 5, 7, 11, 49])
def test_equal_rewards_weigh_exactly_one(weigh: Callable[..., Tensor], group: int) -> None:
    weights = weigh(torch.full((2 * group,), 0.1), group, 0.3, 20.0)
    assert weights.tolist() == [1.0] * (2 * group)
    assert effective_sample_size(weights, group).tolist() == pytest.approx([group] * 2)


def test_the_weighted_mean_of_a_standard_normal() -> None:
    """r = x, beta = 2: the tilt exp(x / 2) of N(0, 1) is N(.5, 1). ESS / G = E[w]^2 / E[w^2] =
    e^(1/4) / e^(1/2).
    """
    x = quantiles(100_000).flatten().double()
    weights = softmax_weights(x, len(x), 2.0)
    assert (weights * x).mean().item() == pytest.approx(0.5, abs=1e-3)
    assert effective_sample_size(weights, len(x)).item() / len(x) == pytest.approx(
        math.exp(-0.25), abs=1e-3
    )


@pytest.mark.parametrize(
    "function", [lambda r: softmax_weights(r, 4, 1.0), lambda r: effective_sample_size(r, 4)]
)
@pytest.mark.parametrize("shape", [(6,), (4, 2)])
def test_wrong_shapes_are_named(
    function: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="B a multiple of 4"):
        function(torch.zeros(shape))


# --- one step -------------------------------------------------------------------------------------


def take(
    model: Model,
    rewards: Any = first_coordinate,
    *,
    media: Tensor | None = None,
    texts: Sequence[str] = TEXTS,
    **more: Any,
) -> Taken:
    """One step, on given pictures or on its own."""
    batch = None if media is None else media_of(model, media, each_group(texts))
    options = {"images_per_prompt": GROUP, "min_ess": 1.5, "offline": media is not None, **more}
    return kit.take("rwr", model, rewards, batch=batch, texts=texts, **options)


def each_group(texts: Sequence[str]) -> list[str]:
    """The text of every picture: GROUP of each."""
    return [text for text in texts for _ in range(GROUP)]


def level(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.full((len(media),), 0.3)


def plain(model: Model, media: Tensor) -> tuple[dict[str, float], Tensor]:
    """What sft makes of the same pictures: (metrics, gradient)."""
    batch = media_of(model, media, each_group(TEXTS))
    metrics, (gradient,) = kit.take("sft", model, (), batch=batch)
    return metrics, gradient


@pytest.mark.parametrize("weights", ["softmax", "exponential"])
@pytest.mark.parametrize("name", ["toy-diffusion", "toy-flow"])
@pytest.mark.parametrize("offline", [True, False])
def test_equal_rewards_are_plain_denoising_to_the_last_bit(
    name: str, weights: str, offline: bool
) -> None:
    """Of given pictures, or of those that it has just drawn, which the reward sees on their way."""
    seen: list[Tensor] = []

    def look(media: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append(media.clone())
        return level(media, prompts)

    media = pictures(12) if offline else None
    metrics, (found,) = take(toy(name, **MIXTURE), look, media=media, weights=weights)
    expected, gradient = plain(toy(name, **MIXTURE), seen[0])
    assert gradient.any() and torch.equal(found, gradient)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert metrics["grad_norm"] == expected["grad_norm"]
    assert metrics["zero_variance"] == 1 and metrics["ess"] == 1 and metrics["skipped"] == 0


@pytest.mark.parametrize("pretrain_weight", [0.0, 0.7])
@pytest.mark.parametrize("name", ["toy-diffusion", "toy-flow"])
def test_the_gradient_is_that_of_the_weighted_error(name: str, pretrain_weight: float) -> None:
    """mean of (w_i + lambda) |output - target|^2, w the softmax written out; with beta .5, by
    autograd, to 1e-6.
    """
    x0, model = pictures(12), toy(name, **MIXTURE)
    generators = state_of(model).generators("denoising", range(12))
    t, x1 = draw_times(model, generators), draw_noise(x0, generators)
    alpha, sigma = (c.float().view(-1, 1, 1, 1) for c in model.process.coefficients(t))
    output = model.predict(alpha * x0 + sigma * x1, t, model.encode_prompts(["a"] * 12), 1.0)
    each = (output - (x1 if name == "toy-diffusion" else x1 - x0)).square().flatten(1).mean(1)
    share = (x0[:, 0, 0, 0] / 0.5).view(2, GROUP).softmax(1).flatten()
    loss = ((GROUP * share + pretrain_weight) * each).mean()
    (expected,) = torch.autograd.grad(loss, model.parameters())
    metrics, (found,) = take(
        toy(name, **MIXTURE), media=x0, beta=0.5, pretrain_weight=pretrain_weight, min_ess=1
    )
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    sizes = 1 / share.view(2, GROUP).square().sum(1)
    assert metrics["ess"] == pytest.approx(sizes.mean().item() / GROUP, rel=1e-5)


def test_every_gradient_step_has_noise_of_its_own() -> None:
    """With the weights held still, two draws are two gradients, the first that of one step; again,
    the same two.
    """
    runs = [take(toy(**MIXTURE), lr=0.0, gradient_steps=count)[1] for count in (1, 2, 2)]
    assert len(runs[1]) == 2 and torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[1][0], runs[1][1]) and torch.equal(runs[1][1], runs[2][1])


# --- guards ---------------------------------------------------------------------------------------


def one_for_b(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """Of prompt b one picture is beyond all others; of others all tie."""
    first = torch.tensor(
        [i for i, prompt in enumerate(prompts) if prompt == "b"][:1], dtype=torch.long
    )
    return torch.zeros(len(media)).index_fill(0, first, 50.0)


def test_a_prompt_that_one_picture_dominates_is_skipped_and_counted() -> None:
    """ESS of b is 1: the update is that of prompt a alone, not its half. ESS / G: (1 + 1/6) / 2."""
    metrics, (both,) = take(toy(**MIXTURE), one_for_b)
    alone, (one,) = take(toy(**MIXTURE), one_for_b, texts=("a",))
    assert metrics["skipped"] == 0.5 and alone["skipped"] == 0
    assert metrics["ess"] == pytest.approx((1 + 1 / 6) / 2)
    torch.testing.assert_close(both, one)
    assert metrics["loss"] == pytest.approx(alone["loss"], rel=1e-6)


def test_where_all_processes_must_call_what_is_skipped_runs_and_weighs_nothing() -> None:
    """A network in shards: as many calls whatever is skipped, and the same update, also of the
    pre-training term.
    """
    model, counts = toy(**MIXTURE), []
    hook = lambda module, inputs: counts.append(len(inputs[0]) * torch.is_grad_enabled())  # noqa: E731
    model.trainable["denoiser"].register_forward_pre_hook(hook)
    _, (found,) = take(model, one_for_b, sharded=True, pretrain_weight=1.0)
    _, (expected,) = take(toy(**MIXTURE), one_for_b, pretrain_weight=1.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert sum(counts) == 2 * GROUP


@pytest.mark.parametrize("pretrain_weight", [0.0, 1.0])
def test_where_all_are_skipped_nothing_is_learned(pretrain_weight: float) -> None:
    model = toy(**MIXTURE)
    metrics, seen = take(model, one_for_b, texts=("b",), pretrain_weight=pretrain_weight)
    assert metrics["skipped"] == 1 and metrics["loss"] == metrics["grad_norm"] == 0 and not seen
    assert not model.parameters()[0].any()


def test_the_cap_holds_one_picture_back() -> None:
    """Of six weights 0, 0, 0, 0, 0, 6 the last becomes 2: a third of the gradient, from the same
    picture.
    """
    _, (free,) = take(toy(**MIXTURE), one_for_b, texts=("b",), min_ess=1)
    _, (capped,) = take(toy(**MIXTURE), one_for_b, texts=("b",), min_ess=1, cap=2)
    torch.testing.assert_close(capped, free / 3)


# --- what it converges to -------------------------------------------------------------------------


def em_step(
    model: Model, batch: Batch, rewards: Any, images: int, draws: int = 100, **more: Any
) -> dict[str, float]:
    """One round whose regression is taken to its end, over ``draws`` draws of the noise."""
    state = state_of(model, Averaging(model.parameters(), lr=STEPS / 2))
    shared: dict[str, Any] = {"images_per_prompt": images, "gradient_steps": draws}
    options = rwr.Options(beta=2.0, cap=None, **shared, **more)
    return step_of(state, batch, options, rewards)


@pytest.mark.slow
def test_an_em_step_on_given_pictures_reaches_the_tilt() -> None:
    """N(0, 1), r = x, beta = 2: every time's denoiser becomes that of N(.5, 1), and samples move as
    it says, to 0.03.

    That they fall .01 short of .5 is the schedule's, which leaves .068 x0 in x_T.
    """
    model, x = short(), quantiles(400)
    metrics = em_step(model, media_of(model, x, ["a"] * 400), first_coordinate, 400, offline=True)
    assert model.denoiser.shift[:STEPS, 0].tolist() == pytest.approx(
        fitted_shifts(model, 0.5), abs=0.03
    )
    assert fitted_mean(model, 0.5) == pytest.approx(0.5, abs=0.03)
    assert distance_moved(model) == pytest.approx(fitted_mean(model, 0.5), abs=0.03)
    assert metrics["ess"] == pytest.approx(math.exp(-0.25), abs=0.02)


@pytest.mark.slow
def test_a_pretraining_weight_of_lambda_keeps_that_part_of_the_data() -> None:
    """Weights (w + 1) of the same pictures have the mean (.5 + 0) / 2 = .25."""
    model, x = short(), quantiles(400)
    em_step(
        model,
        media_of(model, x, ["a"] * 400),
        first_coordinate,
        400,
        offline=True,
        pretrain_weight=1.0,
    )
    assert model.denoiser.shift[:STEPS, 0].tolist() == pytest.approx(
        fitted_shifts(model, 0.25), abs=0.03
    )


@pytest.mark.slow
def test_on_policy_every_round_tilts_again() -> None:
    """Each moves the samples to sum w x / sum w of what it drew, to 0.03, though the first was a
    full tilt already.

    Of samples N(m, V) that is m + V / 2, to three deviations, sqrt(V / .9 / 1500) = .018 each;
    nothing ties the second round to the reference. V is the sampler's: .38, as four steps draw
    narrower pictures than the data.
    """
    model, seen = short(), [torch.empty(0)] * 2

    def look(
        media: Tensor, prompts: Sequence[str]
    ) -> Tensor:  # sees some of a round's pictures at a time
        seen[number] = torch.cat([seen[number], media.flatten()])
        return first_coordinate(media, prompts)

    for number in range(2):
        em_step(model, Prompts(["a"], model.encode_prompts(["a"]), [number]), look, 1500)
        x = seen[number]
        mean = ((x / 2).softmax(0) * x).sum().item()
        assert mean - x.mean().item() == pytest.approx(sample_std(model) ** 2 / 2, abs=0.06)
        assert distance_moved(model) == pytest.approx(fitted_mean(model, mean), abs=0.03)
    assert distance_moved(model) > 1.6 * seen[1].mean().item()


@pytest.mark.slow
def test_flow_rwr_reaches_the_tilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The velocity's: in time t the weighted optimum of the shift is .5 t^2 / ((1 - t)^2 + t^2), at
    t = 1 all of .5.

    The toy's shift is one number a twentieth of time here, so that few draws meet each; samples
    reach .5 to 0.03.
    """
    monkeypatch.setattr("align_gen.pipelines.families.toy.BINS", 20)
    model, x = toy("toy-flow"), quantiles(400)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.8, 0.99))
    state = state_of(model, optimizer)
    options = rwr.Options(images_per_prompt=400, offline=True, gradient_steps=10, beta=2.0)
    batch = media_of(model, x, ["a"] * 400)
    for state.step in range(20):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - state.step / 20)
        step_of(state, batch, options, first_coordinate)
    expected = [0.5 * t**2 / ((1 - t) ** 2 + t**2) for t in (0.25, 0.5, 0.75, 1.0)]
    assert model.parameters()[0][[5, 10, 15, 20], 0].tolist() == pytest.approx(expected, abs=0.03)
    assert distance_moved(model) == pytest.approx(0.5, abs=0.03)


# --- options --------------------------------------------------------------------------------------


def test_a_bound_that_only_ties_reach_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"method\.min_ess: 2 skips all but ties among 2 images; want less"
    ):
        require(rwr.Options(images_per_prompt=2), Sampling())
    require(rwr.Options(images_per_prompt=3), Sampling(eta=0.0))


def test_the_table_of_calls() -> None:
    """2 prompts x 6 images, 4 steps, guidance: 96 rows to draw, 12 to learn from, each gradient
    step.
    """
    options: dict[str, Any] = {"images_per_prompt": 6, "prompts_per_step": 2, "gradient_steps": 3}
    drawn = cost(rwr.Options(**options), Sampling(num_inference_steps=4), 2)
    assert drawn == {"forwards": 96 + 36, "backwards": 36, "images": 12}
    offline = cost(rwr.Options(offline=True, **options), Sampling(num_inference_steps=4), 2)
    assert offline == {"forwards": 36, "backwards": 36, "images": 12}
    assert (
        batch_kind(rwr.Options()) == "prompts" and batch_kind(rwr.Options(offline=True)) == "media"
    )
