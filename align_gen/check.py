"""Is a model wired right? Laws that every adapter keeps, measured on the model at hand.

Each law is a function of a Subject that yields Findings: what was measured, and the limit it must keep. A law that
raises is a finding that failed, with the error in its place.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from .pipelines import Condition, LoraOptions, Model, Rollout, gaussian_log_prob, rollout, sample
from .pipelines.pretrained import NEGATIVE, Pretrained
from .pipelines.sampling import step_log_prob
from .reward_heads import RewardSet

PROMPTS = ("a red apple", "two dogs on a green field")
OTHERS = ("a blue boat", "nothing but clouds")
STEPS, SCALE, ETA = 4, 3.0, 1.0
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 6e-2}  # of pictures in [0, 1], by weights' dtype


@dataclass(frozen=True)
class Finding:
    """One measurement. ``figure`` and ``limit`` are numbers where they can be, else words."""

    name: str
    passed: bool
    figure: float | str
    limit: float | str


@dataclass
class Subject:
    """A model and how to ask it for something small.

    ``size`` is height, width and frames; ``inputs`` what the family's ``encode_prompts`` wants besides texts, two rows.
    """

    model: Pretrained
    size: Mapping[str, int]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    rewards: RewardSet | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        rewards: RewardSet | None = None,
    ) -> "Subject":
        """At the family's own size where none is given, with random pictures where it wants some.

        Raises:
            ValueError: the model has no pipeline behind it, or the size is none of the family's.
        """
        if not isinstance(model, Pretrained):
            raise ValueError(f"{type(model).__name__}: only adapters of diffusers pipelines can be checked")
        size = {
            "height": height or model.default_size[0],
            "width": width or model.default_size[1],
            "num_frames": num_frames or model.default_frames,
        }
        model.latent_shape(*size.values())
        shape = (len(PROMPTS), 3, size["height"], size["width"])
        inputs = {name: torch.rand(shape, generator=Generator().manual_seed(2)) for name in model.wants}
        return cls(model, size, inputs, rewards)

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.model.dtype]

    @property
    def guidance(self) -> dict[str, float]:
        """The family's own scales, with classifier-free guidance on."""
        return {**self.model.guidances, "text": SCALE}

    def condition(self, prompts: Sequence[str] = PROMPTS) -> Condition:
        return self.model.encode_prompts(prompts, **self.size, **self.inputs)

    def latents(self) -> Tensor:
        shape = self.model.latent_shape(*self.size.values())
        return torch.randn(len(PROMPTS), *shape, generator=Generator().manual_seed(0))

    def pictures(self, prompts: Sequence[str] = PROMPTS) -> Tensor:
        """Of the latents above, by eta = 0."""
        options: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": self.guidance}
        return sample(self.model, self.condition(prompts), latents=self.latents(), **options)

    def by_diffusers(self) -> Tensor:
        """The same from the pipeline's own call."""
        model = self.model
        pipeline, kept = model.pipeline, model.pipeline.scheduler
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = model.exact_scheduler()
        frames = {} if model.default_frames == 1 else {"num_frames": self.size["num_frames"]}
        size = {name: self.size[name] for name in ("height", "width")} | frames
        call = model.call(self.latents().to(model.device, model.dtype), self.guidance, **size, **self.inputs)
        try:
            made = pipeline(list(PROMPTS), num_inference_steps=STEPS, output_type="pt", **call)
        finally:
            pipeline.scheduler = kept
        media: Tensor = made.images if hasattr(made, "images") else made.frames
        return media.float().cpu()

    def rollout(self) -> Rollout:
        """Stochastic trajectories, a generator each."""
        generators = [Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
        options: dict[str, Any] = {"num_inference_steps": STEPS, "eta": ETA, "guidance_scale": self.guidance}
        return rollout(self.model, self.condition(), generator=generators, **options)


def below(name: str, figure: float, limit: float) -> Finding:
    """Passed when the figure is no larger than the limit."""
    return Finding(name, figure <= limit, figure, limit)


def above(name: str, figure: float, limit: float) -> Finding:
    """Passed when the figure is larger than the limit."""
    return Finding(name, figure > limit, figure, limit)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest, of two pictures; infinite where their shapes differ."""
    return (a.float() - b.float()).abs().max().item() if a.shape == b.shape else math.inf


# --- the laws --------------------------------------------------------------------------------------------------------


def own_sampling(subject: Subject) -> Iterator[Finding]:
    """eta = 0 is what diffusers draws; and the texts count, so their encoding was compared too."""
    ours = subject.pictures()
    yield below("eta 0 = diffusers", difference(ours, subject.by_diffusers()), subject.tolerance)
    yield above("texts count", difference(ours, subject.pictures(prompts=OTHERS)), subject.tolerance)


def replay(subject: Subject) -> Iterator[Finding]:
    """Stored log-probabilities against the same again: in one batch to the bit, one by one to some noise."""
    kept, condition = subject.rollout(), subject.condition()

    def again(rows: slice) -> Tensor:
        options: dict[str, Any] = {"eta": ETA, "guidance_scale": subject.guidance, "rows": rows}
        steps = kept.stochastic.tolist()
        return torch.stack([step_log_prob(subject.model, kept, i, condition[rows], **options) for i in steps], 1)

    with torch.no_grad():
        together = again(slice(None))
        apart = torch.cat([again(slice(i, i + 1)) for i in range(len(PROMPTS))])
    yield below("ratio is 1 at equal batch shape", difference(together, kept.log_probs), 0.0)
    noise = difference(apart, kept.log_probs)
    yield below("replay noise", noise, 1e-5 if subject.model.dtype == torch.float32 else 1e-2)
    yield Finding("smallest clip it allows", math.isfinite(noise), 10 * noise, "10 x replay noise")


def no_noise(subject: Subject) -> Iterator[Finding]:
    """The stochastic step without noise is the ODE's."""
    model, process = subject.model, subject.model.process
    condition, x = subject.condition(), subject.latents().to(subject.model.device)
    t, s = model.times(STEPS, condition.latent_shape)[1]
    with torch.no_grad():
        output = model.predict(x, t, condition, subject.guidance)
    ode, mean = (process.transition(x, output, t, s, eta)[0] for eta in (0.0, 1e-6))
    yield below("noiseless SDE = ODE", difference(mean, ode), 1e-5)
    density = gaussian_log_prob(mean, mean, process.std(t, s, ETA))
    yield Finding("log-probabilities finite", bool(density.isfinite().all()), density.max().item(), "finite")


def guidance(subject: Subject) -> Iterator[Finding]:
    """Classifier-free guidance in one batch is that of separate calls."""
    model, condition = subject.model, subject.condition()
    x, scales = subject.latents().to(model.device), subject.guidance
    t = model.times(STEPS, condition.latent_shape)[1, 0]

    def predict(text: float, **tensors: Tensor) -> Tensor:
        told = Condition(condition.prompts, {**condition.tensors, **tensors}, condition.latent_shape)
        return model.predict(x, t, told, {**scales, "text": text})

    negative = {name.removeprefix(NEGATIVE): value for name, value in condition.tensors.items() if NEGATIVE in name}
    with torch.no_grad():
        together, with_text, without = predict(SCALE), predict(1.0), predict(1.0, **negative)
        expected = without + SCALE * (with_text - without)
        if "image" in scales:
            nothing = predict(1.0, **negative, image_latents=torch.zeros_like(condition.tensors["image_latents"]))
            expected = nothing + SCALE * (with_text - without) + scales["image"] * (without - nothing)
    limit = 10 * subject.tolerance * max(1.0, expected.abs().max().item())
    yield below("guidance batched = apart", difference(together, expected), limit)


def prompts(subject: Subject) -> Iterator[Finding]:
    """A prompt encoded again, one at a time, is what was kept of the first time."""
    first = subject.condition()
    subject.model.forget()
    rows = []
    for i, text in enumerate(PROMPTS):
        inputs = {name: value[i : i + 1] for name, value in subject.inputs.items()}
        rows.append(subject.model.encode_prompts([text], **subject.size, **inputs))
    second = Condition.cat(rows)
    worst = max(difference(first.tensors[name], second.tensors[name]) for name in first.tensors)
    yield below("prompts cached = fresh", worst, subject.tolerance)


def codec(subject: Subject) -> Iterator[Finding]:
    """Pictures of the model's own survive encoding; shapes are those that were announced."""
    model, made = subject.model, subject.pictures().to(subject.model.device)
    with torch.no_grad():
        latents = model.encode(made)
        again = model.decode(latents).float()
    expected = model.latent_shape(*subject.size.values())
    yield Finding("latent shape", tuple(latents.shape[1:]) == expected, str(tuple(latents.shape[1:])), str(expected))
    error = (again.cpu() - made.float().cpu()).square().mean().item()
    yield Finding("encode, decode: PSNR (dB)", math.isfinite(error), -10 * math.log10(max(error, 1e-10)), "finite")


def lora(subject: Subject) -> Iterator[Finding]:
    """A LoRA finds its layers, gradients reach it alone, it draws the same when reloaded, and leaves no trace."""
    model, base = subject.model, subject.pictures()
    model.train_lora(LoraOptions(rank=2))
    try:
        parameters = [name for part in model.trainable.values() for name, _ in part.named_parameters()]
        yield above("LoRA layers", sum(name.endswith("lora_A.policy.weight") for name in parameters), 0)
        with torch.no_grad():
            noise = Generator().manual_seed(1)
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=noise).to(parameter), alpha=0.1)
        yield from gradients(subject)
        ours = subject.pictures()
        yield above("LoRA changes pictures", difference(ours, base), subject.tolerance)
        with tempfile.TemporaryDirectory() as folder:
            model.export(Path(folder))
            model.untrain()
            yield below("without LoRA = before", difference(subject.pictures(), base), subject.tolerance)
            model.reload(Path(folder))
            yield below("reloaded = exported", difference(subject.pictures(), ours), subject.tolerance)
            yield below("in diffusers = exported", difference(subject.by_diffusers(), ours), subject.tolerance)
    finally:
        model.drop_lora()


def gradients(subject: Subject) -> Iterator[Finding]:
    """Through both ends of the trajectory: some families have a network for each."""
    model, condition = subject.model, subject.condition()
    x = subject.latents().to(model.device)
    for t in model.times(STEPS, condition.latent_shape)[[0, -1], 0]:
        model.predict(x, t, condition, subject.guidance).float().square().mean().backward()
    trained = {id(parameter) for parameter in model.parameters()}
    everything = [p for part in model.components().values() for p in part.parameters()]
    stray = sum(p.grad is not None and id(p) not in trained for p in everything)
    missing = sum(p.grad is None or not bool(p.grad.isfinite().all()) for p in model.parameters())
    yield below("gradients outside of what is trained", stray, 0)
    yield below("trained tensors without a finite gradient", missing, 0)
    for parameter in everything:
        parameter.grad = None


def reward(subject: Subject) -> Iterator[Finding]:
    """The rewards of the model's own pictures are numbers, and differentiable heads have finite gradients."""
    if subject.rewards is None:
        return
    latents = subject.rollout().final.requires_grad_()
    media = subject.model.decode(latents).float()
    scores = subject.rewards(media, PROMPTS)
    yield Finding("rewards finite", bool(scores.combined.isfinite().all()), scores.combined.mean().item(), "finite")
    if scores.combined.requires_grad:
        (gradient,) = torch.autograd.grad(scores.combined.sum(), latents)
        size = gradient.norm().item()
        yield Finding("reward gradient", math.isfinite(size) and size > 0, size, "finite, not 0")


def denoises(subject: Subject) -> Iterator[Finding]:
    """x0-hat of the model's own sample, noised a little, is nearer to it than the noisy latent, scaled back, is.

    A wrong prediction type or latent scale in a model's files shows here; a network that was not trained fails it.
    """
    model = subject.model
    condition = subject.condition()
    clean = rollout(
        model, condition, num_inference_steps=20, eta=0.0, guidance_scale=subject.guidance, latents=subject.latents()
    ).final
    times = model.times(20, condition.latent_shape)[:, 0]
    t = times[int(0.7 * len(times))]
    noisy = model.process.add_noise(clean, subject.latents().flip(0).to(clean), t)
    with torch.no_grad():
        x0, _ = model.process.split(noisy, model.predict(noisy, t, condition, {**subject.guidance, "text": 1.0}), t)
    alpha, _ = model.process.coefficients(t)
    before, after = ((value - clean).square().mean().item() for value in (noisy / alpha.item(), x0))
    yield below("denoises: error after / before", after / before, 0.7)


LAWS: dict[str, Callable[[Subject], Iterator[Finding]]] = {
    "own sampling": own_sampling,
    "replay": replay,
    "no noise": no_noise,
    "guidance": guidance,
    "prompts": prompts,
    "codec": codec,
    "lora": lora,
    "reward": reward,
}


def check(subject: Subject, *, untrained: bool = False) -> list[Finding]:
    """Every law, in order. ``untrained``: leave out the one that only a trained network can keep."""
    found: list[Finding] = []
    for name, law in (LAWS if untrained else {**LAWS, "denoises": denoises}).items():
        try:
            found += law(subject)
        except Exception as error:  # whatever is wrong with the model is the finding
            found.append(Finding(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}", "no error"))
    return found
