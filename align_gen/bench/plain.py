"""Training steps as one would write them over diffusers: no cache, no skipped call, open loops."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..losses import advantages, clipped_policy_gradient, rdp_coefficients
from ..pipelines import gaussian_log_prob

if TYPE_CHECKING:
    from ..training.setup import Session


def plain_step(session: "Session") -> None:
    """Take one step of DDPO or PRDP: draw, score, compare, learn."""
    options: Any = session.recipe.method
    sampling = session.recipe.sampling
    group = options.images_per_prompt
    batch = session.state.micro_batch
    # Prompts in the order of the file: which ones they are does not change the cost.
    lines = [
        session.data.prompts[i % len(session.data.prompts)] for i in range(options.prompts_per_step)
    ]
    texts = [text for text in lines for _ in range(group)]
    network = _Network(session, texts)
    times = session.model.times(sampling.num_inference_steps, network.latent_shape)
    chunks = [slice(i, i + batch) for i in range(0, len(texts), batch)]

    with torch.no_grad():
        # Draw: the whole step goes through every time at once, cut into micro-batches.
        x = torch.randn(len(texts), *network.latent_shape).to(session.model.device)
        latents = [x]
        old = []
        for t, s in times:
            mean, std = network.transition(x, t, s, chunks)
            x = mean + std * torch.randn_like(x)
            latents.append(x)
            old.append(gaussian_log_prob(x, mean, std) if std > 0 else None)
        media = torch.cat([session.model.decode(x[rows]).float() for rows in chunks])
        reward = session.rewards(media, texts).combined
    # Steps without noise have no density, and are not learned from.
    steps = [i for i, value in enumerate(old) if value is not None]
    log_probs_old = torch.stack([value for value in old if value is not None], 1)

    def log_prob(step: int, rows: slice) -> Tensor:
        t, s = times[step]
        mean, std = network.transition(latents[step][rows], t, s, [rows])
        return gaussian_log_prob(latents[step + 1][rows], mean, std)

    def replay() -> Tensor:
        with torch.no_grad():
            return torch.stack(
                [torch.cat([log_prob(i, rows) for rows in chunks]) for i in steps], 1
            )

    # Compare: what stays the same over all gradient steps of the round.
    parameters = session.model.parameters()
    if options.name == "ddpo":
        advantage = advantages(reward, group, options.advantage_limit)
    else:
        with session.model.as_reference():
            log_probs_ref = replay()

    # Learn: one backward pass for each micro-batch and denoising step.
    for _ in range(options.gradient_steps):
        if options.name == "prdp":
            log_probs = replay()
            coefficients = torch.zeros_like(log_probs_old)
            for start in range(0, len(texts), group):
                one = slice(start, start + group)
                terms = (log_probs[one], log_probs_old[one], log_probs_ref[one], reward[one])
                coefficients[one] = rdp_coefficients(*terms, beta=options.beta, clip=options.clip)
        for rows in chunks:
            for column, i in enumerate(steps):
                new = log_prob(i, rows)
                if options.name == "prdp":
                    loss = (coefficients[rows, column] * new).sum()
                else:
                    kept = log_probs_old[rows, column]
                    loss = clipped_policy_gradient(new, kept, advantage[rows], options.clip).mean()
                loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        session.state.optimizer.step()
        session.state.optimizer.zero_grad()


class _Network:
    """The pipeline's denoiser with classifier-free guidance.

    Texts are encoded here, as a pipeline's call does.
    """

    def __init__(self, session: "Session", texts: list[str]):
        self.model = session.model
        self.scale = session.recipe.sampling.guidance_scale
        pipeline = self.model.pipeline
        self.flow = hasattr(pipeline, "transformer")
        with torch.no_grad():
            if self.flow:
                long = {"max_sequence_length": 77, "do_classifier_free_guidance": False}
                self.text, _, self.pooled, _ = pipeline.encode_prompt(texts, None, None, **long)
                self.nothing, _, self.no_pooled, _ = pipeline.encode_prompt(
                    [""] * len(texts), None, None, **long
                )
            else:
                self.text, self.nothing = pipeline.encode_prompt(texts, self.model.device, 1, True)
        sampling = session.recipe.sampling
        self.latent_shape = self.model.latent_shape(sampling.height or 64, sampling.width or 64)

    def transition(self, x: Tensor, t: Tensor, s: Tensor, chunks: list[slice]) -> Any:
        """Mean and std of the next latents; ``chunks`` are the rows of x among the texts."""
        process = self.model.process
        parts = []
        start = 0
        for rows in chunks:
            count = len(self.text[rows])
            parts.append(self._guided(x[start : start + count], t, rows))
            start += count
        return process.transition(x, torch.cat(parts), t, s, 1.0)

    def _guided(self, x: Tensor, t: Tensor, rows: slice) -> Tensor:
        both = torch.cat([x, x])
        text = torch.cat([self.nothing[rows], self.text[rows]])
        if self.flow:
            pooled = torch.cat([self.no_pooled[rows], self.pooled[rows]])
            time = (1000 * t).float().expand(len(both))
            output = self.model.pipeline.transformer(
                both,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=time,
                return_dict=False,
            )[0]
        else:
            output = self.model.pipeline.unet(
                both, t, encoder_hidden_states=text, return_dict=False
            )[0]
        without, with_text = output.chunk(2)
        return without + self.scale * (with_text - without)
