"""DPO: learn from pairs of pictures of which one is better (Diffusion-DPO, Wallace et al., CVPR
2024, arXiv 2311.12908; Flow-DPO, arXiv 2501.13918).

Of two pictures, noised alike, the policy shall denoise the better one better than the reference
does, and the worse one worse. The pairs are given, or, online, drawn from the policy and ordered by
the rewards.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..losses import bradley_terry, dpo_margin, gap_beta
from ..pipelines import Condition
from ..pipelines.process import Process
from ..reward_heads import RewardSet
from .base import Cost
from .batches import Kind, Pairs, Prompts, Sampling
from .denoising import DenoisingOptions, noised
from .state import TrainState, reward_metrics, slices
from .trajectories import draw


class Options(DenoisingOptions):
    """The errors that are compared are of what the network outputs: noise, v, x0 or a velocity.

    Published values of beta, with ``error`` mean: 2000 for Stable Diffusion 1.5 and 5000 for SDXL
    (Diffusion-DPO), 100 for Stable Diffusion 3 (Flow-GRPO's code).

    The derivation wants errors of the noise, which is ``schedule`` derived: on flow models
    beta (1 - t)^2. It does harm there, as little then holds the noisy times: VBench 80.90 against
    83.41 of the constant beta, and 83.19 of the untrained model (arXiv 2501.13918, Table 3).

    No captions are dropped by default: a preference was given for a caption, and guidance takes the
    unconditional branch off, so that what both branches learn alike is not amplified.
    """

    name: Literal["dpo"] = "dpo"
    images_per_prompt: int = Field(
        2,
        ge=2,
        description="Online: images drawn of each prompt, of which the best and the worst are "
        "compared. A given pair has 2.",
    )
    prompts_per_step: int = Field(16, ge=1, description="Pairs of a step, over all processes.")
    online: bool = Field(
        False, description="Draw pairs from the policy, in place of those of data.pairs."
    )
    gradient_steps: int = Field(
        1, ge=1, description="Optimizer steps taken on the pairs of one step, each with new noise."
    )
    beta: float = Field(
        2000.0,
        gt=0,
        description="How strongly a pair holds to the reference; in units of error.",
    )
    error: Literal["mean", "sum"] = Field(
        "mean",
        description="Errors are the mean over latent elements, as published code has it, or their "
        "sum.",
    )
    schedule: Literal["constant", "derived"] = Field(
        "constant",
        description="Weigh all times alike, or as errors of the noise, as the derivation wants.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of the labels that are taken to be wrong."
    )
    margin: float = Field(0.0, ge=0, description="How far the better picture should lead.")
    anchor: float = Field(0.0, ge=0, description="Weight of plain denoising of the better picture.")
    gain: float = Field(
        0.0,
        ge=0,
        description="Online: beta grows by up to this share with the reward gap, at gain_rate.",
    )
    gain_rate: float = Field(0.5, gt=0, description="How fast beta grows; per unit of reward.")
    refresh: int | None = Field(
        None,
        ge=1,
        description="Every so many steps the reference becomes what the policy is then, of a LoRA "
        "alone: margins go back to zero, and the policy may go further. null: never.",
    )
    dropout: float = Field(0.0, ge=0, le=1, description="Share of captions left empty.")

    def batch_kind(self) -> Kind:
        return "prompts" if self.online else "pairs"

    def required_keys(self) -> dict[str, str]:
        return {"model.lora": "method.refresh"} if self.refresh is not None else {}

    def require(self, sampling: Sampling) -> None:
        if not self.online and self.images_per_prompt != 2:
            raise ValueError(
                f"method.images_per_prompt: a given pair has 2, got {self.images_per_prompt}; "
                "or online: true"
            )
        if not self.online and self.gain > 0:
            raise ValueError("method.gain: given pairs have no reward gap; want 0, or online: true")

    def cost(self, sampling: Sampling, rows_per_sample: int) -> Cost:
        """Every gradient step, both of a pair pass the policy and the reference once.

        An upper bound: online, prompts whose images all tie are left out.
        """
        candidates = self.images if self.online else 0
        drawn = candidates * sampling.num_inference_steps * rows_per_sample
        images = 2 * self.prompts_per_step
        learned = images * self.gradient_steps
        return Cost(drawn + 2 * learned, learned, images)


class Compared(NamedTuple):
    """P pairs of pictures of one prompt each.

    A pair with no gap is none: it is here only so that all processes call a sharded network equally
    often.

    Attributes:
        condition: encoded prompts for the denoiser, P rows.
        ids: places in the run's whole stream of pairs; they seed noise.
        chosen: clean latents of the better pictures, (P, *latent).
        rejected: of the worse ones.
        gap: the reward between them, (P,); 1 where pairs are given.
    """

    condition: Condition
    ids: Sequence[int]
    chosen: Tensor
    rejected: Tensor
    gap: Tensor


def step(
    state: TrainState, batch: Prompts, rewards: RewardSet, options: Options, sampling: Sampling
) -> dict[str, float]:
    """Take pairs, or sample -> score -> compare; noise both of each alike, and learn.

    P pairs, of d latent elements.
    """
    model = state.model
    if options.refresh is not None and state.step > 0 and state.step % options.refresh == 0:
        model.refresh_reference()

    # 1. Sample, 2. score and 3. compare, unless the pairs are given.
    if options.online:
        pairs, metrics = drawn_pairs(state, batch, rewards, options, sampling)
    else:
        pairs = given_pairs(state, batch)
        metrics = {}
    informative = pairs.gap > 0
    # Over all processes, whose gradients add up.
    total = int(state.gather(informative).sum())
    # Errors below are means over the latent elements.
    size = pairs.chosen.shape[1:].numel()
    beta = options.beta * (size if options.error == "sum" else 1)
    if state.step == 0:
        metrics |= {"beta_mean": beta, "beta_sum": beta / size}
    if total == 0:
        return metrics

    # 4. Learn: the same noise and time for both of a pair, and for policy and reference.
    for k in range(options.gradient_steps):
        seen = [pairs.chosen.new_zeros(0, 4)]
        for rows in slices(len(pairs.ids), max(state.micro_batch // 2, 1)):
            both = torch.cat([pairs.chosen[rows], pairs.rejected[rows]])
            # One condition a pair: ``noised`` repeats it for the second picture.
            condition = pairs.condition[rows]
            ids = pairs.ids[rows]
            given = noised(state, both, condition, ids, options, sampling, f"/{k}" if k else "")
            parts = [given[part] for part in state.slices(len(given))]
            with model.as_reference():
                reference = torch.cat([part.squared_errors(model) for part in parts]).view(2, -1)
            policy = torch.cat([part.squared_errors(model) for part in parts]).view(2, -1)
            each = gap_beta(beta, pairs.gap[rows], options.gain, options.gain_rate)
            if options.schedule == "derived":
                each = each * noise_share(model.process, given.t[: len(ids)]).to(each)
            margin = dpo_margin(policy, reference, each)
            loss = bradley_terry(
                margin, label_smoothing=options.label_smoothing, margin=options.margin
            )
            loss = loss + options.anchor * policy[0]
            # Pairs without a gap are multiplied away; they only keep the processes in step.
            state.backward((informative[rows] * loss).sum() / total)
            figures = torch.stack([loss, margin, *(policy - reference)], 1).detach()
            seen.append(figures[informative[rows]])
        metrics["grad_norm"] = state.update()
    loss, margin, chosen, rejected = state.gather(torch.cat(seen)).double().unbind(1)
    return metrics | {
        "loss": loss.mean().item(),
        "margin": margin.mean().item(),
        "accuracy": (margin.sign().mean().item() + 1) / 2,
        "chosen_change": chosen.mean().item(),
        "rejected_change": rejected.mean().item(),
    }


def given_pairs(state: TrainState, batch: Prompts) -> Compared:
    """Latents of pairs that are there already, encoded a micro-batch at a time."""
    assert isinstance(batch, Pairs)
    model = state.model
    latents = []
    with torch.no_grad():
        for side in (batch.chosen, batch.rejected):
            parts = [model.encode(side[rows].to(model.device)) for rows in state.slices(len(batch))]
            latents.append(torch.cat(parts))
    chosen, rejected = latents
    gap = torch.ones(len(batch), device=chosen.device)
    return Compared(batch.condition, batch.ids, chosen, rejected, gap)


def drawn_pairs(
    state: TrainState, batch: Prompts, rewards: RewardSet, options: Options, sampling: Sampling
) -> tuple[Compared, dict[str, float]]:
    """The best against the worst of each prompt's G images under the current policy, and metrics.

    Of trajectories nothing but the ends of these two is kept.
    """
    group = options.images_per_prompt

    # 1. Sample with the current policy, as sampling says, guidance included.
    drawn = draw(state, batch, group, sampling)

    # 2. Score; higher is better.
    with torch.no_grad():
        scores = rewards(drawn.media, drawn.texts)
    metrics = reward_metrics(state, scores, group)

    # 3. Compare: prompts whose images all tie have no pair.
    reward = scores.combined.to(drawn.final.device)
    gap = spread(reward, group)
    best, worst = best_and_worst(reward, group)
    useful = state.rows_to_learn(gap > 0)
    pairs = Compared(
        batch.condition[useful],
        [batch.ids[row] for row in useful.tolist()],
        drawn.final[best[useful]],
        drawn.final[worst[useful]],
        gap[useful],
    )
    return pairs, metrics


def spread(reward: Tensor, group: int) -> Tensor:
    """The largest minus the smallest of every ``group`` siblings, (B,) -> (B / group,)."""
    each = reward.view(-1, group)
    return each.amax(1) - each.amin(1)


def best_and_worst(reward: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Rows of the best and of the worst of every ``group`` siblings, (B / group,) each."""
    each = reward.view(-1, group)
    first = torch.arange(0, len(reward), group, device=reward.device)
    return first + each.argmax(1), first + each.argmin(1)


def noise_share(process: Process, t: Tensor) -> Tensor:
    """|x1 - predicted x1|^2 over |target - output|^2, (B,) float64.

    What x1 is per unit of output, squared: (1 - t)^2 on flow models, 1 where the network predicts
    the noise, abar for v, abar / (1 - abar) for x0.
    """
    output = torch.ones(len(t), 1, dtype=torch.float64)
    _, x1 = process.split(torch.zeros_like(output), output, t)
    return x1.flatten().square()
