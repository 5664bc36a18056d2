"""PRDP: proximal reward difference prediction (Deng et al., CVPR 2024, arXiv 2402.08714), algorithm
1.

Regress the difference of two samples' log-ratios log pi_theta / pi_ref onto their reward difference
/ beta. At zero loss pi_theta is the KL-regularised optimum, with no estimate of its normaliser.
"""

import warnings
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import UserError
from ..losses import rdp_coefficients, rdp_loss
from ..pipelines import Condition, Model, Rollout
from ..reward_heads import RewardSet
from ..strict import Strict
from .batches import Kind, Prompts, Sampling
from .state import TrainState
from .trajectories import draw, log_probs_of, replay, siblings, slices, transitions


class Options(Strict):
    """PRDP's own numbers; Table 4 of the paper gives three settings (recipes/paper).

    beta and clip are in the units of ``log_prob``: mean over latent elements (as published code of
    this family does), or sum. ``keep``: only this many of a prompt's images, the best and the worst
    half and half, are learned from. An image costs one pass to draw and at least four to learn
    from, so pairs with wide gaps come cheap.
    """

    name: Literal["prdp"] = "prdp"
    images_per_prompt: int = Field(8, ge=2)
    keep: int | None = Field(None, ge=2)
    prompts_per_step: int = Field(4, ge=1)
    gradient_steps: int = Field(2, ge=1)
    beta: float = Field(1.0, gt=0)
    clip: float = Field(1e-4, gt=0)
    log_prob: Literal["mean", "sum"] = "mean"


def kind(options: Options) -> Kind:
    """What a step's batch is."""
    return "prompts"


def check(options: Options, sampling: Sampling) -> None:
    """What no single key shows: UserError when these settings cannot learn."""
    if sampling.eta == 0:
        raise UserError(
            "sampling.eta: 0 leaves no stochastic step, and prdp needs log-probabilities; want eta > 0"
        )
    if options.keep is not None and options.keep > options.images_per_prompt:
        raise UserError(
            f"method.keep: {options.keep} is more than images_per_prompt, {options.images_per_prompt}"
        )


def calls(options: Options, sampling: Sampling, passes: int) -> dict[str, int]:
    """Rows through the denoiser per step, ``passes`` of them a sample (guidance): the floor of this
    algorithm.

    All images are drawn. The kept ones pass the reference once and every gradient step forward and
    backward, from the second on after a first pass that finds the coefficients. An upper bound:
    clipped calls are left out, and a step with std 0 is not replayed. The first step replays one
    sample more, for ``replay_error``.
    """
    each = sampling.num_inference_steps * passes
    drawn = options.prompts_per_step * options.images_per_prompt
    learned = options.prompts_per_step * (options.keep or options.images_per_prompt)
    return {
        "forwards": each * (drawn + learned * 2 * options.gradient_steps),
        "backwards": each * learned * options.gradient_steps,
        "images": learned,
    }


def step(
    state: TrainState,
    batch: Prompts,
    model: Model,
    rewards: RewardSet,
    options: Options,
    sampling: Sampling,
) -> dict[str, float]:
    """Sample -> score -> compare -> learn; one on-policy round.

    G images of a prompt stay together: B = prompts * G, S stochastic steps, siblings adjacent.
    """
    group = options.images_per_prompt
    condition, texts, generators = siblings(state, batch, group)

    # 1. Sample with the current policy, keeping every latent.
    samples, media = draw(state, condition, generators, sampling, options.log_prob)

    # 2. Score in the background; higher is better. Then the reference's log-probabilities, once for
    # all steps.
    pending = rewards.start(media, texts)
    if options.keep is None:  # all are learned from: that pass need not wait
        log_probs_ref = reference(state, samples, condition, options, sampling)
    scores = pending.result()
    reward = scores.combined.to(samples.log_probs.device)
    if options.keep is not None:
        kept = extremes(reward, group, options.keep)
        group = options.keep
        samples = samples[kept]
        condition = condition[kept]
        reward = reward[kept]
        log_probs_ref = reference(state, samples, condition, options, sampling)

    # 3. Compare siblings, 4. learn. With theta = theta_old the first pass is the rollout's own
    # log-probabilities.
    log_probs_old = samples.log_probs
    groups = informative(reward, group)
    total = int(
        state.gather(torch.tensor([len(groups)])).sum()
    )  # over all processes, whose gradients add up
    metrics = {
        f"reward/{name}": state.gather(value).mean().item() for name, value in scores.heads.items()
    }
    combined = state.gather(scores.combined)
    prompts = int(state.gather(torch.tensor([len(batch)])).sum())
    metrics |= {"reward/combined": combined.mean().item(), "reward/std": combined.std().item()}
    metrics |= {
        "zero_variance": 1 - total / prompts,
        "kl": kl(state.gather(log_probs_old - log_probs_ref)),
    }
    if state.step == 0:
        metrics["replay_error"] = replay_error(state, samples, condition, options, sampling)
    if total == 0:
        return metrics | {"clip_fraction": 0.0}
    clipped = []
    for k in range(options.gradient_steps):
        log_probs = (
            log_probs_old
            if k == 0
            else replay(state, samples, condition, sampling, options.log_prob)
        )
        coefficients = torch.zeros_like(log_probs)
        losses = [reward.new_zeros(0)]
        for rows in groups:
            terms = (log_probs[rows], log_probs_old[rows], log_probs_ref[rows], reward[rows])
            coefficients[rows] = rdp_coefficients(*terms, beta=options.beta, clip=options.clip)
            losses.append(rdp_loss(*terms, beta=options.beta, clip=options.clip).mean()[None])
        backward(state, samples, condition, coefficients * (1 / total), options, sampling)
        metrics["grad_norm"] = state.update()
        change = state.gather(log_probs - log_probs_old).abs()
        clipped.append((change > options.clip).float().mean())
        metrics["loss"] = state.gather(torch.cat(losses)).mean().item()
    metrics["clip_fraction"] = torch.stack(clipped[1:] or clipped).mean().item()
    metrics["log_prob_change"] = change.mean().item()
    everyone = (state.gather(log_probs - log_probs_ref), state.gather(reward))
    metrics["kl_binding"] = kl_binding(*everyone, informative(everyone[1], group), options.beta)
    return metrics


def extremes(reward: Tensor, group: int, keep: int) -> Tensor:
    """Rows of the ``keep`` best and worst, half and half, of every ``group`` siblings, in their
    order.

    Every pair has the same optimum, so to choose among them moves no fixed point; the widest gaps
    tell the most.
    """
    order = reward.view(-1, group).argsort(dim=1, stable=True)
    chosen = (
        torch.cat([order[:, : keep // 2], order[:, group - (keep + 1) // 2 :]], 1).sort(1).values
    )
    return (chosen + torch.arange(0, len(reward), group, device=reward.device)[:, None]).flatten()


def reference(
    state: TrainState, samples: Rollout, condition: Condition, options: Options, sampling: Sampling
) -> Tensor:
    """Log-probabilities of the trajectories under the frozen reference, (B, S)."""
    with state.model.as_reference():
        return replay(state, samples, condition, sampling, options.log_prob)


def backward(
    state: TrainState,
    samples: Rollout,
    condition: Condition,
    coefficients: Tensor,
    options: Options,
    sampling: Sampling,
) -> None:
    """Accumulate the gradient of sum c_{i,t} log pi_theta, one step of a few samples at a time.

    Memory is that of one denoiser call, however many steps a trajectory has. Calls whose
    coefficients are all zero (the pair is clipped there) are left out.
    """
    count, steps = coefficients.shape
    for rows, columns in transitions(count, steps, state.micro_batch):
        weights = coefficients[rows, columns]
        if state.needs(bool(weights.any())):
            log_probs = log_probs_of(
                state, samples, rows, columns, condition, sampling, options.log_prob
            )
            state.backward((weights * log_probs).sum())


def replay_error(
    state: TrainState, samples: Rollout, condition: Condition, options: Options, sampling: Sampling
) -> float:
    """Largest difference between stored and replayed log-probabilities of the first sample, run in
    a batch of its own.

    Before any update it should be 0; what it is instead is the noise of the arithmetic, which must
    not reach the clip.
    """
    alone = replay(state, samples[:1], condition[:1], sampling, options.log_prob)
    error = (alone - samples.log_probs[:1]).abs().max().item()
    if error > options.clip / 10:
        warnings.warn(
            f"method.clip: {options.clip:g} is less than ten times the replay error {error:.1e} of this precision; "
            "want a larger clip, or model.dtype fp32",
            stacklevel=2,
        )
    return error


def informative(reward: Tensor, group: int) -> list[slice]:
    """The groups of siblings whose rewards do not all tie."""
    return [rows for rows in slices(len(reward), group) if reward[rows].min() < reward[rows].max()]


def kl(log_ratios: Tensor) -> float:
    """KL(pi_old || pi_ref) over whole trajectories, estimated from the policy's own samples; (B, S)
    in, nats out.

    A latent element's, where ``log_prob`` is the mean.
    """
    return log_ratios.sum(1).mean().item()


def kl_binding(log_ratios: Tensor, reward: Tensor, groups: list[slice], beta: float) -> float:
    """mean |drhat| / mean |dr / beta|: near 1, the KL term holds the policy back; near 0, only the
    clip does.
    """
    predicted = torch.stack(
        [torch.pdist(log_ratios[rows].mean(1, keepdim=True)).mean() for rows in groups]
    )
    target = torch.stack([torch.pdist(reward[rows, None]).mean() for rows in groups]) / beta
    return (predicted.mean() / target.mean()).item()
