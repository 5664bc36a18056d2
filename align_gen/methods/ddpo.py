"""DDPO: policy gradients with clipped importance ratios on single denoising steps (Black et al.,
arXiv 2305.13301).

Every step of a trajectory is an action whose advantage is the finished picture's; there is no KL
term, so the reward alone says where this ends: watch a held-out one.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import UserError
from ..losses import advantages, clipped_policy_gradient, history_advantages, remembered
from ..pipelines import Model
from ..reward_heads import RewardSet
from ..strict import Strict
from .batches import Kind, Prompts, Sampling
from .state import TrainState
from .trajectories import draw, log_probs_of, siblings, transitions


class Options(Strict):
    """clip is in the units of ``log_prob``: mean over latent elements, as published code has it, or
    sum.

    Advantages are normalised among the images of one prompt, and held within ``advantage_limit``.
    With ``history``, among the prompt's latest so many rewards, those of earlier steps too, as
    published; a prompt with fewer than ``min_count`` of them is held against all images of the
    step. ``keep_graph`` learns from the very calls that drew the pictures, which saves a third of
    the time; memory then grows with the denoising steps and the images of a step, and it can be
    done for one gradient step only.
    """

    name: Literal["ddpo"] = "ddpo"
    images_per_prompt: int = Field(8, ge=1)
    prompts_per_step: int = Field(8, ge=1)
    gradient_steps: int = Field(1, ge=1)
    clip: float = Field(1e-4, gt=0)
    advantage_limit: float = Field(5.0, gt=0)
    log_prob: Literal["mean", "sum"] = "mean"
    history: int | None = Field(None, ge=2)
    min_count: int = Field(16, ge=2)
    keep_graph: bool = False


def kind(options: Options) -> Kind:
    """What a step's batch is."""
    return "prompts"


def check(options: Options, sampling: Sampling) -> None:
    """What no single key shows: UserError when these settings cannot learn."""
    if sampling.eta == 0:
        raise UserError(
            "sampling.eta: 0 leaves no stochastic step, and ddpo needs log-probabilities; want eta > 0"
        )
    if options.images_per_prompt == 1 and (
        options.history is None or options.prompts_per_step == 1
    ):
        raise UserError(
            "method.images_per_prompt: 1 has nothing to be compared with; want more, or method.history"
        )
    if options.history is not None and options.history < options.min_count:
        raise UserError(
            f"method.history: {options.history} never holds method.min_count, {options.min_count}"
        )
    if options.keep_graph and options.gradient_steps > 1:
        raise UserError("method.keep_graph: the pictures are drawn once, so want gradient_steps 1")


def calls(options: Options, sampling: Sampling, passes: int) -> dict[str, int]:
    """Rows through the denoiser per step, ``passes`` of them a sample (guidance): the floor of this
    algorithm.

    All images are drawn, and learned from once every gradient step, or while they are drawn. An
    upper bound: steps with std 0 are not learned from, nor are prompts whose images all tie.
    """
    images = options.prompts_per_step * options.images_per_prompt
    each = sampling.num_inference_steps * passes * images
    return {
        "forwards": each * (1 if options.keep_graph else 1 + options.gradient_steps),
        "backwards": each * options.gradient_steps,
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

    G images of a prompt stay together: B = prompts * G, S stochastic steps, siblings adjacent.
    """
    group = options.images_per_prompt
    condition, texts, generators = siblings(state, batch, group)

    # 1. Sample with the current policy, keeping every latent.
    samples, media = draw(
        state, condition, generators, sampling, options.log_prob, graph=options.keep_graph
    )

    # 2. Score; higher is better. 3. Compare siblings, or with what this prompt had before.
    with torch.no_grad():
        scores = rewards(media, texts)
    combined = state.gather(scores.combined)
    advantage = compare(state, texts, scores.combined, combined, options).to(
        samples.log_probs.device
    )
    everyone = state.gather(advantage)
    metrics = {
        f"reward/{name}": state.gather(value).mean().item() for name, value in scores.heads.items()
    }
    metrics |= {"reward/combined": combined.mean().item(), "reward/std": combined.std().item()}
    metrics["zero_variance"] = (everyone.view(-1, group) == 0).all(1).double().mean().item()

    # 4. Learn: each kept transition again, under the moving policy; memory is that of one call.
    steps = len(samples.stochastic)
    needed = [state.needs(value != 0) for value in advantage.tolist()]
    told = torch.tensor(needed).nonzero().flatten()  # of the others the gradient is 0
    terms = len(everyone) * steps
    old = samples.log_probs.detach()
    for _ in range(options.gradient_steps):
        losses = [advantage.new_zeros(0)]
        changes = [advantage.new_zeros(0)]
        size = len(told) * steps if options.keep_graph else state.micro_batch
        for places, columns in transitions(len(told), steps, max(size, 1)):
            rows = told[places]
            if options.keep_graph:
                log_probs = samples.log_probs[rows, columns]
            else:
                log_probs = log_probs_of(
                    state, samples, rows, columns, condition, sampling, options.log_prob
                )
            loss = clipped_policy_gradient(
                log_probs, old[rows, columns], advantage[rows], options.clip
            )
            state.backward(loss.sum() / terms)
            losses.append(loss.detach())
            changes.append((log_probs.detach() - old[rows, columns]).abs())
        metrics["grad_norm"] = state.update()
        change = state.gather(torch.cat(changes))
        metrics["loss"] = state.gather(torch.cat(losses)).sum().item() / terms
        metrics["clip_fraction"] = (change.expm1() > options.clip).sum().item() / terms
        metrics["log_prob_change"] = change.sum().item() / terms
    return metrics


def compare(
    state: TrainState, texts: list[str], reward: Tensor, everyone: Tensor, options: Options
) -> Tensor:
    """Advantages of this process's images, (B,): among siblings, or within what is remembered of
    their prompts.
    """
    if options.history is None:
        return advantages(reward, options.images_per_prompt, options.advantage_limit)
    prompts = [text for each in state.gather_objects(texts) for text in each]
    history = remembered(state.memory.get("rewards", {}), prompts, everyone, options.history)
    state.memory["rewards"] = history  # the same in every process
    return history_advantages(
        history, texts, reward, everyone, options.min_count, options.advantage_limit
    )
