"""RAFT: draw several pictures of a prompt and learn to denoise the best of them (Dong et al., TMLR
2023, arXiv 2304.06767).

Reward-ranked fine-tuning. Choosing the kept one by K-way Bradley-Terry is how people curate
(Ferbach et al., NeurIPS 2024, arXiv 2407.09499); the prior that keeps outputs near the reference's
is SuperHF's (Mukobi et al., arXiv 2310.16763). Each round narrows what is drawn: watch a held-out
reward, and reward/std.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..losses import choice_probabilities
from ..reward_heads import RewardSet
from .base import Cost
from .batches import Prompts, Sampling
from .denoising import DenoisingOptions, mean_square, noised
from .state import TrainState, reward_metrics
from .trajectories import draw


class Options(DenoisingOptions):
    """``images_per_prompt`` are drawn and one is kept."""

    name: Literal["raft"] = "raft"
    images_per_prompt: int = Field(
        8, ge=1, description="Images drawn of each prompt, of which one is kept."
    )
    prompts_per_step: int = Field(8, ge=1, description="Prompts of a step, over all processes.")
    gradient_steps: int = Field(
        4, ge=1, description="Optimizer steps taken on the images of one step, each with new noise."
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="Keep one by chance, softmax(reward / temperature), in the reward's unit. "
        "null: the best.",
    )
    prompt_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Learn from this share of a step's prompts, those whose kept images score "
        "best.",
    )
    prior_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the squared distance between the output and the reference's.",
    )

    def cost(self, sampling: Sampling, rows_per_sample: int) -> Cost:
        """All images are drawn with guidance, and the kept ones learned from without.

        With a prior the reference runs on these too. An upper bound: tying prompts may be fewer.
        """
        drawn = sampling.num_inference_steps * rows_per_sample * self.images
        kept = max(1, round(self.prompt_share * self.prompts_per_step))
        learned = self.gradient_steps * kept
        return Cost(drawn + learned * (2 if self.prior_weight else 1), learned, kept)


def step(
    state: TrainState, batch: Prompts, rewards: RewardSet, options: Options, sampling: Sampling
) -> dict[str, float]:
    """Sample -> score -> compare -> learn; one on-policy round.

    K images of a prompt stay together: B = prompts * K, siblings adjacent.
    """
    model = state.model
    group = options.images_per_prompt

    # 1. Sample with the current policy.
    drawn = draw(state, batch, group, sampling)

    # 2. Score; higher is better.
    with torch.no_grad():
        scores = rewards(drawn.media, drawn.texts)
    metrics = reward_metrics(state, scores, group)

    # 3. Compare: siblings, of which one is kept, and then these, of which the best stay.
    chosen = choose(state, scores.combined, batch.ids, options)
    reward = scores.combined[chosen]
    everyone = state.gather(reward)
    count = max(1, round(options.prompt_share * len(everyone)))
    kept = reward >= everyone.topk(count).values[-1]
    # Over all processes, whose gradients add up.
    total = int(state.gather(kept).sum())
    metrics["kept_reward"] = (state.gather(reward * kept).sum() / total).item()

    # 4. Learn: denoise what is kept, each gradient step with new noise; memory is that of one call.
    useful = state.rows_to_learn(kept)
    latents = drawn.final[chosen.to(drawn.final.device)]
    weights = kept.to(drawn.final)
    ids = [drawn.ids[row] for row in chosen.tolist()]
    for k in range(options.gradient_steps):
        losses = [weights.new_zeros(0)]
        distances = [weights.new_zeros(0)]
        for part in state.slices(len(useful)):
            rows = useful[part]
            # Noise is seeded by the picture and not by its row, whatever the micro-batch.
            own = [ids[row] for row in rows.tolist()]
            condition = batch.condition[rows]
            given = noised(state, latents[rows], condition, own, options, sampling, str(k or ""))
            distance = weights.new_zeros(len(rows))
            if options.prior_weight:
                # Before the policy's own call, whose graph would else lie in memory beside it.
                with model.as_reference():
                    reference = given.output(model)
                output = given.output(model)
                distance = mean_square(output, reference)
                error = mean_square(output, given.target)
            else:
                error = given.squared_errors(model)
            loss = weights[rows] * (error + options.prior_weight * distance)
            state.backward(loss.sum() / total)
            losses.append(loss.detach())
            distances.append(weights[rows] * distance.detach())
        metrics["grad_norm"] = state.update()
        metrics["loss"] = state.gather(torch.cat(losses)).sum().item() / total
        if options.prior_weight:
            metrics["prior"] = state.gather(torch.cat(distances)).sum().item() / total
    return metrics


def choose(state: TrainState, reward: Tensor, ids: Sequence[int], options: Options) -> Tensor:
    """The row of the one image of each prompt that is kept, (prompts,).

    Without a temperature, the first of equally good ones.
    """
    group = options.images_per_prompt
    if options.temperature is None:
        siblings = reward.view(-1, group).argmax(1)
    else:
        chances = choice_probabilities(reward, group, options.temperature).view(-1, group).cpu()
        generators = state.generators("keep", ids)
        drawn = [
            torch.multinomial(row, 1, generator=each)
            for row, each in zip(chances, generators, strict=True)
        ]
        siblings = torch.cat(drawn).to(reward.device)
    return siblings + torch.arange(0, len(reward), group, device=reward.device)
