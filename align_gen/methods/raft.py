"""RAFT: reward-ranked fine-tuning (Dong et al., TMLR 2023, arXiv 2304.06767): learn from the best
of K of your own.

Choosing the kept one by K-way Bradley-Terry is how people curate (Ferbach et al., NeurIPS 2024,
arXiv 2407.09499); the prior that keeps outputs near the reference's is SuperHF's (Mukobi et al.,
arXiv 2310.16763). Each round narrows what is drawn: watch a held-out reward, and reward/std.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..losses import choice_probabilities
from ..pipelines import Condition, Model
from ..pipelines.seeding import generator
from ..reward_heads import RewardSet
from ..strict import Strict
from .batches import Kind, Prompts, Sampling
from .denoising import (
    Times,
    conditional_guidance,
    draw_noise,
    draw_times,
    drop_captions,
    mean_square,
    noise_generators,
    squared_errors,
)
from .state import TrainState
from .trajectories import draw, siblings, slices


class Options(Strict):
    """``images_per_prompt`` are drawn, one is kept: the best, or one by chance, softmax(r /
    ``temperature``).

    ``prompt_share``: of a step's prompts, only those whose kept images score best are learned from.
    ``prior_weight``: of the squared distance between the output and the reference's.
    """

    name: Literal["raft"] = "raft"
    images_per_prompt: int = Field(8, ge=1)
    prompts_per_step: int = Field(8, ge=1)
    gradient_steps: int = Field(4, ge=1)
    temperature: float | None = Field(None, gt=0)
    prompt_share: float = Field(1.0, gt=0, le=1)
    prior_weight: float = Field(0.0, ge=0)
    times: Times = "uniform"
    dropout: float = Field(0.1, ge=0, le=1)


def kind(options: Options) -> Kind:
    """What a step's batch is."""
    return "prompts"


def check(options: Options, sampling: Sampling) -> None:
    """What no single key shows: UserError when these settings cannot learn."""


def calls(options: Options, sampling: Sampling, passes: int) -> dict[str, int]:
    """Rows through the denoiser per step: all are drawn with guidance, ``passes`` rows, the kept
    learned without.

    With a prior the reference runs on these too. Of prompts, the best ``prompt_share`` of them
    count; ties are not.
    """
    drawn = (
        sampling.num_inference_steps * passes * options.prompts_per_step * options.images_per_prompt
    )
    images = max(1, round(options.prompt_share * options.prompts_per_step))
    learned = options.gradient_steps * images
    forwards = drawn + learned * (2 if options.prior_weight else 1)
    return {"forwards": forwards, "backwards": learned, "images": images}


def step(
    state: TrainState,
    batch: Prompts,
    model: Model,
    rewards: RewardSet,
    options: Options,
    sampling: Sampling,
) -> dict[str, float]:
    """Sample -> score -> compare -> learn; one on-policy round.

    K images of a prompt stay together: B = prompts * K, siblings adjacent.
    """
    group = options.images_per_prompt
    condition, texts, generators = siblings(state, batch, group)

    # 1. Sample with the current policy.
    samples, media = draw(state, condition, generators, sampling, "mean")

    # 2. Score; higher is better.
    with torch.no_grad():
        scores = rewards(media, texts)
    combined = state.gather(scores.combined)
    metrics = {
        f"reward/{name}": state.gather(value).mean().item() for name, value in scores.heads.items()
    }
    spread = combined.std(correction=min(1, len(combined) - 1)).item()  # of one picture, 0
    metrics |= {"reward/combined": combined.mean().item(), "reward/std": spread}
    each = combined.view(-1, group)
    metrics["zero_variance"] = (each.amin(1) == each.amax(1)).double().mean().item()

    # 3. Compare: siblings, of which one is kept, and then these, of which the best stay.
    chosen = choose(state, scores.combined, batch.ids, options)
    reward = scores.combined[chosen]
    everyone = state.gather(reward)
    count = max(1, round(options.prompt_share * len(everyone)))
    kept = reward >= everyone.topk(count).values[-1]
    total = int(state.gather(kept).sum())  # over all processes, whose gradients add up
    metrics["kept_reward"] = (state.gather(reward * kept).sum() / total).item()

    # 4. Learn: denoise what is kept, each gradient step with new noise; memory is that of one call.
    told = [place for place, known in enumerate(kept.tolist()) if state.needs(known)]
    latents = samples.final[chosen.to(samples.latents.device)]
    weights = kept.to(samples.latents)
    ids = [
        place * group + row % group for place, row in zip(batch.ids, chosen.tolist(), strict=True)
    ]
    for k in range(options.gradient_steps):
        losses = [weights.new_zeros(0)]
        distances = [weights.new_zeros(0)]
        for rows in (told[places] for places in slices(len(told), state.micro_batch)):
            own = noise_generators(state, [ids[row] for row in rows], str(k or ""))
            t = draw_times(model, own, options.times)
            noise = draw_noise(latents[rows], own)
            captions = drop_captions(model, batch.condition[rows], own, options.dropout, sampling)
            error, distance = errors(model, latents[rows], noise, t, captions, options, sampling)
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
    """The row of the one image of each prompt that is kept, (prompts,); the first of equally good
    ones.
    """
    group = options.images_per_prompt
    if options.temperature is None:
        places = reward.view(-1, group).argmax(1)
    else:
        chances = choice_probabilities(reward, group, options.temperature).view(-1, group).cpu()
        seeds = [generator(state.seed, "keep", state.step, place) for place in ids]
        drawn = [
            torch.multinomial(row, 1, generator=seed)
            for row, seed in zip(chances, seeds, strict=True)
        ]
        places = torch.cat(drawn).to(reward.device)
    return places + torch.arange(0, len(reward), group, device=reward.device)


def errors(
    model: Model,
    latents: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Condition,
    options: Options,
    sampling: Sampling,
) -> tuple[Tensor, Tensor]:
    """``squared_errors``, and the mean over latent elements of |output - reference's output|^2 at
    the same x_t; (B,).

    Without a prior the reference is not run, and the second is 0.
    """
    if not options.prior_weight:
        error = squared_errors(model, latents, noise, t, condition, sampling)
        return error, torch.zeros_like(error)
    x_t = model.process.add_noise(latents, noise, t)
    scale = conditional_guidance(model, sampling)
    with model.as_reference():
        reference = model.predict(x_t, t, condition, scale).float()
    output = model.predict(x_t, t, condition, scale).float()
    target = model.process.target(latents, noise, t).float()
    return mean_square(output, target), mean_square(output, reference)
