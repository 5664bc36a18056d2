"""RWR: reward-weighted regression, denoising in which better pictures count for more.

For diffusion as Lee et al. (arXiv 2302.12192) and Black et al. (arXiv 2305.13301) have it, for flow
models Flow-RWR (Liu et al., arXiv 2501.13918, eq. 9). One round fits the tilt p exp(r / beta) of
what it was given; on-policy, every round tilts anew, so that the reward alone says where this ends:
watch a held-out one.
"""

from typing import Literal

import torch
from pydantic import Field

from ..errors import UserError
from ..losses import effective_sample_size, exponential_weights, softmax_weights
from ..pipelines import Model
from ..reward_heads import RewardSet
from ..strict import Strict
from .batches import Kind, Media, Prompts, Sampling
from .denoising import (
    Times,
    draw_noise,
    draw_times,
    drop_captions,
    noise_generators,
    squared_errors,
)
from .state import TrainState
from .trajectories import draw, siblings, slices

WEIGHTS = {"softmax": softmax_weights, "exponential": exponential_weights}


class Options(Strict):
    """Weights are a softmax of r / beta among a prompt's images, times their number, or exp(z /
    beta), z the z-score.

    beta is in the reward's unit for softmax, in standard deviations among a prompt's images for
    exponential. No weight exceeds ``cap``. A prompt whose effective sample size is below
    ``min_ess`` images is skipped. ``offline``: the pictures are given, not drawn.
    ``pretrain_weight``: of the same denoising unweighted; offline it is the data's own.
    """

    name: Literal["rwr"] = "rwr"
    images_per_prompt: int = Field(8, ge=2)
    prompts_per_step: int = Field(8, ge=1)
    gradient_steps: int = Field(1, ge=1)
    offline: bool = False
    weights: Literal["softmax", "exponential"] = "softmax"
    beta: float = Field(1.0, gt=0)
    cap: float | None = Field(20.0, ge=1)
    min_ess: float = Field(2.0, ge=1)
    pretrain_weight: float = Field(0.0, ge=0)
    times: Times = "uniform"
    dropout: float = Field(0.1, ge=0, le=1)


def kind(options: Options) -> Kind:
    """What a step's batch is."""
    return "media" if options.offline else "prompts"


def check(options: Options, sampling: Sampling) -> None:
    """What no single key shows: UserError when these settings cannot learn."""
    if options.min_ess >= options.images_per_prompt:
        images = options.images_per_prompt
        raise UserError(
            f"method.min_ess: {options.min_ess:g} skips all but ties among {images} images; want less"
        )


def calls(options: Options, sampling: Sampling, passes: int) -> dict[str, int]:
    """Rows through the denoiser per step: pictures are drawn with guidance, ``passes`` rows, and
    learned without.

    An upper bound: prompts whose effective sample size is too small are not learned from.
    """
    images = options.prompts_per_step * options.images_per_prompt
    drawn = 0 if options.offline else sampling.num_inference_steps * passes * images
    learned = options.gradient_steps * images
    return {"forwards": drawn + learned, "backwards": learned, "images": images}


def step(
    state: TrainState,
    batch: Prompts,
    model: Model,
    rewards: RewardSet,
    options: Options,
    sampling: Sampling,
) -> dict[str, float]:
    """Sample -> score -> compare -> learn; one round.

    G images of a prompt stay together: B = prompts * G, siblings adjacent.
    """
    group = options.images_per_prompt

    # 1. Sample with the current policy, or take what is given.
    if isinstance(batch, Media):
        condition = batch.condition
        texts = list(batch.texts)
        ids = list(batch.ids)
        media = batch.media.to(model.device)
        with torch.no_grad():
            latents = torch.cat(
                [model.encode(media[rows]) for rows in slices(len(media), state.micro_batch)]
            )
    else:
        condition, texts, generators = siblings(state, batch, group)
        samples, media = draw(state, condition, generators, sampling, "mean")
        latents = samples.final
        ids = [place * group + number for place in batch.ids for number in range(group)]

    # 2. Score; higher is better.
    with torch.no_grad():
        scores = rewards(media, texts)
    combined = state.gather(scores.combined)
    metrics = {
        f"reward/{name}": state.gather(value).mean().item() for name, value in scores.heads.items()
    }
    metrics |= {"reward/combined": combined.mean().item(), "reward/std": combined.std().item()}
    each = combined.view(-1, group)
    metrics["zero_variance"] = (each.amin(1) == each.amax(1)).double().mean().item()

    # 3. Compare siblings: what each picture counts for, 0 where one outweighs all others of its
    # prompt.
    weights = WEIGHTS[options.weights](
        scores.combined.to(latents.device), group, options.beta, options.cap
    )
    sizes = effective_sample_size(weights, group)
    kept = (sizes >= options.min_ess).repeat_interleave(group)
    weights = (weights + options.pretrain_weight) * kept
    # processes' gradients add up
    total = int(state.gather(kept).sum())
    everyone = state.gather(sizes)
    metrics |= {"ess": everyone.mean().item() / group, "skipped": 1 - total / len(combined)}

    # 4. Learn: denoise them, each gradient step with new noise; memory is that of one call.
    told = [row for row, known in enumerate(kept.tolist()) if state.needs(known)]
    metrics |= {"loss": 0.0, "grad_norm": 0.0}
    for k in range(options.gradient_steps if total else 0):
        losses = [weights.new_zeros(0)]
        for rows in (told[places] for places in slices(len(told), state.micro_batch)):
            own = noise_generators(state, [ids[row] for row in rows], str(k or ""))
            t = draw_times(model, own, options.times)
            noise = draw_noise(latents[rows], own)
            captions = drop_captions(model, condition[rows], own, options.dropout, sampling)
            loss = weights[rows] * squared_errors(
                model, latents[rows], noise, t, captions, sampling
            )
            state.backward(loss.sum() / total)
            losses.append(loss.detach())
        metrics["grad_norm"] = state.update()
        metrics["loss"] = state.gather(torch.cat(losses)).sum().item() / total
    return metrics
