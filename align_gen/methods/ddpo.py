"""DDPO: make the denoising steps that led to well rewarded pictures likelier (Black et al., arXiv
2305.13301).

Policy gradients with clipped importance ratios on single denoising steps.
Every step of a trajectory is an action whose advantage is that of the finished picture. There is
no KL term, so the reward alone decides where this ends: watch a held-out one.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..losses import advantages, clipped_policy_gradient, history_advantages, remembered
from ..reward_heads import RewardSet
from .base import Cost, MethodOptions
from .batches import Prompts, Sampling
from .state import TrainState, reward_metrics
from .trajectories import draw


class Options(MethodOptions):
    """Advantages are normalised among the images of one prompt, or within its ``history``."""

    name: Literal["ddpo"] = "ddpo"
    images_per_prompt: int = Field(
        8, ge=1, description="Images drawn of each prompt, which are compared with each other."
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
    log_prob: Literal["mean", "sum"] = Field(
        "mean",
        description="Log-likelihoods are the mean over latent elements, as published, or their "
        "sum.",
    )
    history: int | None = Field(
        None,
        ge=2,
        description="Compare with this many of the prompt's latest rewards, of earlier steps too.",
    )
    min_count: int = Field(
        16,
        ge=2,
        description="With fewer remembered rewards, a prompt is compared with the whole step.",
    )
    keep_graph: bool = Field(
        False,
        description="Backpropagate through the sampling pass itself: about 25 % faster, but memory "
        "grows with the denoising steps; for one gradient step.",
    )

    def require(self, sampling: Sampling) -> None:
        if sampling.eta == 0:
            raise ValueError(
                "sampling.eta: 0 leaves no stochastic step, and ddpo needs log-probabilities; "
                "want eta > 0"
            )
        if self.images_per_prompt == 1 and (self.history is None or self.prompts_per_step == 1):
            raise ValueError(
                "method.images_per_prompt: 1 has nothing to be compared with; want more, "
                "or method.history"
            )
        if self.history is not None and self.history < self.min_count:
            raise ValueError(
                f"method.history: {self.history} never holds method.min_count, {self.min_count}"
            )
        if self.keep_graph and self.gradient_steps > 1:
            raise ValueError(
                "method.keep_graph: the pictures are drawn once, so want gradient_steps 1"
            )

    def cost(self, sampling: Sampling, rows_per_sample: int) -> Cost:
        """All images are drawn, and learned from once every gradient step, or while being drawn.

        An upper bound: steps with std 0 are not learned from, nor are prompts whose images all tie.
        """
        each = sampling.num_inference_steps * rows_per_sample * self.images
        passes = 1 if self.keep_graph else 1 + self.gradient_steps
        return Cost(each * passes, each * self.gradient_steps, self.images)


def step(
    state: TrainState, batch: Prompts, rewards: RewardSet, options: Options, sampling: Sampling
) -> dict[str, float]:
    """Sample -> score -> compare -> learn; one on-policy round.

    G images of a prompt stay together: B = prompts * G, S stochastic steps, siblings adjacent.
    """
    group = options.images_per_prompt

    # 1. Sample with the current policy, keeping every latent.
    drawn = draw(
        state, batch, group, sampling, reduction=options.log_prob, graph=options.keep_graph
    )
    old = drawn.log_probs_old.detach()

    # 2. Score; higher is better. 3. Compare siblings, or with what this prompt had before.
    with torch.no_grad():
        scores = rewards(drawn.media, drawn.texts)
    combined = state.gather(scores.combined)
    advantage = compare(state, drawn.texts, scores.combined, combined, options).to(old.device)
    everyone = state.gather(advantage)
    metrics = reward_metrics(state, scores, group)
    # With a history, images that tie may still be better than earlier ones.
    metrics["zero_variance"] = (everyone.view(-1, group) == 0).all(1).double().mean().item()

    # 4. Learn: each transition again, under the moving policy; memory is that of one call. Where
    # the advantage is 0, so is the gradient.
    useful = state.rows_to_learn(advantage != 0)
    terms = len(everyone) * drawn.steps
    # The kept graph is one, so one backward pass takes it all.
    size = len(useful) * drawn.steps if options.keep_graph else state.micro_batch
    for _ in range(options.gradient_steps):
        losses = [advantage.new_zeros(0)]
        changes = [advantage.new_zeros(0)]
        for rows, columns in drawn.transitions(useful, size=max(size, 1)):
            if options.keep_graph:
                log_probs = drawn.log_probs_old[rows, columns]
            else:
                log_probs = drawn.log_probs(rows, columns)
            before = old[rows, columns]
            loss = clipped_policy_gradient(log_probs, before, advantage[rows], options.clip)
            state.backward(loss.sum() / terms)
            losses.append(loss.detach())
            changes.append((log_probs.detach() - before).abs())
        metrics["grad_norm"] = state.update()
        change = state.gather(torch.cat(changes))
        metrics["loss"] = state.gather(torch.cat(losses)).sum().item() / terms
        metrics["clip_fraction"] = (change.expm1() > options.clip).sum().item() / terms
        metrics["log_prob_change"] = change.sum().item() / terms
    return metrics


def compare(
    state: TrainState, texts: list[str], reward: Tensor, everyone: Tensor, options: Options
) -> Tensor:
    """Advantages of this process's images, (B,): among siblings, or within what is remembered.

    Args:
        reward: of this process's images, (B,).
        everyone: rewards of all processes' images.
    """
    if options.history is None:
        return advantages(reward, options.images_per_prompt, options.advantage_limit)
    prompts = [text for each in state.gather_objects(texts) for text in each]
    history = remembered(state.memory.get("rewards", {}), prompts, everyone, options.history)
    state.memory["rewards"] = history  # the same in every process
    return history_advantages(
        history, texts, reward, everyone, options.min_count, options.advantage_limit
    )
