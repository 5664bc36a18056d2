"""The law that only a trained network can keep: it denoises."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ..pipelines import Condition, rollout
from .findings import Finding, below
from .subject import Subject


def denoises(subject: Subject) -> Iterator[Finding]:
    """The network's guess of clean latents beats the best linear guess from the noisy ones.

    An untrained network fails, and so does a trained one whose files are wrong. Latents are those
    of the model's own samples and of real pictures: only these have another size where the VAE's
    scale is wrong.
    """
    model = subject.model
    condition = subject.condition()
    own = rollout(
        model,
        condition,
        num_inference_steps=20,
        eta=0.0,
        guidance_scale=subject.guidance(),
        latents=subject.latents(),
    ).final
    yield from _denoises(subject, "own samples", own, condition)
    # Beside a real picture, a source picture or a control map would have to fit.
    if not model.required_inputs:
        real = subject.real_pictures()
        with torch.no_grad():
            latents = model.encode(real.to(model.device))
        yield from _denoises(subject, "real pictures", latents, subject.condition([""] * len(real)))


def _denoises(
    subject: Subject, name: str, clean: Tensor, condition: Condition
) -> Iterator[Finding]:
    """Errors of the network over the linear guess's, on clean latents (N, …), at two noise levels.

    With a little noise and with much, so that no prediction type passes for another.
    """
    model = subject.model
    process = model.process
    variance = clean.float().var().item()
    # One noise for both levels, so that their figures differ by the level alone.
    noise = torch.randn(clean.shape, generator=Generator().manual_seed(1)).to(clean)

    # From the sampler's own grid: other times may never have been trained.
    times = model.times(20, condition.latent_shape)[:, 0]
    alphas, sigmas = process.coefficients(times)
    shares = alphas**2 / (alphas**2 + sigmas**2)  # of the signal in the noisy latents
    for amount, share in (("much", 0.2), ("a little", 0.9)):
        step = int((shares - share).abs().argmin())
        t = times[step]
        alpha = alphas[step].item()
        sigma = sigmas[step].item()
        noisy = process.add_noise(clean, noise, t)
        with torch.no_grad():
            output = model.predict(noisy, t, condition, subject.guidance(1.0))
            x0, _ = process.split(noisy, output, t)
        # The Wiener filter of latents with this variance.
        power = alpha**2 * variance + sigma**2
        linear = noisy * alpha * variance / power
        ours = (x0.float() - clean.float()).square().mean().item()
        guess = (linear.float() - clean.float()).square().mean().item()
        yield below(f"denoises {name}, {amount} noise: error / linear guess's", ours / guess, 0.75)
