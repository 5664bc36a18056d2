"""GRPO: as DDPO, each picture against others of its prompt, at a price for leaving the reference
(Flow-GRPO, Liu et al. 2025, arXiv 2505.05470).

Group-relative policy gradients on single denoising steps.
DDPO's clipped ratio, with a picture compared with its siblings and a price on leaving the
reference. On flow models ``sampling.flow_sde`` is the paper's own sampler; any model with
stochastic steps will do.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..losses import advantages, clipped_policy_gradient, gaussian_kl
from ..reward_heads import RewardSet
from .base import Cost, MethodOptions
from .batches import Prompts, Sampling
from .state import TrainState, reward_metrics
from .trajectories import draw


class Options(MethodOptions):
    """A clipped ratio, advantages within groups, and a divergence from the reference."""

    name: Literal["grpo"] = "grpo"
    images_per_prompt: int = Field(
        8, ge=2, description="Images drawn of each prompt, which are compared with each other."
    )
    prompts_per_step: int = Field(8, ge=1, description="Prompts of a step, over all processes.")
    gradient_steps: int = Field(
        1, ge=1, description="Optimizer steps taken on the images of one step."
    )
    clip: float = Field(
        1e-4,
        gt=0,
        description="How far the ratio of a step's likelihoods may leave 1; in units of log_prob.",
    )
    advantage_limit: float = Field(
        5.0, gt=0, description="Largest size of an advantage, in standard deviations."
    )
    std: Literal["group", "step"] = Field(
        "group",
        description="Divide advantages by the deviation among a prompt's images, or, as published "
        "recipes do, by that of all images of the step.",
    )
    kl: float = Field(
        0.0,
        ge=0,
        description="Weight of the divergence from the reference, step by step; the reference then "
        "runs along. In units of log_prob.",
    )
    window: int | None = Field(
        None,
        ge=1,
        description="Learn from this many consecutive denoising steps, drawn anew each round; the "
        "others stay stochastic. null: from all.",
    )
    log_prob: Literal["mean", "sum"] = Field(
        "mean",
        description="Log-likelihoods are the mean over latent elements, as published, or their "
        "sum.",
    )

    def require(self, sampling: Sampling) -> None:
        steps = sampling.num_inference_steps
        if sampling.eta == 0:
            raise ValueError(
                "sampling.eta: 0 leaves no stochastic step, and grpo needs log-probabilities; "
                "want eta > 0"
            )
        if self.window is not None and self.window > steps:
            raise ValueError(
                f"method.window: {self.window} is more than sampling.num_inference_steps, {steps}"
            )

    def cost(self, sampling: Sampling, rows_per_sample: int) -> Cost:
        """All images are drawn; each gradient step learns from the window of each.

        With ``kl`` the reference sees the window too. An upper bound: steps with std 0 are not
        learned from, nor, without ``kl``, are ties.
        """
        steps = sampling.num_inference_steps
        drawn = self.images * rows_per_sample * steps
        window = self.window or steps
        learned = self.images * rows_per_sample * window * self.gradient_steps
        return Cost(drawn + learned * (2 if self.kl else 1), learned, self.images)


def step(
    state: TrainState, batch: Prompts, rewards: RewardSet, options: Options, sampling: Sampling
) -> dict[str, float]:
    """Sample -> score -> compare -> learn; one on-policy round.

    G images of a prompt stay together: B = prompts * G, siblings adjacent.
    """
    group = options.images_per_prompt

    # 1. Sample with the current policy, keeping every latent.
    drawn = draw(state, batch, group, sampling, reduction=options.log_prob)
    old = drawn.log_probs_old

    # 2. Score; higher is better. 3. Compare siblings.
    with torch.no_grad():
        scores = rewards(drawn.media, drawn.texts)
    combined = state.gather(scores.combined)
    std = combined.std(correction=0) if options.std == "step" else None
    advantage = advantages(scores.combined, group, options.advantage_limit, std).to(old.device)
    metrics = reward_metrics(state, scores, group)

    # 4. Learn: each transition of the window again, under the moving policy; memory is that of one
    # call. Where the advantage is 0, only the divergence has a gradient.
    window = learned_steps(state, drawn.steps, options.window)
    useful = state.rows_to_learn((advantage != 0) | (options.kl > 0))
    terms = len(combined) * len(window)
    for _ in range(options.gradient_steps):
        losses = [advantage.new_zeros(0)]
        changes = [advantage.new_zeros(0)]
        divergences = [advantage.new_zeros(0)]
        for rows, columns in drawn.transitions(useful, window):
            log_probs, mean, std = drawn.transition(rows, columns)
            before = old[rows, columns]
            loss = clipped_policy_gradient(log_probs, before, advantage[rows], options.clip)
            if options.kl > 0:
                with state.model.as_reference():
                    _, reference, _ = drawn.transition(rows, columns)
                divergence = gaussian_kl(mean, reference, std, options.log_prob)
                loss = loss + options.kl * divergence
                divergences.append(divergence.detach())
            state.backward(loss.sum() / terms)
            losses.append(loss.detach())
            changes.append((log_probs.detach() - before).abs())
        metrics["grad_norm"] = state.update()
        change = state.gather(torch.cat(changes))
        metrics["loss"] = state.gather(torch.cat(losses)).sum().item() / terms
        metrics["clip_fraction"] = (change.expm1() > options.clip).sum().item() / terms
        metrics["log_prob_change"] = change.sum().item() / terms
    if options.kl > 0:
        metrics["kl"] = state.gather(torch.cat(divergences)).mean().item()
    return metrics


def learned_steps(state: TrainState, stochastic: int, window: int | None) -> Tensor:
    """Which of the stochastic steps this round learns from, (w,) int64.

    All, or consecutive ones, the same in every process.
    """
    count = min(window or stochastic, stochastic)
    [generator] = state.generators("window", [0])
    first = torch.randint(stochastic - count + 1, (), generator=generator)
    return torch.arange(count) + first
