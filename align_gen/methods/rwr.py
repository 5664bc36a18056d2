"""RWR: learn to denoise pictures, of which better rewarded ones count for more.

Reward-weighted regression. For diffusion as Lee et al. (arXiv 2302.12192) and Black et al. (arXiv
2305.13301) have it, for flow models Flow-RWR (Liu et al., arXiv 2501.13918, eq. 9). One round fits
the tilt p exp(r / beta) of what it was given; on-policy, every round tilts anew, so that the reward
alone says where this ends: watch a held-out one.
"""

from typing import Literal

import torch
from pydantic import Field

from ..losses import effective_sample_size, exponential_weights, softmax_weights
from ..reward_heads import RewardSet
from .base import Cost
from .batches import Kind, Media, Prompts, Sampling
from .denoising import DenoisingOptions, noised
from .state import TrainState, reward_metrics
from .trajectories import draw

WEIGHTS = {"softmax": softmax_weights, "exponential": exponential_weights}


class Options(DenoisingOptions):
    """Weights are G softmax(r / beta) among a prompt's G images, or exp(z / beta), z a z-score."""

    name: Literal["rwr"] = "rwr"
    images_per_prompt: int = Field(
        8, ge=2, description="Images drawn of each prompt, which are compared with each other."
    )
    prompts_per_step: int = Field(8, ge=1, description="Prompts of a step, over all processes.")
    gradient_steps: int = Field(
        1, ge=1, description="Optimizer steps taken on the images of one step, each with new noise."
    )
    offline: bool = Field(
        False, description="Learn from the pictures of data.media in place of drawn ones."
    )
    weights: Literal["softmax", "exponential"] = Field(
        "softmax", description="How a reward becomes what a picture counts for."
    )
    beta: float = Field(
        1.0,
        gt=0,
        description="The smaller, the more the best count. In the reward's unit for softmax, in "
        "standard deviations among a prompt's images for exponential.",
    )
    cap: float | None = Field(20.0, ge=1, description="Largest weight. null: none.")
    min_ess: float = Field(
        2.0,
        ge=1,
        description="A prompt whose effective sample size, in images, is smaller is skipped.",
    )
    pretrain_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the same denoising without rewards; offline that of the data.",
    )

    def batch_kind(self) -> Kind:
        return "media" if self.offline else "prompts"

    def require(self, sampling: Sampling) -> None:
        if self.min_ess >= self.images_per_prompt:
            raise ValueError(
                f"method.min_ess: {self.min_ess:g} skips all but ties among "
                f"{self.images_per_prompt} images; want less"
            )

    def cost(self, sampling: Sampling, rows_per_sample: int) -> Cost:
        """Pictures are drawn with guidance, and learned from without.

        An upper bound: prompts whose effective sample size is too small are not learned from.
        """
        drawn = 0 if self.offline else sampling.num_inference_steps * rows_per_sample * self.images
        learned = self.gradient_steps * self.images
        return Cost(drawn + learned, learned, self.images)


def step(
    state: TrainState, batch: Prompts, rewards: RewardSet, options: Options, sampling: Sampling
) -> dict[str, float]:
    """Sample -> score -> compare -> learn; one round.

    G images of a prompt stay together: B = prompts * G, siblings adjacent.
    """
    model = state.model
    group = options.images_per_prompt

    # 1. Sample with the current policy, or take what is given.
    if isinstance(batch, Media):
        condition = batch.condition
        texts = list(batch.texts)
        ids = list(batch.ids)
        media = batch.media.to(model.device)
        with torch.no_grad():
            parts = [model.encode(media[rows]) for rows in state.slices(len(media))]
        latents = torch.cat(parts)
    else:
        drawn = draw(state, batch, group, sampling)
        condition = drawn.condition
        texts = drawn.texts
        ids = drawn.ids
        media = drawn.media
        latents = drawn.final

    # 2. Score; higher is better.
    with torch.no_grad():
        scores = rewards(media, texts)
    metrics = reward_metrics(state, scores, group)

    # 3. Compare siblings: what each picture counts for, 0 where one outweighs all others of its
    # prompt.
    reward = scores.combined.to(latents.device)
    weights = WEIGHTS[options.weights](reward, group, options.beta, options.cap)
    sizes = effective_sample_size(weights, group)
    kept = (sizes >= options.min_ess).repeat_interleave(group)
    weights = (weights + options.pretrain_weight) * kept
    # Over all processes, whose gradients add up.
    everyone = state.gather(kept)
    total = int(everyone.sum())
    metrics["ess"] = state.gather(sizes).mean().item() / group
    metrics["skipped"] = 1 - total / len(everyone)

    # 4. Learn: denoise them, each gradient step with new noise; memory is that of one call.
    useful = state.rows_to_learn(kept)
    metrics |= {"loss": 0.0, "grad_norm": 0.0}
    for k in range(options.gradient_steps if total else 0):
        losses = [weights.new_zeros(0)]
        for part in state.slices(len(useful)):
            rows = useful[part]
            # Noise is seeded by the picture and not by its row, whatever the micro-batch.
            own = [ids[row] for row in rows.tolist()]
            given = noised(
                state, latents[rows], condition[rows], own, options, sampling, str(k or "")
            )
            loss = weights[rows] * given.squared_errors(model)
            # Divided by the pictures of all processes: micro-batches then add up to one mean.
            state.backward(loss.sum() / total)
            losses.append(loss.detach())
        metrics["grad_norm"] = state.update()
        metrics["loss"] = state.gather(torch.cat(losses)).sum().item() / total
    return metrics
