"""DDPO: policy gradients with clipped importance ratios on single denoising steps (Black et al., arXiv 2305.13301).

Every step of a trajectory is an action whose advantage is the finished picture's; there is no KL term, so the reward
alone says where this ends: watch a held-out one.
"""

from typing import Literal

import torch
from pydantic import Field

from ..batches import Prompts, Sampling
from ..errors import UserError
from ..losses import advantages, clipped_policy_gradient
from ..pipelines import Model
from ..pipelines.sampling import step_log_prob
from ..pipelines.seeding import generator
from ..reward_heads import RewardSet
from ..state import TrainState
from ..strict import Strict
from ..trajectories import draw, slices


class Options(Strict):
    """clip is in the units of ``log_prob``: mean over latent elements, as published code has it, or sum.

    Advantages are normalised among the images of one prompt, and held within ``advantage_limit``.
    """

    name: Literal["ddpo"] = "ddpo"
    images_per_prompt: int = Field(8, ge=2)
    prompts_per_step: int = Field(8, ge=1)
    gradient_steps: int = Field(1, ge=1)
    clip: float = Field(1e-4, gt=0)
    advantage_limit: float = Field(5.0, gt=0)
    log_prob: Literal["mean", "sum"] = "mean"


def check(options: Options, sampling: Sampling) -> None:
    """What no single key shows: UserError when these settings cannot learn."""
    if sampling.eta == 0:
        raise UserError("sampling.eta: 0 leaves no stochastic step, and ddpo needs log-probabilities; want eta > 0")


def calls(options: Options, sampling: Sampling, passes: int) -> dict[str, int]:
    """Rows through the denoiser per step, ``passes`` of them a sample (guidance): the floor of this algorithm.

    All images are drawn, and learned from once every gradient step. An upper bound: steps with std 0 are not learned
    from, nor are prompts whose images all tie.
    """
    images = options.prompts_per_step * options.images_per_prompt
    each = sampling.num_inference_steps * passes * images
    return {
        "forwards": each * (1 + options.gradient_steps),
        "backwards": each * options.gradient_steps,
        "images": images,
    }


def step(
    state: TrainState, batch: Prompts, model: Model, rewards: RewardSet, options: Options, sampling: Sampling
) -> dict[str, float]:
    """Sample -> score -> compare -> learn; one on-policy round.

    G images of a prompt stay together: B = prompts * G, S stochastic steps, siblings adjacent.
    """
    group = options.images_per_prompt
    condition = batch.condition.repeat(group)
    texts = [text for text in batch.texts for _ in range(group)]
    generators = [generator(state.seed, "rollout", state.step, f"{i}/{j}") for i in batch.ids for j in range(group)]

    # 1. Sample with the current policy, keeping every latent.
    samples, media = draw(state, condition, generators, sampling, options.log_prob)

    # 2. Score; higher is better. 3. Compare siblings.
    with torch.no_grad():
        scores = rewards(media, texts)
    advantage = advantages(scores.combined.to(samples.log_probs.device), group, options.advantage_limit)
    everyone = state.gather(advantage)
    metrics = {f"reward/{name}": state.gather(value).mean().item() for name, value in scores.heads.items()}
    combined = state.gather(scores.combined)
    metrics |= {"reward/combined": combined.mean().item(), "reward/std": combined.std().item()}
    metrics["zero_variance"] = (everyone.view(-1, group) == 0).all(1).double().mean().item()

    # 4. Learn: each kept transition again, under the moving policy; memory is that of one call.
    told, steps = advantage.nonzero().flatten(), samples.stochastic.tolist()  # of the others the gradient is 0
    terms = len(everyone) * len(steps)
    for _ in range(options.gradient_steps):
        losses, changes = [advantage.new_zeros(0)], [advantage.new_zeros(0)]
        for rows in (told[part] for part in slices(len(told), state.micro_batch)):
            for column, number in enumerate(steps):
                log_prob = step_log_prob(
                    state.model,
                    samples,
                    number,
                    condition[rows],
                    eta=sampling.eta,
                    guidance_scale=sampling.guidance_scale,
                    reduction=options.log_prob,
                    rows=rows,
                )
                old = samples.log_probs[rows, column]
                loss = clipped_policy_gradient(log_prob, old, advantage[rows], options.clip)
                state.backward(loss.sum() / terms)
                losses.append(loss.detach())
                changes.append((log_prob.detach() - old).abs())
        metrics["grad_norm"] = state.update()
        change = state.gather(torch.cat(changes))
        metrics["loss"] = state.gather(torch.cat(losses)).sum().item() / terms
        metrics["clip_fraction"] = (change.expm1() > options.clip).sum().item() / terms
        metrics["log_prob_change"] = change.sum().item() / terms
    return metrics
