"""Flow-GRPO: group-relative policy gradients on single denoising steps (Liu et al. 2025, arXiv
2505.05470).

DDPO's clipped ratio, with a picture held against its siblings and a price on leaving the reference.
On flow models ``sampling.flow_sde`` is the paper's own sampler; any model with stochastic steps
will do.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import UserError
from ..losses import advantages, clipped_policy_gradient, gaussian_kl
from ..pipelines import Condition, Model, Rollout, gaussian_log_prob
from ..pipelines.seeding import generator
from ..reward_heads import RewardSet
from ..strict import Strict
from .batches import Kind, Prompts, Sampling
from .state import TrainState
from .trajectories import draw, siblings, transitions


class Options(Strict):
    """clip and kl are in the units of ``log_prob``: mean over latent elements, as published code
    has it, or sum.

    ``std``: divide a prompt's advantages by the deviation among its own images, or that of all
    images of a step, as published recipes do. ``kl``: weight of the divergence from the reference,
    step by step; the reference then runs along. ``window``: learn only from so many consecutive
    steps, drawn anew each round; the others stay stochastic.
    """

    name: Literal["grpo"] = "grpo"
    images_per_prompt: int = Field(8, ge=2)
    prompts_per_step: int = Field(8, ge=1)
    gradient_steps: int = Field(1, ge=1)
    clip: float = Field(1e-4, gt=0)
    advantage_limit: float = Field(5.0, gt=0)
    std: Literal["group", "step"] = "group"
    kl: float = Field(0.0, ge=0)
    window: int | None = Field(None, ge=1)
    log_prob: Literal["mean", "sum"] = "mean"


def kind(options: Options) -> Kind:
    """What a step's batch is."""
    return "prompts"


def check(options: Options, sampling: Sampling) -> None:
    """What no single key shows: UserError when these settings cannot learn."""
    if sampling.eta == 0:
        raise UserError(
            "sampling.eta: 0 leaves no stochastic step, and grpo needs log-probabilities; want eta > 0"
        )
    if options.window is not None and options.window > sampling.num_inference_steps:
        steps = sampling.num_inference_steps
        raise UserError(
            f"method.window: {options.window} is more than sampling.num_inference_steps, {steps}"
        )


def calls(options: Options, sampling: Sampling, passes: int) -> dict[str, int]:
    """Rows through the denoiser per step, ``passes`` of them a sample (guidance): the floor of this
    algorithm.

    All images are drawn; each gradient step learns from the window of each, forward and backward,
    and with ``kl`` the reference sees it too. An upper bound: steps with std 0 are not learned
    from, nor, without ``kl``, are ties.
    """
    images = options.prompts_per_step * options.images_per_prompt
    steps = sampling.num_inference_steps
    learned = images * passes * (options.window or steps) * options.gradient_steps
    drawn = images * passes * steps
    return {
        "forwards": drawn + learned * (2 if options.kl else 1),
        "backwards": learned,
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
    """Sample -> score -> compare -> learn; one on-policy round.

    G images of a prompt stay together: B = prompts * G, siblings adjacent.
    """
    group = options.images_per_prompt
    condition, texts, generators = siblings(state, batch, group)

    # 1. Sample with the current policy, keeping every latent.
    samples, media = draw(state, condition, generators, sampling, options.log_prob)

    # 2. Score; higher is better. 3. Compare siblings.
    with torch.no_grad():
        scores = rewards(media, texts)
    combined = state.gather(scores.combined)
    std = combined.std(correction=0) if options.std == "step" else None
    advantage = advantages(scores.combined, group, options.advantage_limit, std).to(
        samples.log_probs.device
    )
    everyone = state.gather(advantage)
    metrics = {
        f"reward/{name}": state.gather(value).mean().item() for name, value in scores.heads.items()
    }
    metrics |= {"reward/combined": combined.mean().item(), "reward/std": combined.std().item()}
    metrics["zero_variance"] = (everyone.view(-1, group) == 0).all(1).double().mean().item()

    # 4. Learn: each kept transition of the window again, under the moving policy; memory is that of
    # one call.
    window = learned_steps(state, len(samples.stochastic), options.window)
    told = (
        torch.tensor([state.needs(value != 0 or options.kl > 0) for value in advantage.tolist()])
        .nonzero()
        .flatten()
    )
    terms = len(everyone) * len(window)
    old = samples.log_probs
    for _ in range(options.gradient_steps):
        losses, changes, divergences = ([advantage.new_zeros(0)] for _ in range(3))
        for places, offsets in transitions(len(told), len(window), state.micro_batch):
            rows = told[places]
            columns = window[offsets]
            log_probs, mean, std = transition(
                model, samples, rows, columns, condition, sampling, options.log_prob
            )
            loss = clipped_policy_gradient(
                log_probs, old[rows, columns], advantage[rows], options.clip
            )
            if options.kl > 0:
                with model.as_reference():
                    _, reference, _ = transition(
                        model, samples, rows, columns, condition, sampling, options.log_prob
                    )
                divergence = gaussian_kl(mean, reference, std, options.log_prob)
                loss = loss + options.kl * divergence
                divergences.append(divergence.detach())
            state.backward(loss.sum() / terms)
            losses.append(loss.detach())
            changes.append((log_probs.detach() - old[rows, columns]).abs())
        metrics["grad_norm"] = state.update()
        change = state.gather(torch.cat(changes))
        metrics["loss"] = state.gather(torch.cat(losses)).sum().item() / terms
        metrics["clip_fraction"] = (change.expm1() > options.clip).sum().item() / terms
        metrics["log_prob_change"] = change.sum().item() / terms
    if options.kl > 0:
        metrics["kl"] = state.gather(torch.cat(divergences)).mean().item()
    return metrics


def learned_steps(state: TrainState, stochastic: int, window: int | None) -> Tensor:
    """Which of the stochastic steps this round learns from: all, or consecutive ones, the same in
    every process.
    """
    count = min(window or stochastic, stochastic)
    starts = torch.randint(
        stochastic - count + 1, (), generator=generator(state.seed, "window", state.step)
    )
    return torch.arange(count) + starts


def transition(
    model: Model,
    samples: Rollout,
    rows: Tensor,
    columns: Tensor,
    condition: Condition,
    sampling: Sampling,
    reduction: Literal["mean", "sum"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Of some kept transitions under the model as it is now, one call: log p(x_s | x_t) (b,), its
    mean and its std.
    """
    steps = samples.stochastic[columns]
    t, s = samples.times[steps].unbind(-1)
    x_t = samples.latents[rows, steps]
    x_s = samples.latents[rows, steps + 1]
    output = model.predict(x_t, t, condition[rows], sampling.guidance_scale)
    mean, std = model.process.transition(x_t, output, t, s, sampling.eta)
    return gaussian_log_prob(x_s, mean, std, reduction), mean, std
