"""DPO on preference pairs: Diffusion-DPO (Wallace et al., CVPR 2024, arXiv 2311.12908), Flow-DPO
(arXiv 2501.13918).

Of two pictures, noised alike, the policy shall denoise the better one better than the reference
does, and the worse one worse. The pairs are given, or, online, drawn from the policy and told apart
by the rewards.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..errors import UserError
from ..losses import bradley_terry, dpo_margin, gap_beta
from ..pipelines import Condition, Model
from ..pipelines.process import Process
from ..reward_heads import RewardSet
from ..strict import Strict
from .batches import Kind, Pairs, Prompts, Sampling
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


class Options(Strict):
    """beta is in the units of ``error``: the mean over latent elements, as published code has it,
    or their sum.

    Published, with the mean: 2000 for Stable Diffusion 1.5 and 5000 for SDXL (Diffusion-DPO), 100
    for Stable Diffusion 3 (Flow-GRPO's code). The errors are of what the network outputs: noise, v,
    x0 or a flow's velocity. ``schedule`` "derived" has them of the noise instead, as the derivation
    wants: on flow models that is beta (1 - t)^2. It does harm there, as little then holds the noisy
    times: VBench 80.90 against 83.41 of the constant beta, and 83.19 of the untrained model (arXiv
    2501.13918, Table 3).

    ``anchor`` adds so much of the better picture's own error, plain denoising. ``label_smoothing``
    is the share of labels that are wrong, ``margin`` how far the better one should lead. ``gain``
    (online): beta grows by up to that share with the reward gap, at ``gain_rate``.

    ``refresh``: every so many steps the reference becomes what the policy is then; of a LoRA alone.
    It sets the margins back to zero, and lets the policy go further from where it began.

    No captions are dropped by default: a preference was given for a caption, and guidance takes the
    unconditional branch off, so that what both branches learn alike is not amplified.
    """

    name: Literal["dpo"] = "dpo"
    online: bool = False
    images_per_prompt: int = Field(2, ge=2)
    prompts_per_step: int = Field(16, ge=1)
    gradient_steps: int = Field(1, ge=1)
    beta: float = Field(2000.0, gt=0)
    error: Literal["mean", "sum"] = "mean"
    schedule: Literal["constant", "derived"] = "constant"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    margin: float = Field(0.0, ge=0)
    anchor: float = Field(0.0, ge=0)
    gain: float = Field(0.0, ge=0)
    gain_rate: float = Field(0.5, gt=0)
    refresh: int | None = Field(None, ge=1)
    times: Times = "uniform"
    dropout: float = Field(0.0, ge=0, le=1)


class Compared(NamedTuple):
    """P pairs: clean latents of the better and of the worse, and the reward between them, 1 where
    pairs are given.

    With no gap it is no pair: it is here only so that all processes call a network in shards
    equally often.
    """

    condition: Condition
    ids: Sequence[int]
    chosen: Tensor
    rejected: Tensor
    gap: Tensor


def kind(options: Options) -> Kind:
    """What a step's batch is."""
    return "prompts" if options.online else "pairs"


def needs(options: Options) -> dict[str, str]:
    """Keys of the recipe that must be there, and for what."""
    return {"model.lora": "method.refresh"} if options.refresh is not None else {}


def check(options: Options, sampling: Sampling) -> None:
    """What no single key shows: UserError when these settings cannot learn."""
    if not options.online and options.images_per_prompt != 2:
        raise UserError(
            f"method.images_per_prompt: a given pair has 2, got {options.images_per_prompt}; or online: true"
        )
    if not options.online and options.gain > 0:
        raise UserError("method.gain: given pairs have no reward gap; want 0, or online: true")


def calls(options: Options, sampling: Sampling, passes: int) -> dict[str, int]:
    """Rows through the denoiser per step; of drawing, ``passes`` of them a sample (guidance).

    Every gradient step, both of a pair pass the policy and the reference once. An upper bound:
    online, prompts whose images all tie are left out.
    """
    candidates = options.prompts_per_step * options.images_per_prompt if options.online else 0
    images = 2 * options.prompts_per_step
    return {
        "forwards": candidates * sampling.num_inference_steps * passes
        + 2 * images * options.gradient_steps,
        "backwards": images * options.gradient_steps,
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
    """Take pairs, or sample -> score -> compare; noise both of each alike, and learn. P pairs, of d
    latent elements.
    """
    if options.refresh is not None and state.step > 0 and state.step % options.refresh == 0:
        model.refresh_reference()

    # 1. Sample, 2. score and 3. compare, unless the pairs are given.
    if options.online:
        pairs, metrics = drawn(state, batch, rewards, options, sampling)
    else:
        pairs = given(state, batch)
        metrics = {}
    informative = pairs.gap > 0
    total = int(state.gather(informative).sum())  # over all processes, whose gradients add up
    size = pairs.chosen.shape[1:].numel()
    beta = options.beta * (size if options.error == "sum" else 1)  # ``squared_errors`` are means
    if state.step == 0:
        metrics |= {"beta_mean": beta, "beta_sum": beta / size}
    if total == 0:
        return metrics

    # 4. Learn: the same noise and time for both of a pair, and for policy and reference.
    for k in range(options.gradient_steps):
        generators = noise_generators(state, pairs.ids, f"/{k}" if k else "")
        seen = [pairs.chosen.new_zeros(0, 4)]
        for rows in slices(len(generators), max(state.micro_batch // 2, 1)):
            own = generators[rows]
            both = torch.cat([pairs.chosen[rows], pairs.rejected[rows]])
            t = draw_times(model, own, options.times)
            noise = draw_noise(pairs.chosen[rows], own)
            condition = drop_captions(model, pairs.condition[rows], own, options.dropout, sampling)
            with model.as_reference():
                reference = errors(state, both, noise, t, condition, sampling)
            policy = errors(state, both, noise, t, condition, sampling)
            each = gap_beta(beta, pairs.gap[rows], options.gain, options.gain_rate)
            if options.schedule == "derived":
                each = each * noise_share(model.process, t).to(each)
            margin = dpo_margin(policy, reference, each)
            loss = bradley_terry(
                margin, label_smoothing=options.label_smoothing, margin=options.margin
            )
            loss = loss + options.anchor * policy[0]
            state.backward((informative[rows] * loss).sum() / total)
            seen.append(
                torch.stack([loss, margin, *(policy - reference)], 1).detach()[informative[rows]]
            )
        metrics["grad_norm"] = state.update()
    loss, margin, chosen, rejected = state.gather(torch.cat(seen)).double().unbind(1)
    metrics |= {"loss": loss.mean().item(), "margin": margin.mean().item()}
    metrics["accuracy"] = (margin.sign().mean().item() + 1) / 2
    return metrics | {
        "chosen_change": chosen.mean().item(),
        "rejected_change": rejected.mean().item(),
    }


def given(state: TrainState, batch: Prompts) -> Compared:
    """Latents of pairs that are there already, encoded a call's worth at a time."""
    assert isinstance(batch, Pairs)
    model = state.model
    parts = slices(len(batch), state.micro_batch)
    with torch.no_grad():
        chosen, rejected = (
            torch.cat([model.encode(side[rows].to(model.device)) for rows in parts])
            for side in (batch.chosen, batch.rejected)
        )
    return Compared(
        batch.condition, batch.ids, chosen, rejected, torch.ones(len(batch), device=chosen.device)
    )


def drawn(
    state: TrainState, batch: Prompts, rewards: RewardSet, options: Options, sampling: Sampling
) -> tuple[Compared, dict[str, float]]:
    """The best against the worst of each prompt's G images under the current policy, and what the
    rewards said.

    Of trajectories nothing but the ends of these two is kept.
    """
    group = options.images_per_prompt
    condition, texts, generators = siblings(state, batch, group)

    # 1. Sample with the current policy, as sampling says, guidance included.
    samples, media = draw(state, condition, generators, sampling, "mean")

    # 2. Score; higher is better.
    with torch.no_grad():
        scores = rewards(media, texts)
    metrics = {
        f"reward/{name}": state.gather(value).mean().item() for name, value in scores.heads.items()
    }
    combined = state.gather(scores.combined)
    metrics |= {"reward/combined": combined.mean().item(), "reward/std": combined.std().item()}
    metrics["zero_variance"] = (spread(combined, group) == 0).double().mean().item()

    # 3. Compare: prompts whose images all tie have no pair.
    reward = scores.combined.to(samples.latents.device)
    latents = samples.final
    gap, best, worst = spread(reward, group), *extremes(reward, group)
    kept = [place for place, value in enumerate(gap.tolist()) if state.needs(value > 0)]
    ids = [batch.ids[place] for place in kept]
    return Compared(
        batch.condition[kept], ids, latents[best[kept]], latents[worst[kept]], gap[kept]
    ), metrics


def spread(reward: Tensor, group: int) -> Tensor:
    """The largest minus the smallest of every ``group`` siblings, (B,) -> (B / group,)."""
    each = reward.view(-1, group)
    return each.amax(1) - each.amin(1)


def extremes(reward: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Rows of the best and of the worst of every ``group`` siblings, (B / group,) each."""
    each = reward.view(-1, group)
    first = torch.arange(0, len(reward), group, device=reward.device)
    return first + each.argmax(1), first + each.argmin(1)


def errors(
    state: TrainState,
    both: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Condition,
    sampling: Sampling,
) -> Tensor:
    """Squared errors of b better and b worse latents (2b, ...) under b noises, times and captions,
    (2, b).
    """
    places = torch.arange(len(both)) % len(noise)
    parts = [
        squared_errors(
            state.model,
            both[rows],
            noise[places[rows]],
            t[places[rows]],
            condition[places[rows]],
            sampling,
        )
        for rows in slices(len(both), state.micro_batch)
    ]
    return torch.cat(parts).view(2, -1)


def noise_share(process: Process, t: Tensor) -> Tensor:
    """|x1 - predicted x1|^2 over |target - output|^2, (B,) float64: what x1 is per unit of output,
    squared.

    (1 - t)^2 on flow models, 1 where the network predicts the noise, abar for v, abar / (1 - abar)
    for x0.
    """
    output = torch.ones(len(t), 1, dtype=torch.float64)
    return process.split(torch.zeros_like(output), output, t)[1].flatten().square()
