"""PRDP's step: the exact gradient in two passes, its closed form on the toys, and what it does with
odd rewards.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen import pipelines
from align_gen.losses import rdp_loss
from align_gen.methods import prdp
from align_gen.methods.batches import Prompts, Sampling
from align_gen.methods.trajectories import Drawn
from align_gen.pipelines import FlowSDE, Rollout, gaussian_log_prob, rollout
from align_gen.pipelines.seeding import generator
from align_gen.reward_heads import RewardFailure, RewardSet, reward_set
from tests.kits import methods as kit
from tests.kits.methods import (
    MIXTURE,
    Recorder,
    closed_form,
    cost,
    first_coordinate,
    flat_for_b,
    prompts_of,
    require,
    state_of,
    step_of,
    toy,
)

take = partial(kit.take, "prdp", lr=1.0, images_per_prompt=6, gradient_steps=2, beta=5.0, clip=1e-3)


# --- the gradient ---------------------------------------------------------------------------------


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rollout]:
    """Log-probabilities are kept in float32 on purpose; here they and the stored latents are
    float64. The rollout.
    """

    def exact(x: Tensor, mean: Tensor, std: Tensor, reduction: Any = "mean") -> Tensor:
        std = std.double().reshape(-1, *[1] * (x.ndim - 1))
        density = torch.distributions.Normal(mean.double(), std).log_prob(x.double()).flatten(1)
        return density.mean(1) if reduction == "mean" else density.sum(1)

    def double(*args: Any, **options: Any) -> Rollout:
        drawn = rollout(*args, **options)
        drawn = Rollout(
            drawn.latents.double(), drawn.times, drawn.stochastic, drawn.log_probs.double()
        )
        options.pop("num_inference_steps"), options.pop("generator"), options.pop("graph", None)
        with torch.no_grad():  # again, at the latents as stored
            steps = drawn.stochastic.tolist()
            columns = [
                pipelines.sampling.step_log_prob(args[0], drawn, i, args[1], **options)
                for i in steps
            ]
        return Rollout(drawn.latents, drawn.times, drawn.stochastic, torch.stack(columns, 1))

    monkeypatch.setattr("align_gen.pipelines.sampling.gaussian_log_prob", exact)
    monkeypatch.setattr("align_gen.methods.trajectories.gaussian_log_prob", exact)
    monkeypatch.setattr("align_gen.methods.trajectories.rollout", double)
    return double


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["toy-diffusion", "toy-flow"])
def test_two_passes_equal_one_backward_through_all_steps(
    replayed: Callable[..., Rollout], name: str, reduction: str
) -> None:
    """Oracle: autograd of mean over prompts of mean(rdp_loss) with the graph of every step of every
    sample alive.

    In float64, at both of K = 2 gradient steps; before the second the clip binds on some steps and
    not on others.
    """
    texts = ("a", "b", "c")
    group = 6
    clip = {"mean": 3e-3, "sum": 6e-3}[reduction]
    options = prdp.Options(
        images_per_prompt=group,
        prompts_per_step=3,
        gradient_steps=2,
        beta=5.0,
        clip=clip,
        log_prob=reduction,
    )
    model = pipelines.load(name, **MIXTURE)
    model.trainable["denoiser"].double()
    model.train_full()
    with torch.no_grad():  # away from the reference, as after some training
        noise = torch.randn(model.parameters()[0].shape, generator=torch.Generator().manual_seed(1))
        model.parameters()[0].add_(0.05 * noise)
    state = state_of(model, lr=0.05, micro_batch=5)
    before = copy.deepcopy(model.trainable["denoiser"].state_dict())
    metrics = step_of(state, prompts_of(model, *texts), options, first_coordinate)
    assert isinstance(state.optimizer, Recorder) and len(state.optimizer.seen) == 2
    assert 0 < metrics["clip_fraction"] < 1

    # The same trajectories, from the weights they were drawn with.
    model.trainable["denoiser"].load_state_dict(before)
    condition = prompts_of(model, *texts).condition.repeat(group)
    generators = [generator(0, "rollout", 0, f"{i}/{j}") for i in range(3) for j in range(group)]
    settings: dict[str, Any] = {"eta": 1.0, "guidance_scale": 5.0, "reduction": reduction}
    drawn = replayed(model, condition, num_inference_steps=4, generator=generators, **settings)
    rewards = first_coordinate(drawn.final, ()).float()

    def log_probs() -> Tensor:
        steps = drawn.stochastic.tolist()
        return torch.stack(
            [
                pipelines.sampling.step_log_prob(model, drawn, i, condition, **settings)
                for i in steps
            ],
            1,
        )

    with model.as_reference():
        reference = log_probs()
    parameter = model.parameters()[0]
    for value, (found,) in state.optimizer.seen:
        with torch.no_grad():
            parameter.copy_(value[0])
        new, losses = log_probs(), []
        for start in range(0, len(condition), group):
            rows = slice(start, start + group)
            terms = (new[rows], drawn.log_probs[rows], reference[rows], rewards[rows])
            losses.append(rdp_loss(*terms, beta=options.beta, clip=options.clip).mean())
        (expected,) = torch.autograd.grad(torch.stack(losses).mean(), parameter)
        assert found is not None and expected.abs().max() > 0
        assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_the_first_gradient_step_is_unclipped() -> None:
    """theta = theta_old at k = 1, so no step has left its range: with K = 1 the clip never acts."""
    metrics, _ = take(toy(), gradient_steps=1, lr=10.0)
    assert metrics["clip_fraction"] == 0
    metrics, seen = take(toy(), gradient_steps=2, lr=10.0)
    assert len(seen) == 2 and metrics["clip_fraction"] > 0


def test_the_stored_log_probabilities_are_replayed() -> None:
    """Without an update in between, pass 1 of the second step finds what the rollout stored, to
    rounding.
    """
    metrics, _ = take(toy(**MIXTURE), lr=0.0)
    assert metrics["log_prob_change"] < 1e-6 and metrics["clip_fraction"] == 0


# --- what it converges to -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("images", "keep"), [(32, None), (64, 16)])
@pytest.mark.parametrize(
    ("name", "a", "known"),
    [("toy-diffusion", None, 0.317), ("toy-flow", None, 0.324), ("toy-flow", 0.7, 0.426)],
)
def test_reaches_its_own_closed_form(
    name: str, a: float | None, known: float, images: int, keep: int | None
) -> None:
    """N(0, 1), r = x, beta = 2 over the whole trajectory: the mean moves to V / 2, ``known`` for
    ten steps, within .03.

    The loss averages over S steps, so a trajectory weight of 2 is beta = 2 S with summed
    log-probabilities. The same noise gives the same sample shifted, so four samples measure the
    mean's move exactly. To learn from the best and the worst only leads there too.
    """
    model = toy(name)
    steps, rounds = 10, 20
    if a is not None:
        model.process = FlowSDE(a)
    condition = model.encode_prompts(["a"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.15, betas=(0.8, 0.99))
    state = state_of(model, optimizer)
    stochastic = len(rollout(model, condition, num_inference_steps=steps).stochastic)
    learn = {"gradient_steps": 3, "beta": 2 * stochastic, "clip": 1e6, "log_prob": "sum"}
    options = prdp.Options(images_per_prompt=images, keep=keep, **learn)
    for state.step in range(rounds):
        optimizer.param_groups[0]["lr"] = 0.15 * (1 - state.step / rounds)
        batch = Prompts(["a"], condition, [0])
        step_of(state, batch, options, first_coordinate, Sampling(num_inference_steps=steps))

    def drawn() -> Tensor:
        four = model.encode_prompts(["a"] * 4)
        return rollout(
            model, four, num_inference_steps=steps, generator=torch.Generator().manual_seed(5)
        ).final

    with model.as_reference():
        reference = drawn()
    expected = closed_form(model, steps, slope=1.0, beta=2.0)
    assert expected == pytest.approx(known, abs=0.005)
    assert (drawn() - reference).mean().item() == pytest.approx(expected, abs=0.03)


def test_extremes() -> None:
    """Two prompts of five. Of four: the two worst and the two best. Of three: one worst, two best.
    In drawing order.
    """
    reward = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.4, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert prdp.extremes(reward, 5, 4).tolist() == [1, 2, 3, 4, 5, 6, 8, 9]
    assert prdp.extremes(reward, 5, 3).tolist() == [1, 2, 4, 5, 6, 9]
    assert prdp.extremes(reward, 5, 5).tolist() == list(range(10))


def test_what_is_not_kept_teaches_nothing() -> None:
    """A reward that gives the middle four of each six one value and another: same update, as the
    extremes are the same.

    The reported rewards are of all that was drawn; keeping all is the same step as to choose none.
    """

    def middle(shift: float) -> Callable[[Tensor, Sequence[str]], Tensor]:
        def reward(media: Tensor, prompts: Sequence[str]) -> Tensor:
            rank = media[:, 0, 0, 0].view(-1, 6).argsort(1).argsort(1).flatten().float()
            return torch.where((rank > 0) & (rank < 5), shift, rank)

        return reward

    low, (a, *_) = take(toy(), middle(1.0), keep=2)
    high, (b, *_) = take(toy(), middle(4.0), keep=2)
    assert a.any()
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert low["reward/combined"] == pytest.approx((0 + 4 * 1 + 5) / 6)
    assert high["reward/combined"] == pytest.approx((0 + 4 * 4 + 5) / 6)
    assert take(toy(), keep=6)[0] == take(toy())[0]


def test_closed_form_of_the_paper_schedule() -> None:
    """The recursion itself, against numbers known from elsewhere: .317 for 10 steps, .444 for 50
    (slope 1, beta 2).
    """
    model = toy("toy-diffusion")
    assert closed_form(model, 10, 1.0, 2.0) == pytest.approx(0.317, abs=0.005)
    assert closed_form(model, 50, 1.0, 2.0) == pytest.approx(0.444, abs=0.005)


def test_closed_form_of_the_flow_sde() -> None:
    """The recursion written out once more in plain numbers: of N(0, 1), v = (2t - 1) x / ((1 - t)^2
    + t^2).
    """
    model = toy("toy-flow")
    for a, known in ((0.7, 0.426), (2**0.5, 0.507)):
        variance = 0.0
        for i in range(10):
            t, s = 1 - i / 10, 1 - (i + 1) / 10
            v = (2 * t - 1) / ((1 - t) ** 2 + t**2)
            g2 = 0.0 if i == 9 else a * a / (1 - s) if i == 0 else a * a * t / (1 - t)
            slope = 1 + (s - t) * (v + g2 / (2 * t) * (1 + (1 - t) * v))
            variance = slope**2 * variance + g2 * (t - s)
        model.process = FlowSDE(a)
        assert closed_form(model, 10, 1.0, 2.0) == pytest.approx(variance / 2, abs=1e-6)
        assert variance / 2 == pytest.approx(known, abs=0.001)


# --- odd rewards ----------------------------------------------------------------------------------


def test_a_group_without_reward_variance_is_skipped_and_counted() -> None:
    """Prompt b's rewards all tie: the update is the one of prompt a alone, not its half."""
    metrics, both = take(toy(), rewards=flat_for_b, texts=("a", "b"), lr=0.05)
    assert metrics["zero_variance"] == 0.5
    alone, one = take(toy(), rewards=flat_for_b, texts=("a",), lr=0.05)
    assert alone["zero_variance"] == 0
    assert metrics["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    for a, b in zip(both, one, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_fails_the_step_and_names_the_head(bad: float) -> None:
    def sour(media: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.where(torch.arange(len(media)) == 3, bad, media[:, 0, 0, 0])

    model = toy()
    rewards = reward_set({"fine": {"name": first_coordinate}, "sour": {"name": sour}})
    with pytest.raises(RewardFailure, match="'sour' returned 1 non-finite of 12"):
        take(model, rewards=rewards)
    assert not model.parameters()[0].any()  # the weights stay


def test_metrics_hold_every_head_and_their_weighted_sum() -> None:
    rewards = RewardSet(reward_set({"x": {"name": first_coordinate}}).heads, {"x": 3.0})
    metrics, _ = take(toy(), rewards=rewards)
    assert metrics["reward/combined"] == pytest.approx(3 * metrics["reward/x"], rel=1e-5)
    assert {"loss", "grad_norm", "clip_fraction", "reward/std", "kl_binding"} <= metrics.keys()


def test_siblings_and_prompts_do_not_share_noise() -> None:
    """12 samples of 2 prompts are 12 different pictures, though here the prompts condition
    nothing.
    """
    seen = []

    def look(media: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append((media.flatten().tolist(), list(prompts)))
        return media[:, 0, 0, 0]

    take(toy(), rewards=look)
    ((values, prompts),) = seen
    assert len(set(values)) == 12 and prompts == ["a"] * 6 + ["b"] * 6


# --- options --------------------------------------------------------------------------------------


def test_eta_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sampling\.eta"):
        require(prdp.Options(), Sampling(eta=0.0))


def test_to_keep_more_than_is_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.keep: 9 is more than images_per_prompt, 8"):
        require(prdp.Options(images_per_prompt=8, keep=9), Sampling())


def test_a_clip_within_the_noise_of_replay_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaying theta_old must give its own log-probabilities to clip/10; here an error of 1e-4 is
    put in by hand.
    """
    exact = Drawn.replay
    monkeypatch.setattr(Drawn, "replay", lambda drawn: exact(drawn) + 1e-4)
    with pytest.warns(UserWarning, match=r"method\.clip: 0\.0005 .* replay error 1\.0e-04"):
        metrics, _ = take(toy(), clip=5e-4)
    assert metrics["replay_error"] == pytest.approx(1e-4, rel=0.1)
    monkeypatch.undo()
    metrics, _ = take(toy(), clip=5e-4)
    assert metrics["replay_error"] < 5e-5


def test_call_table() -> None:
    """B = 2 prompts x 3 images, T = 4, guidance doubles: 48 a pass.

    Forward: rollout, reference, K backward passes and K - 1 first passes = 2 + 2 + 1 = 5; backward:
    K = 2.
    """
    options = prdp.Options(images_per_prompt=3, prompts_per_step=2, gradient_steps=2)
    sampling = Sampling(num_inference_steps=4)
    assert cost(options, sampling, 2) == {
        "forwards": 48 * 5,
        "backwards": 48 * 2,
        "images": 6,
    }
    assert cost(options, sampling, 1) == {
        "forwards": 24 * 5,
        "backwards": 24 * 2,
        "images": 6,
    }
    few = prdp.Options(
        images_per_prompt=9, keep=3, prompts_per_step=2, gradient_steps=2
    )  # 144 to draw, 48 to learn
    assert cost(few, sampling, 2) == {
        "forwards": 144 + 48 * 4,
        "backwards": 48 * 2,
        "images": 6,
    }


def test_log_probability_units() -> None:
    """sum = d x mean: the toy in two dimensions."""
    x, mean, std = torch.tensor([[0.3, -1.0]]), torch.zeros(1, 2), torch.tensor(0.5)
    summed, averaged = (
        gaussian_log_prob(x, mean, std, "sum"),
        gaussian_log_prob(x, mean, std, "mean"),
    )
    torch.testing.assert_close(summed, 2 * averaged)
