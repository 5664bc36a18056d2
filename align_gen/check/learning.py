"""Laws of a model that learns: its LoRA, its gradients, its memory, and rewards' gradients."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Generator, Tensor

from ..peak_memory import PeakMemory, size_of
from ..pipelines import LoraOptions
from .findings import Finding, above, below, difference
from .subject import PROMPTS, STEPS, Subject


def lora(subject: Subject) -> Iterator[Finding]:
    """A LoRA finds layers, is all that learns, and survives export and reload; then it is gone."""
    model = subject.model
    base = subject.pictures()
    model.train_lora(LoraOptions(rank=2))
    try:
        parts = model.trainable.values()
        names = [name for part in parts for name, _ in part.named_parameters()]
        layers = sum(name.endswith("lora_A.policy.weight") for name in names)
        yield above("LoRA layers", layers, 0)

        # A fresh LoRA changes nothing: half of its matrices are zero. Noise makes it visible.
        with torch.no_grad():
            noise = Generator().manual_seed(1)
            for parameter in model.parameters():
                change = torch.randn(parameter.shape, generator=noise).to(parameter)
                parameter.add_(change, alpha=0.1)
        yield from gradients(subject)
        ours = subject.pictures()
        yield above("LoRA changes pictures", difference(ours, base), subject.tolerance)

        # Away with it, and back from the file: here, and in diffusers without this package.
        with tempfile.TemporaryDirectory() as folder:
            model.export(Path(folder))
            model.restore_weights()
            without = difference(subject.pictures(), base)
            yield below("without LoRA = before", without, subject.tolerance)
            model.reload(Path(folder))
            reloaded = difference(subject.pictures(), ours)
            yield below("reloaded = exported", reloaded, subject.tolerance)
            in_diffusers = difference(subject.by_diffusers(), ours)
            yield below("in diffusers = exported", in_diffusers, subject.tolerance)
    finally:
        model.drop_lora()


def gradients(subject: Subject) -> Iterator[Finding]:
    """Gradients at the first and at the last step: Wan 2.2 has a separate network for each."""
    model = subject.model
    condition = subject.condition()
    x = subject.latents().to(model.device)
    for t in model.times(STEPS, condition.latent_shape)[[0, -1], 0]:
        output = model.predict(x, t, condition, subject.guidance())
        output.float().square().mean().backward()

    # Gradients may reach what is trained and nothing else, a text encoder for one.
    trained = {id(parameter) for parameter in model.parameters()}
    components = model.components().values()
    everything = [p for part in components for p in part.parameters()]
    stray = sum(p.grad is not None and id(p) not in trained for p in everything)
    missing = sum(not _is_finite(p.grad) for p in model.parameters())
    yield below("gradients outside of what is trained", stray, 0)
    yield below("trained tensors without a finite gradient", missing, 0)
    for parameter in everything:
        parameter.grad = None


def _is_finite(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.isfinite().all())


def memory(subject: Subject) -> Iterator[Finding]:
    """Memory of the weights, and of one LoRA training step on two rows with guidance on top."""
    model = subject.model
    condition = subject.condition()
    weights = size_of(model.components().values()) / 2**20
    # For information: there is no limit that all machines share.
    yield Finding("memory, weights (MiB)", True, weights, "any")
    model.train_lora(LoraOptions(rank=2))
    try:
        x = subject.latents().to(model.device)
        t = model.times(STEPS, condition.latent_shape)[0, 0]
        with PeakMemory() as step:
            output = model.predict(x, t, condition, subject.guidance())
            output.float().square().mean().backward()
        name = "memory, a training step of two rows (MiB)"
        yield Finding(name, step.peak > 0, step.peak / 2**20, "any")
    finally:
        for parameter in model.parameters():
            parameter.grad = None
        model.drop_lora()


def reward(subject: Subject) -> Iterator[Finding]:
    """Rewards of the model's own pictures are finite, and so are gradients of differentiable ones.

    Nothing is found where the subject has no rewards.
    """
    if subject.rewards is None:
        return
    # From latents on, as methods that backpropagate a reward do.
    latents = subject.rollout(subject.condition()).final.requires_grad_()
    media = subject.model.decode(latents).float()
    scores = subject.rewards(media, PROMPTS)
    finite = bool(scores.combined.isfinite().all())
    yield Finding("rewards finite", finite, scores.combined.mean().item(), "finite")
    if scores.combined.requires_grad:
        (gradient,) = torch.autograd.grad(scores.combined.sum(), latents)
        size = gradient.norm().item()
        yield Finding("reward gradient", math.isfinite(size) and size > 0, size, "finite, not 0")
