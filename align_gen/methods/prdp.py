"""PRDP: make the likelihoods of two pictures of a prompt differ as their rewards do (Deng et al.,
CVPR 2024, arXiv 2402.08714).

Proximal reward difference prediction, algorithm 1. Regress the difference of two samples'
log-ratios log pi_theta / pi_ref onto their reward difference / beta. At zero loss pi_theta is the
KL-regularised optimum, with no estimate of its normaliser.
"""

import warnings
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..losses import rdp_coefficients, rdp_loss
from ..reward_heads import RewardSet
from .base import Cost, MethodOptions
from .batches import Prompts, Sampling
from .state import TrainState, reward_metrics, slices
from .trajectories import Drawn, draw


class Options(MethodOptions):
    """PRDP's own numbers; Table 4 of the paper gives three settings (recipes/paper)."""

    name: Literal["prdp"] = "prdp"
    images_per_prompt: int = Field(
        8, ge=2, description="Images drawn of each prompt; every two of them make a pair."
    )
    prompts_per_step: int = Field(4, ge=1, description="Prompts of a step, over all processes.")
    keep: int | None = Field(
        None,
        ge=2,
        description="Learn from this many of a prompt's images alone, the best and the worst half "
        "and half: an image costs one pass to draw and at least four to learn from. null: all.",
    )
    gradient_steps: int = Field(
        2, ge=1, description="Optimizer steps taken on the images of one step."
    )
    beta: float = Field(
        1.0,
        gt=0,
        description="Price of leaving the reference: reward per nat of log_prob. Larger stays "
        "nearer.",
    )
    clip: float = Field(
        1e-4,
        gt=0,
        description="How far a step's log-likelihood may move in a round; in units of log_prob.",
    )
    log_prob: Literal["mean", "sum"] = Field(
        "mean",
        description="Log-likelihoods are the mean over latent elements, as published code has "
        "them, or their sum.",
    )

    def require(self, sampling: Sampling) -> None:
        if sampling.eta == 0:
            raise ValueError(
                "sampling.eta: 0 leaves no stochastic step, and prdp needs log-probabilities; "
                "want eta > 0"
            )
        if self.keep is not None and self.keep > self.images_per_prompt:
            raise ValueError(
                f"method.keep: {self.keep} is more than images_per_prompt, {self.images_per_prompt}"
            )

    def cost(self, sampling: Sampling, rows_per_sample: int) -> Cost:
        """All images are drawn; those kept pass the reference once, and then every gradient step.

        A gradient step is a forward and a backward pass, from the second on after a first pass
        that finds the coefficients. An upper bound: clipped calls are left out, and a step with
        std 0 is not replayed. The first step replays one sample more, for ``replay_error``.
        """
        each = sampling.num_inference_steps * rows_per_sample
        learned = self.prompts_per_step * (self.keep or self.images_per_prompt)
        forwards = each * (self.images + learned * 2 * self.gradient_steps)
        return Cost(forwards, each * learned * self.gradient_steps, learned)


def step(
    state: TrainState, batch: Prompts, rewards: RewardSet, options: Options, sampling: Sampling
) -> dict[str, float]:
    """Sample -> score -> compare -> learn; one on-policy round.

    G images of a prompt stay together: B = prompts * G, S stochastic steps, siblings adjacent.
    """
    group = options.images_per_prompt

    # 1. Sample with the current policy, keeping every latent.
    drawn = draw(state, batch, group, sampling, reduction=options.log_prob)

    # 2. Score in the background; higher is better. Then the reference's log-probabilities, once for
    # all gradient steps. Where all images are learned from, that pass need not wait for the scores.
    pending = rewards.start(drawn.media, drawn.texts)
    if options.keep is None:
        log_probs_ref = reference(drawn)
    scores = pending.result()
    metrics = reward_metrics(state, scores, group)
    reward = scores.combined.to(drawn.log_probs_old.device)
    if options.keep is not None:
        chosen = extremes(reward, group, options.keep)
        group = options.keep
        # From here on the others are forgotten, and with them their latents.
        drawn = drawn[chosen]
        reward = reward[chosen]
        log_probs_ref = reference(drawn)

    # 3. Compare siblings. The processes' gradients add up, so their pairs are counted together.
    log_probs_old = drawn.log_probs_old
    groups = informative(reward, group)
    total = int(state.gather(torch.tensor([len(groups)])).sum())
    prompts = int(state.gather(torch.tensor([len(batch)])).sum())
    metrics["zero_variance"] = 1 - total / prompts
    metrics["kl"] = kl(state.gather(log_probs_old - log_probs_ref))
    if state.step == 0:
        metrics["replay_error"] = replay_error(drawn, options.clip)
    if total == 0:
        return metrics | {"clip_fraction": 0.0}

    # 4. Learn. At theta = theta_old the first pass is the rollout's own log-probabilities.
    clipped = []
    for k in range(options.gradient_steps):
        log_probs = log_probs_old if k == 0 else drawn.replay()
        coefficients = torch.zeros_like(log_probs)
        losses = [reward.new_zeros(0)]
        for rows in groups:
            terms = (log_probs[rows], log_probs_old[rows], log_probs_ref[rows], reward[rows])
            coefficients[rows] = rdp_coefficients(*terms, beta=options.beta, clip=options.clip)
            losses.append(rdp_loss(*terms, beta=options.beta, clip=options.clip).mean()[None])
        backward(drawn, coefficients * (1 / total))
        metrics["grad_norm"] = state.update()
        # Measured before this update: ``log_probs`` are those that its gradient was taken at.
        change = state.gather(log_probs - log_probs_old).abs()
        clipped.append((change > options.clip).float().mean())
        metrics["loss"] = state.gather(torch.cat(losses)).mean().item()

    # The first gradient step starts where nothing is clipped yet.
    metrics["clip_fraction"] = torch.stack(clipped[1:] or clipped).mean().item()
    metrics["log_prob_change"] = change.mean().item()
    log_ratios = state.gather(log_probs - log_probs_ref)
    everyone = state.gather(reward)
    metrics["kl_binding"] = kl_binding(
        log_ratios, everyone, informative(everyone, group), options.beta
    )
    return metrics


def extremes(reward: Tensor, group: int, keep: int) -> Tensor:
    """Rows of the ``keep`` best and worst, half and half, of every ``group`` siblings, in order.

    Every pair has the same optimum, so to choose among them moves no fixed point; the widest gaps
    tell the most.
    """
    order = reward.view(-1, group).argsort(dim=1, stable=True)
    worst = order[:, : keep // 2]
    best = order[:, group - (keep + 1) // 2 :]
    siblings = torch.cat([worst, best], 1).sort(1).values
    first = torch.arange(0, len(reward), group, device=reward.device)
    return (siblings + first[:, None]).flatten()


def reference(drawn: Drawn) -> Tensor:
    """Log-probabilities of the trajectories under the frozen reference, (B, S)."""
    with drawn.state.model.as_reference():
        return drawn.replay()


def backward(drawn: Drawn, coefficients: Tensor) -> None:
    """Accumulate the gradient of sum c_{i,t} log pi_theta, one step of a few samples at a time.

    Memory is that of one denoiser call, however many steps a trajectory has. Calls whose
    coefficients are all zero (the pair is clipped there) are left out.
    """
    state = drawn.state
    for rows, columns in drawn.transitions():
        weights = coefficients[rows, columns]
        if state.must_call(bool(weights.any())):
            state.backward((weights * drawn.log_probs(rows, columns)).sum())


def replay_error(drawn: Drawn, clip: float) -> float:
    """Largest difference of stored and replayed log-probabilities, for the first sample run alone.

    Before any update it should be 0; what it is instead is the noise of the arithmetic, which must
    not reach the clip.
    """
    alone = drawn[torch.arange(1)]
    error = (alone.replay() - alone.log_probs_old).abs().max().item()
    if error > clip / 10:
        warnings.warn(
            f"method.clip: {clip:g} is less than ten times the replay error {error:.1e} of this "
            "precision; want a larger clip, or model.dtype fp32",
            stacklevel=2,
        )
    return error


def informative(reward: Tensor, group: int) -> list[slice]:
    """The groups of siblings whose rewards do not all tie."""
    return [rows for rows in slices(len(reward), group) if reward[rows].min() < reward[rows].max()]


def kl(log_ratios: Tensor) -> float:
    """KL(pi_old || pi_ref) over whole trajectories, from the policy's own samples, (B, S) -> nats.

    Nats of a latent element, where ``log_prob`` is the mean.
    """
    return log_ratios.sum(1).mean().item()


def kl_binding(log_ratios: Tensor, reward: Tensor, groups: list[slice], beta: float) -> float:
    """mean |drhat| / mean |dr / beta|: near 1 the KL term binds the policy, near 0 the clip."""
    predicted = [torch.pdist(log_ratios[rows].mean(1, keepdim=True)).mean() for rows in groups]
    wanted = [torch.pdist(reward[rows, None]).mean() for rows in groups]
    target = torch.stack(wanted) / beta
    return (torch.stack(predicted).mean() / target.mean()).item()
