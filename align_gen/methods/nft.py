"""DiffusionNFT: a policy improved by denoising good samples, and away from bad ones (Zheng et al.,
arXiv 2509.16117).

Finished samples are noised anew and regressed on, see ``losses.nft``: no likelihood of trajectories
is wanted, so any sampler will do, the ODE (``sampling.eta: 0``) too. The derivation is of samples
drawn without guidance, as published (``sampling.guidance_scale: 1``); with guidance, what is
learned is drawn towards guided samples as well.
"""

from contextlib import nullcontext
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..losses import advantages, nft_loss, optimality
from ..pipelines import Condition, Model
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
)
from .state import TrainState
from .trajectories import draw, siblings, slices


class Options(Strict):
    """``beta``: the smaller, the further a round may move; at the first gradient step of "round" it
    only scales.

    r = 1/2 + A / (2 advantage_limit), A normalised among the images of a prompt and held within the
    limit. ``old``: the policy that draws and that is improved on is that of this round, or the
    "average" of ``optim.ema``, which follows slowly. ``times_per_image``: how often a picture is
    noised; all gradient steps use the same noise. ``kl``: weight of the squared distance of outputs
    from the reference's. ``dropout``: share of captions left empty.
    """

    name: Literal["nft"] = "nft"
    images_per_prompt: int = Field(8, ge=2)
    prompts_per_step: int = Field(8, ge=1)
    gradient_steps: int = Field(1, ge=1)
    times_per_image: int = Field(4, ge=1)
    times: Times = "uniform"
    beta: float = Field(1.0, gt=0)
    advantage_limit: float = Field(5.0, gt=0)
    old: Literal["round", "average"] = "round"
    kl: float = Field(0.0, ge=0)
    dropout: float = Field(0.1, ge=0, le=1)


def kind(options: Options) -> Kind:
    """What a step's batch is."""
    return "prompts"


def needs(options: Options) -> dict[str, str]:
    """Keys of the recipe that must be there, and for what."""
    return {"optim.ema": "method.old: average"} if options.old == "average" else {}


def check(options: Options, sampling: Sampling) -> None:
    """What no single key shows: UserError when these settings cannot learn."""


def calls(options: Options, sampling: Sampling, passes: int) -> dict[str, int]:
    """Rows through the denoiser per step: images drawn with ``passes`` rows each, learned from
    without guidance.

    The old policy's outputs are those of the first gradient step, or a pass of their own for the
    average. An upper bound: prompts whose images all tie are not learned from.
    """
    images = options.prompts_per_step * options.images_per_prompt
    noised = images * options.times_per_image
    each = options.gradient_steps * (2 if options.kl else 1)
    each += options.old == "average"
    drawn = images * sampling.num_inference_steps * passes
    return {
        "forwards": drawn + noised * each,
        "backwards": noised * options.gradient_steps,
        "images": images,
    }


def step(
    state: TrainState,
    batch: Prompts,
    model: Model,
    rewards: RewardSet,
    options: Options,
    sampling: Sampling,
) -> dict[str, float]:
    """Sample -> score -> compare -> learn; one round.

    G images of a prompt stay together: B = prompts * G, siblings adjacent; each is noised N times.
    """
    assert options.old != "average" or state.ema is not None
    group = options.images_per_prompt
    condition, texts, generators = siblings(state, batch, group)
    old_policy = state.averaged if options.old == "average" else nullcontext

    # 1. Sample with the old policy; of a trajectory only its end is wanted.
    with old_policy():
        samples, media = draw(state, condition, generators, sampling, "mean")
    latents = samples.final.clone()

    # 2. Score; higher is better. 3. Compare siblings.
    with torch.no_grad():
        scores = rewards(media, texts)
    advantage = advantages(scores.combined.to(latents.device), group, options.advantage_limit)
    everyone = state.gather(advantage)
    combined = state.gather(scores.combined)
    metrics = {
        f"reward/{name}": state.gather(value).mean().item() for name, value in scores.heads.items()
    }
    metrics |= {"reward/combined": combined.mean().item(), "reward/std": combined.std().item()}
    metrics["zero_variance"] = (everyone.view(-1, group) == 0).all(1).double().mean().item()

    # 4. Learn from each noising of a sample. What the old policy says there is kept: later it
    # cannot be asked.
    told = (
        torch.tensor([state.needs(value != 0) for value in advantage.tolist()]).nonzero().flatten()
    )
    parts = [
        (n, told[part])
        for n in range(options.times_per_image)
        for part in slices(len(told), state.micro_batch)
    ]
    good = optimality(advantage, options.advantage_limit)
    terms = len(everyone) * options.times_per_image
    scale = conditional_guidance(model, sampling)
    outputs_old = list[Tensor]()
    if options.old == "average":
        with old_policy(), torch.no_grad():
            for n, rows in parts:
                given, _ = noised(state, batch, latents, n, rows, options, sampling)
                outputs_old.append(model.predict(*given, scale).float())
    for _ in range(options.gradient_steps):
        losses, moves, distances = ([good.new_zeros(0)] for _ in range(3))
        for number, (n, rows) in enumerate(parts):
            given, target = noised(state, batch, latents, n, rows, options, sampling)
            output = model.predict(*given, scale).float()
            if number == len(outputs_old):  # the round's own, before its first update
                outputs_old.append(output.detach())
            loss = nft_loss(output, outputs_old[number], target, good[rows], options.beta)
            if options.kl > 0:
                with model.as_reference():
                    reference = model.predict(*given, scale).float()
                distance = mean_square(output, reference)
                loss = loss + options.kl * distance
                distances.append(distance.detach())
            state.backward(loss.sum() / terms)
            losses.append(loss.detach())
            moves.append(mean_square(output.detach(), outputs_old[number]))
        metrics["grad_norm"] = state.update()
        metrics["loss"] = state.gather(torch.cat(losses)).sum().item() / terms
        metrics["output_change"] = state.gather(torch.cat(moves)).sum().item() / terms
    if options.kl > 0:
        metrics["kl"] = state.gather(torch.cat(distances)).sum().item() / terms
    return metrics


def noised(
    state: TrainState,
    batch: Prompts,
    latents: Tensor,
    n: int,
    rows: Tensor,
    options: Options,
    sampling: Sampling,
) -> tuple[tuple[Tensor, Tensor, Condition], Tensor]:
    """Some samples noised for the n-th time: (x_t, t, their condition), and what a perfect network
    outputs there.

    A function of the run's seed, the step and the samples' own places: the same whenever it is
    asked.
    """
    group = options.images_per_prompt
    model = state.model
    owners = [divmod(row, group) for row in rows.tolist()]  # which prompt, which sibling
    own = noise_generators(
        state, [batch.ids[prompt] * group + sibling for prompt, sibling in owners], f"/{n}"
    )
    t = draw_times(model, own, options.times)
    noise = draw_noise(latents[rows], own)
    condition = drop_captions(
        model, batch.condition[[prompt for prompt, _ in owners]], own, options.dropout, sampling
    )
    x_t = model.process.add_noise(latents[rows], noise, t)
    target = model.process.target(latents[rows], noise, t)
    return (x_t, t, condition), target.float()
