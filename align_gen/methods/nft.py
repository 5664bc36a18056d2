"""NFT: learn to denoise good pictures and to turn away from bad ones, with any sampler
(DiffusionNFT, Zheng et al., arXiv 2509.16117).

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
from ..reward_heads import RewardSet
from .base import Cost
from .batches import Prompts, Sampling
from .denoising import DenoisingOptions, Noised, mean_square, noised
from .state import TrainState, reward_metrics
from .trajectories import Drawn, draw


class Options(DenoisingOptions):
    """Optimality of a sample is 1/2 + A / (2 advantage_limit), A its advantage within a group."""

    name: Literal["nft"] = "nft"
    images_per_prompt: int = Field(
        8, ge=2, description="Images drawn of each prompt, which are compared with each other."
    )
    prompts_per_step: int = Field(8, ge=1, description="Prompts of a step, over all processes.")
    gradient_steps: int = Field(
        1,
        ge=1,
        description="Optimizer steps taken on the images of one step; all use the same noise.",
    )
    times_per_image: int = Field(4, ge=1, description="How often each image is noised.")
    beta: float = Field(
        1.0,
        gt=0,
        description="The smaller, the further a round may move; at the first gradient step of "
        "old: round it only scales.",
    )
    advantage_limit: float = Field(
        5.0, gt=0, description="Largest size of an advantage, in standard deviations."
    )
    old: Literal["round", "average"] = Field(
        "round",
        description="The policy that draws and that is improved on: this round's, or the average "
        "of optim.ema, which follows slowly.",
    )
    kl: float = Field(
        0.0,
        ge=0,
        description="Weight of the squared distance between the outputs and the reference's.",
    )

    def required_keys(self) -> dict[str, str]:
        return {"optim.ema": "method.old: average"} if self.old == "average" else {}

    def cost(self, sampling: Sampling, rows_per_sample: int) -> Cost:
        """Images are drawn with guidance, and learned from without.

        The old policy's outputs are those of the first gradient step, or a pass of their own for
        the average. An upper bound: prompts whose images all tie are not learned from.
        """
        drawn = self.images * sampling.num_inference_steps * rows_per_sample
        rows = self.images * self.times_per_image
        passes = self.gradient_steps * (2 if self.kl else 1) + (self.old == "average")
        return Cost(drawn + rows * passes, rows * self.gradient_steps, self.images)


def step(
    state: TrainState, batch: Prompts, rewards: RewardSet, options: Options, sampling: Sampling
) -> dict[str, float]:
    """Sample -> score -> compare -> learn; one round.

    G images of a prompt stay together: B = prompts * G, siblings adjacent; each is noised N times.
    """
    model = state.model
    group = options.images_per_prompt
    old_policy = state.averaged if options.old == "average" else nullcontext

    # 1. Sample with the old policy; of a trajectory only its end is wanted.
    with old_policy():
        drawn = draw(state, batch, group, sampling)
    latents = drawn.final.clone()

    # 2. Score; higher is better. 3. Compare siblings.
    with torch.no_grad():
        scores = rewards(drawn.media, drawn.texts)
    advantage = advantages(scores.combined.to(latents.device), group, options.advantage_limit)
    good = optimality(advantage, options.advantage_limit)
    metrics = reward_metrics(state, scores, group)

    # 4. Learn from each noising of a sample. Noise is a function of the sample, so that it can be
    # had again, and need not be stored.
    useful = state.rows_to_learn(advantage != 0)
    parts = [
        (repeat, useful[part])
        for repeat in range(options.times_per_image)
        for part in state.slices(len(useful))
    ]
    terms = len(state.gather(advantage)) * options.times_per_image

    def noise(repeat: int, rows: Tensor) -> Noised:
        return noise_rows(drawn, latents, rows, options, f"/{repeat}")

    # What the old policy says is stored: after the first update it cannot be asked any more.
    outputs_old = list[Tensor]()
    if options.old == "average":
        with old_policy(), torch.no_grad():
            outputs_old = [noise(*part).output(model) for part in parts]
    for _ in range(options.gradient_steps):
        losses = [good.new_zeros(0)]
        moves = [good.new_zeros(0)]
        distances = [good.new_zeros(0)]
        # The same noise again in every gradient step, so that outputs differ by the update alone.
        for number, (repeat, rows) in enumerate(parts):
            given = noise(repeat, rows)
            output = given.output(model)
            if number == len(outputs_old):  # the round's own, before its first update
                outputs_old.append(output.detach())
            loss = nft_loss(output, outputs_old[number], given.target, good[rows], options.beta)
            if options.kl > 0:
                with model.as_reference():
                    reference = given.output(model)
                distance = mean_square(output, reference)
                loss = loss + options.kl * distance
                distances.append(distance.detach())
            # Divided by the terms of all processes: micro-batches then add up to one mean.
            state.backward(loss.sum() / terms)
            losses.append(loss.detach())
            moves.append(mean_square(output.detach(), outputs_old[number]))
        metrics["grad_norm"] = state.update()
        metrics["loss"] = state.gather(torch.cat(losses)).sum().item() / terms
        metrics["output_change"] = state.gather(torch.cat(moves)).sum().item() / terms
    if options.kl > 0:
        metrics["kl"] = state.gather(torch.cat(distances)).sum().item() / terms
    return metrics


def noise_rows(
    drawn: Drawn, latents: Tensor, rows: Tensor, options: Options, repeat: str
) -> Noised:
    """Some of the drawn samples noised to random times; the same whenever it is asked."""
    ids = [drawn.ids[row] for row in rows.tolist()]
    return noised(
        drawn.state, latents[rows], drawn.condition[rows], ids, options, drawn.sampling, repeat
    )
