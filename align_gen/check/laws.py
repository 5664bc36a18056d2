"""The laws: what every correctly set up adapter does, measured on the model at hand.

Each law is a function of a Subject that yields Findings: what was measured, and the limit to keep.
A law that raises is a finding that failed, with the error as its figure.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import one_line
from ..pipelines import Condition, Rollout, gaussian_log_prob
from ..pipelines.attention import attention_of, force_kernel
from ..pipelines.sampling import step_log_prob
from ..pipelines.texts import NEGATIVE
from ..precision import exact_float32
from .denoising import denoises
from .findings import Finding, above, below, difference
from .learning import lora, memory, reward
from .subject import ETA, OTHERS, PROMPTS, SCALE, STEPS, Subject

# --- the laws of sampling -------------------------------------------------------------------------


def own_sampling(subject: Subject) -> Iterator[Finding]:
    """Samples with eta = 0 match diffusers, and prompts change them.

    The last shows that the encoding of texts was compared too.
    """
    # Without guidance first: a mistake in guidance shows as the second finding alone.
    ours = subject.pictures(text_guidance=1.0)
    theirs = subject.by_diffusers(text_guidance=1.0)
    plain = difference(ours, theirs)
    yield below("eta 0 = diffusers, without guidance", plain, subject.tolerance)
    ours = subject.pictures()
    theirs = subject.by_diffusers()
    yield below("eta 0 = diffusers", difference(ours, theirs), subject.tolerance)
    others = subject.pictures(prompts=OTHERS)
    yield above("texts count", difference(ours, others), subject.tolerance)


def replay(subject: Subject) -> Iterator[Finding]:
    """Log-probabilities of stored steps computed again: equal in one batch, close one by one.

    A policy gradient's clip must be ten times the noise of the latter, or it clips that noise.
    float32 weights are measured as they are and under bfloat16 autocast, which is how training in
    bf16 runs them.
    """
    condition = subject.condition()
    for name, precision, limit in subject.precisions():
        with precision, torch.no_grad():
            stored = subject.rollout(condition)
            together = _replayed(subject, stored, condition, slice(None))
            rows = [slice(i, i + 1) for i in range(len(PROMPTS))]
            apart = torch.cat([_replayed(subject, stored, condition, row) for row in rows])
        # The same batch shape runs the same kernels, so nothing may differ.
        equal = difference(together, stored.log_probs)
        yield below(f"ratio is 1 at equal batch shape, {name}", equal, 0.0)
        noise = difference(apart, stored.log_probs)
        yield below(f"replay noise, {name}", noise, limit)
        clip = f"smallest clip it allows, {name}"
        yield Finding(clip, math.isfinite(noise), 10 * noise, "10 x replay noise")


def _replayed(subject: Subject, stored: Rollout, condition: Condition, rows: slice) -> Tensor:
    """Log-probabilities (B, steps) of some rows' stored steps, computed again."""
    steps = [
        step_log_prob(
            subject.model,
            stored,
            step,
            condition[rows],
            eta=ETA,
            guidance_scale=subject.guidance(),
            rows=rows,
        )
        for step in stored.stochastic.tolist()
    ]
    return torch.stack(steps, 1)


def no_noise(subject: Subject) -> Iterator[Finding]:
    """The stochastic step without its noise is the step of the ODE."""
    model = subject.model
    process = model.process
    condition = subject.condition()
    x = subject.latents().to(model.device)
    # The second step: at the first one, some schedules have no picture in the latents at all.
    t, s = model.times(STEPS, condition.latent_shape)[1]
    with torch.no_grad():
        output = model.predict(x, t, condition, subject.guidance())
    ode = process.transition(x, output, t, s, 0.0)[0]
    # eta = 0 takes another branch; the smallest eta must end in the same place.
    mean = process.transition(x, output, t, s, 1e-6)[0]
    yield below("noiseless SDE = ODE", difference(mean, ode), 1e-5)
    density = gaussian_log_prob(mean, mean, process.std(t, s, ETA))
    finite = bool(density.isfinite().all())
    yield Finding("log-probabilities finite", finite, density.max().item(), "finite")


def guidance(subject: Subject) -> Iterator[Finding]:
    """Classifier-free guidance in one batch equals guidance from separate network calls."""
    model = subject.model
    condition = subject.condition()
    x = subject.latents().to(model.device)
    scales = subject.guidance()
    t = model.times(STEPS, condition.latent_shape)[1, 0]

    def predict(text: float, **tensors: Tensor) -> Tensor:
        merged = {**condition.tensors, **tensors}
        changed = Condition(condition.prompts, merged, condition.latent_shape)
        return model.predict(x, t, changed, {**scales, "text": text})

    # Guidance without words is a call whose texts are the negative ones.
    negative = {
        name.removeprefix(NEGATIVE): value
        for name, value in condition.tensors.items()
        if NEGATIVE in name
    }
    with torch.no_grad():
        together = predict(SCALE)
        with_text = predict(1.0)
        without = predict(1.0, **negative)
        expected = model.guided(without, with_text, SCALE)
        # InstructPix2Pix guides by its source picture too: a third call sees neither.
        if "image" in scales:
            no_image = torch.zeros_like(condition.tensors["image_latents"])
            nothing = predict(1.0, **negative, image_latents=no_image)
            by_text = SCALE * (with_text - without)
            by_image = scales["image"] * (without - nothing)
            expected = nothing + by_text + by_image
    # Outputs are no pictures in [0, 1]: rounding grows with their size.
    largest = expected.abs().max().item()
    limit = 10 * subject.tolerance * max(1.0, largest)
    yield below("guidance batched = apart", difference(together, expected), limit)


def prompts(subject: Subject) -> Iterator[Finding]:
    """A prompt encoded alone equals the same prompt encoded in a batch."""
    first = subject.condition()
    # Neither memory nor disk may answer: the prompts have to be encoded again.
    cache = subject.model.prompt_cache
    subject.model.prompt_cache = None
    subject.model.forget()
    try:
        rows = [slice(i, i + 1) for i in range(len(PROMPTS))]
        second = Condition.cat([subject.condition(rows=row) for row in rows])
    finally:
        subject.model.prompt_cache = cache
    differences = [difference(first.tensors[name], second.tensors[name]) for name in first.tensors]
    worst = max(differences)
    yield below("prompts cached = fresh", worst, subject.tolerance)


def codec(subject: Subject) -> Iterator[Finding]:
    """Latents have the announced shape, and ``encode`` undoes the scaling of ``decode``.

    With the scaling taken out of both, pictures that go through both come out the same.
    """
    model = subject.model
    pictures = subject.pictures().to(model.device)
    expected = model.latent_shape(*subject.size.values())
    with torch.no_grad():
        latents = model.encode(pictures)
        again = model.decode(latents)

        # The VAE itself loses detail. Beside its own round trip without scaling, only the scaling
        # is left to differ.
        statistics = model.latent_statistics
        model.latent_statistics = lambda: (0.0, 1.0)  # type: ignore[method-assign]
        try:
            unscaled = model.decode(model.encode(pictures))
        finally:
            model.latent_statistics = statistics  # type: ignore[method-assign]
    shape = tuple(latents.shape[1:])
    yield Finding("latent shape", shape == expected, str(shape), str(expected))
    yield below("scaling undone by encode", difference(again, unscaled), subject.tolerance)
    error = (again.float() - pictures).square().mean().item()
    ratio = -10 * math.log10(max(error, 1e-10))
    yield Finding("encode, decode: PSNR (dB)", math.isfinite(error), ratio, "finite")


def attention(subject: Subject) -> Iterator[Finding]:
    """The attention kernel in use computes what the plain one computes."""
    model = subject.model
    condition = subject.condition()
    x = subject.latents().to(model.device)
    t = model.times(STEPS, condition.latent_shape)[1, 0]
    for component, kernels in attention_of(model).items():
        used = ", ".join(f"{count} x {kernel}" for kernel, count in kernels.items())
        yield Finding(f"attention, {component}", True, used, "any")
    with torch.no_grad():
        ours = model.predict(x, t, condition, subject.guidance())
        with force_kernel(model, "math"):
            plain = model.predict(x, t, condition, subject.guidance())
    largest = plain.abs().max().item()
    error = difference(ours, plain) / largest
    yield below("attention = math kernel", error, subject.tolerance)


# --- all of them ----------------------------------------------------------------------------------

Law = Callable[[Subject], Iterator[Finding]]
LAWS: dict[str, Law] = {
    "own sampling": own_sampling,
    "replay": replay,
    "no noise": no_noise,
    "guidance": guidance,
    "prompts": prompts,
    "codec": codec,
    "attention": attention,
    "lora": lora,
    "memory": memory,
    "reward": reward,
}
TRAINED: dict[str, Law] = {"denoises": denoises}  # only a trained network can keep it

MEANING: dict[str, str] = {  # of each law, for readers who did not write the adapter
    "own sampling": "Samples without added noise match those of diffusers, and prompts matter.",
    "replay": "Log-probabilities of a sampled trajectory can be computed again while learning.",
    "no noise": "The stochastic sampler without its noise is the deterministic one.",
    "guidance": "Guidance computed in one batch equals guidance from separate network calls.",
    "prompts": "A prompt's encoding does not depend on the prompts encoded beside it.",
    "codec": "Latents have the announced shape, and encoding undoes the scaling of decoding.",
    "attention": "The attention kernel in use computes what the plain one computes.",
    "lora": "A LoRA trains alone, survives export and reload, and loads in plain diffusers.",
    "memory": "Memory of the weights and of one training step, for information.",
    "reward": "Rewards of the model's samples are finite, and so are their gradients.",
    "denoises": "The trained network removes noise better than a linear filter does.",
}


@exact_float32()
def check(subject: Subject, *, untrained: bool = False) -> list[Finding]:
    """Measure every law, in order.

    ``untrained``: leave out the law that only a trained network can keep.
    """
    findings: list[Finding] = []
    components = subject.model.components().values()
    parameters = [p for part in components for p in part.parameters()]
    # Laws freeze and thaw; the model is given back as it came.
    trained = [parameter.requires_grad for parameter in parameters]
    for name, law in (LAWS if untrained else LAWS | TRAINED).items():
        try:
            for finding in law(subject):
                findings.append(replace(finding, law=name))
        except Exception as error:  # whatever is wrong with the model is the finding
            what = f"{type(error).__name__}: {one_line(error)}"
            findings.append(Finding(name, False, what, "no error", law=name))
    for parameter, flag in zip(parameters, trained, strict=True):
        parameter.requires_grad_(flag)
    return findings
