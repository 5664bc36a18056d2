"""Is a model wired right? Laws that every adapter keeps, measured on the model at hand.

Each law is a function of a Subject that yields Findings: what was measured, and the limit it must
keep. A law that raises is a finding that failed, with the error in its place.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from .. import bundled
from ..errors import one_line
from ..galleries.gallery import Gallery
from ..peak_memory import PeakMemory, size_of
from ..pipelines import Condition, LoraOptions, Model, Rollout, gaussian_log_prob, rollout, sample
from ..pipelines.attention import attention_of, force_kernel
from ..pipelines.pretrained import Pretrained
from ..pipelines.sampling import step_log_prob
from ..pipelines.texts import NEGATIVE
from ..precision import exact_float32
from ..reward_heads import RewardSet

PROMPTS = ("a red apple", "two dogs on a green field")
OTHERS = ("a blue boat", "nothing but clouds")
STEPS, SCALE, ETA = 4, 3.0, 1.0
# Of pictures in [0, 1] drawn with guidance, by the weights' dtype: 1e-5 of rounding, times the
# scale of guidance.
TOLERANCE = {torch.float32: SCALE * 1e-5, torch.float16: 2e-2, torch.bfloat16: 6e-2}


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

    ``size`` is height, width and frames; ``inputs`` what the family's ``encode_prompts`` wants
    besides texts, two rows.
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
            raise ValueError(
                f"{type(model).__name__}: only adapters of diffusers pipelines can be checked"
            )
        if any(getattr(part, "peft_config", None) for part in model.trainable.values()):
            raise ValueError(
                f"{type(model).__name__}: a LoRA is loaded; check the model without it"
            )
        size = {
            "height": height or model.default_size[0],
            "width": width or model.default_size[1],
            "num_frames": num_frames or model.default_frames,
        }
        model.latent_shape(*size.values())
        shape = (len(PROMPTS), 3, size["height"], size["width"])
        inputs = {  # as files hold them
            name: torch.randint(256, shape, generator=Generator().manual_seed(2)) / 255
            for name in model.required_inputs
        }
        return cls(model, size, inputs, rewards)

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.model.dtype]

    def guidance(self, text: float = SCALE) -> dict[str, float]:
        """The family's own scales, and one of classifier-free guidance."""
        return {**self.model.guidances, "text": text}

    def condition(self, prompts: Sequence[str] = PROMPTS, rows: slice = slice(None)) -> Condition:
        options: dict[str, Any] = {
            **self.size,
            **{name: value[rows] for name, value in self.inputs.items()},
        }
        return self.model.encode_prompts(prompts[rows], **options)

    def latents(self) -> Tensor:
        shape = self.model.latent_shape(*self.size.values())
        return torch.randn(len(PROMPTS), *shape, generator=Generator().manual_seed(0))

    def pictures(self, prompts: Sequence[str] = PROMPTS, text_guidance: float = SCALE) -> Tensor:
        """Of the latents above, by eta = 0."""
        options: dict[str, Any] = {
            "num_inference_steps": STEPS,
            "guidance_scale": self.guidance(text_guidance),
        }
        return sample(self.model, self.condition(prompts), latents=self.latents(), **options)

    def by_diffusers(self, text_guidance: float = SCALE) -> Tensor:
        """The same from the pipeline's own call."""
        model = self.model
        pipeline = model.pipeline
        kept = model.pipeline.scheduler
        shown = getattr(pipeline, "_progress_bar_config", {})
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = model.exact_scheduler()
        frames = {} if model.default_frames == 1 else {"num_frames": self.size["num_frames"]}
        size = {name: self.size[name] for name in ("height", "width")} | frames
        latents = self.latents().to(model.device, model.dtype)
        drawn = []
        try:
            for start in range(len(PROMPTS)) if model.one_by_one else [0]:
                rows = slice(start, start + 1 if model.one_by_one else None)
                inputs = {name: value[rows] for name, value in self.inputs.items()}
                call = model.call(latents[rows], self.guidance(text_guidance), **size, **inputs)
                made = pipeline(
                    prompt=list(PROMPTS[rows]), num_inference_steps=STEPS, output_type="pt", **call
                )
                drawn.append(made.images if hasattr(made, "images") else made.frames)
        finally:
            pipeline.scheduler = kept
            pipeline.set_progress_bar_config(**shown)
        return torch.cat(drawn).float().cpu()

    def real_pictures(self) -> Tensor:
        """Bundled ones at the subject's size, (4, 3, H, W), or as videos that stand still, (4, F,
        3, H, W).
        """
        gallery = Gallery.load(bundled.PICTURES)
        pictures = torch.stack([gallery.image(i) for i in range(4)])
        pictures = interpolate(
            pictures, (self.size["height"], self.size["width"]), mode="bicubic", antialias=True
        )
        if self.model.default_frames > 1:
            pictures = pictures[:, None].expand(-1, self.size["num_frames"], -1, -1, -1)
        return pictures.clamp(0, 1)

    def precisions(self) -> Iterator[tuple[str, AbstractContextManager[Any], float]]:
        """What a training step can run in: its name, a context, and the replay noise that is normal
        there.
        """
        if self.model.dtype == torch.float32:
            yield "fp32", nullcontext(), 1e-4
        half = torch.float16 if self.model.dtype == torch.float16 else torch.bfloat16
        yield str(half).removeprefix("torch."), torch.autocast(self.model.device.type, half), 0.2

    def rollout(self, condition: Condition) -> Rollout:
        """Stochastic trajectories, a generator each."""
        generators = [Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
        options: dict[str, Any] = {
            "num_inference_steps": STEPS,
            "eta": ETA,
            "guidance_scale": self.guidance(),
        }
        return rollout(self.model, condition, generator=generators, **options)


def below(name: str, figure: float, limit: float) -> Finding:
    """Passed when the figure is no larger than the limit."""
    return Finding(name, figure <= limit, figure, limit)


def above(name: str, figure: float, limit: float) -> Finding:
    """Passed when the figure is larger than the limit."""
    return Finding(name, figure > limit, figure, limit)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest, of two pictures; infinite where their shapes differ."""
    return (a.float() - b.float()).abs().max().item() if a.shape == b.shape else math.inf


# --- the laws -------------------------------------------------------------------------------------


def own_sampling(subject: Subject) -> Iterator[Finding]:
    """eta = 0 is what diffusers draws; and the texts count, so their encoding was compared too."""
    plain = difference(subject.pictures(text_guidance=1.0), subject.by_diffusers(text_guidance=1.0))
    yield below("eta 0 = diffusers, without guidance", plain, subject.tolerance)
    ours = subject.pictures()
    yield below("eta 0 = diffusers", difference(ours, subject.by_diffusers()), subject.tolerance)
    yield above(
        "texts count", difference(ours, subject.pictures(prompts=OTHERS)), subject.tolerance
    )


def replay(subject: Subject) -> Iterator[Finding]:
    """Stored log-probabilities against the same again: in one batch to the bit, one by one to some
    noise.

    A policy gradient's clip must be ten times the noise, or it clips that. float32 weights are
    measured as they are and under bfloat16 autocast, which is how training in bf16 runs them.
    """
    condition = subject.condition()
    for name, precision, limit in subject.precisions():
        with precision, torch.no_grad():
            kept = subject.rollout(condition)

            def again(rows: slice, kept: Rollout = kept) -> Tensor:
                options: dict[str, Any] = {
                    "eta": ETA,
                    "guidance_scale": subject.guidance(),
                    "rows": rows,
                }
                steps = kept.stochastic.tolist()
                return torch.stack(
                    [
                        step_log_prob(subject.model, kept, i, condition[rows], **options)
                        for i in steps
                    ],
                    1,
                )

            together = again(slice(None))
            apart = torch.cat([again(slice(i, i + 1)) for i in range(len(PROMPTS))])
        yield below(
            f"ratio is 1 at equal batch shape, {name}", difference(together, kept.log_probs), 0.0
        )
        noise = difference(apart, kept.log_probs)
        yield below(f"replay noise, {name}", noise, limit)
        yield Finding(
            f"smallest clip it allows, {name}",
            math.isfinite(noise),
            10 * noise,
            "10 x replay noise",
        )


def no_noise(subject: Subject) -> Iterator[Finding]:
    """The stochastic step without noise is the ODE's."""
    model = subject.model
    process = subject.model.process
    condition = subject.condition()
    x = subject.latents().to(subject.model.device)
    t, s = model.times(STEPS, condition.latent_shape)[1]
    with torch.no_grad():
        output = model.predict(x, t, condition, subject.guidance())
    ode, mean = (process.transition(x, output, t, s, eta)[0] for eta in (0.0, 1e-6))
    yield below("noiseless SDE = ODE", difference(mean, ode), 1e-5)
    density = gaussian_log_prob(mean, mean, process.std(t, s, ETA))
    yield Finding(
        "log-probabilities finite", bool(density.isfinite().all()), density.max().item(), "finite"
    )


def guidance(subject: Subject) -> Iterator[Finding]:
    """Classifier-free guidance in one batch is that of separate calls."""
    model = subject.model
    condition = subject.condition()
    x = subject.latents().to(model.device)
    scales = subject.guidance()
    t = model.times(STEPS, condition.latent_shape)[1, 0]

    def predict(text: float, **tensors: Tensor) -> Tensor:
        told = Condition(
            condition.prompts, {**condition.tensors, **tensors}, condition.latent_shape
        )
        return model.predict(x, t, told, {**scales, "text": text})

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
        if "image" in scales:
            nothing = predict(
                1.0, **negative, image_latents=torch.zeros_like(condition.tensors["image_latents"])
            )
            expected = (
                nothing + SCALE * (with_text - without) + scales["image"] * (without - nothing)
            )
    limit = 10 * subject.tolerance * max(1.0, expected.abs().max().item())
    yield below("guidance batched = apart", difference(together, expected), limit)


def prompts(subject: Subject) -> Iterator[Finding]:
    """A prompt encoded again, one at a time, is what was kept of the first time."""
    first = subject.condition()
    cache = subject.model.prompt_cache
    subject.model.prompt_cache = None
    subject.model.forget()
    try:
        second = Condition.cat(
            [subject.condition(rows=slice(i, i + 1)) for i in range(len(PROMPTS))]
        )
    finally:
        subject.model.prompt_cache = cache
    worst = max(difference(first.tensors[name], second.tensors[name]) for name in first.tensors)
    yield below("prompts cached = fresh", worst, subject.tolerance)


def codec(subject: Subject) -> Iterator[Finding]:
    """Shapes are those that were announced, and encode undoes decode's scaling: without either,
    nothing changes.
    """
    model = subject.model
    made = subject.pictures().to(subject.model.device)
    expected = model.latent_shape(*subject.size.values())
    with torch.no_grad():
        latents = model.encode(made)
        again = model.decode(latents)
        kept, model.latent_statistics = model.latent_statistics, lambda: (0.0, 1.0)  # type: ignore[method-assign]
        try:
            unscaled = model.decode(model.encode(made))
        finally:
            model.latent_statistics = kept  # type: ignore[method-assign]
    yield Finding(
        "latent shape",
        tuple(latents.shape[1:]) == expected,
        str(tuple(latents.shape[1:])),
        str(expected),
    )
    yield below("scaling undone by encode", difference(again, unscaled), subject.tolerance)
    error = (again.float() - made).square().mean().item()
    yield Finding(
        "encode, decode: PSNR (dB)",
        math.isfinite(error),
        -10 * math.log10(max(error, 1e-10)),
        "finite",
    )


def lora(subject: Subject) -> Iterator[Finding]:
    """A LoRA finds its layers, gradients reach it alone, it draws the same when reloaded, and
    leaves no trace.
    """
    model = subject.model
    base = subject.pictures()
    model.train_lora(LoraOptions(rank=2))
    try:
        parameters = [
            name for part in model.trainable.values() for name, _ in part.named_parameters()
        ]
        yield above(
            "LoRA layers", sum(name.endswith("lora_A.policy.weight") for name in parameters), 0
        )
        with torch.no_grad():
            noise = Generator().manual_seed(1)
            for parameter in model.parameters():
                parameter.add_(
                    torch.randn(parameter.shape, generator=noise).to(parameter), alpha=0.1
                )
        yield from gradients(subject)
        ours = subject.pictures()
        yield above("LoRA changes pictures", difference(ours, base), subject.tolerance)
        with tempfile.TemporaryDirectory() as folder:
            model.export(Path(folder))
            model.restore_weights()
            yield below(
                "without LoRA = before", difference(subject.pictures(), base), subject.tolerance
            )
            model.reload(Path(folder))
            yield below(
                "reloaded = exported", difference(subject.pictures(), ours), subject.tolerance
            )
            yield below(
                "in diffusers = exported",
                difference(subject.by_diffusers(), ours),
                subject.tolerance,
            )
    finally:
        model.drop_lora()


def gradients(subject: Subject) -> Iterator[Finding]:
    """Through both ends of the trajectory: some families have a network for each."""
    model = subject.model
    condition = subject.condition()
    x = subject.latents().to(model.device)
    for t in model.times(STEPS, condition.latent_shape)[[0, -1], 0]:
        model.predict(x, t, condition, subject.guidance()).float().square().mean().backward()
    trained = {id(parameter) for parameter in model.parameters()}
    everything = [p for part in model.components().values() for p in part.parameters()]
    stray = sum(p.grad is not None and id(p) not in trained for p in everything)
    missing = sum(p.grad is None or not bool(p.grad.isfinite().all()) for p in model.parameters())
    yield below("gradients outside of what is trained", stray, 0)
    yield below("trained tensors without a finite gradient", missing, 0)
    for parameter in everything:
        parameter.grad = None


def memory(subject: Subject) -> Iterator[Finding]:
    """What the weights take, and what one training step of a LoRA makes on top, of two rows with
    guidance.
    """
    model = subject.model
    condition = subject.condition()
    yield Finding(
        "memory, weights (MiB)", True, size_of(model.components().values()) / 2**20, "any"
    )
    model.train_lora(LoraOptions(rank=2))
    try:
        x = subject.latents().to(model.device)
        t = model.times(STEPS, condition.latent_shape)[0, 0]
        with PeakMemory() as step:
            model.predict(x, t, condition, subject.guidance()).float().square().mean().backward()
        yield Finding(
            "memory, a training step of two rows (MiB)", step.peak > 0, step.peak / 2**20, "any"
        )
    finally:
        for parameter in model.parameters():
            parameter.grad = None
        model.drop_lora()


def reward(subject: Subject) -> Iterator[Finding]:
    """The rewards of the model's own pictures are numbers, and differentiable heads have finite
    gradients.
    """
    if subject.rewards is None:
        return
    latents = subject.rollout(subject.condition()).final.requires_grad_()
    media = subject.model.decode(latents).float()
    scores = subject.rewards(media, PROMPTS)
    yield Finding(
        "rewards finite",
        bool(scores.combined.isfinite().all()),
        scores.combined.mean().item(),
        "finite",
    )
    if scores.combined.requires_grad:
        (gradient,) = torch.autograd.grad(scores.combined.sum(), latents)
        size = gradient.norm().item()
        yield Finding("reward gradient", math.isfinite(size) and size > 0, size, "finite, not 0")


def denoises(subject: Subject) -> Iterator[Finding]:
    """x0-hat of noised latents is nearer to them than the best linear guess from the noisy ones is.

    A network that was not trained fails it, and so does a trained one whose files are wrong: with a
    little noise and with much, so that no prediction type passes for another; on the model's own
    samples, and on real pictures, whose latents have another size where the VAE's scale is wrong.
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
    if not model.required_inputs:  # a source picture or a control map would have to fit
        real = subject.real_pictures()
        with torch.no_grad():
            latents = model.encode(real.to(model.device))
        yield from _denoises(subject, "real pictures", latents, subject.condition([""] * len(real)))


def _denoises(
    subject: Subject, name: str, clean: Tensor, condition: Condition
) -> Iterator[Finding]:
    model = subject.model
    process = subject.model.process
    variance = clean.float().var().item()
    noise = torch.randn(clean.shape, generator=Generator().manual_seed(1)).to(clean)
    times = model.times(20, condition.latent_shape)[:, 0]
    alphas, sigmas = process.coefficients(times)
    for amount, signal in (("much", 0.2), ("a little", 0.9)):  # alpha^2 / (alpha^2 + sigma^2)
        step = int(((alphas**2 / (alphas**2 + sigmas**2)) - signal).abs().argmin())
        t = times[step]
        alpha = alphas[step].item()
        sigma = sigmas[step].item()
        noisy = process.add_noise(clean, noise, t)
        with torch.no_grad():
            x0, _ = process.split(
                noisy, model.predict(noisy, t, condition, subject.guidance(1.0)), t
            )
        linear = noisy * alpha * variance / (alpha**2 * variance + sigma**2)
        ours, guess = (
            (value.float() - clean.float()).square().mean().item() for value in (x0, linear)
        )
        yield below(f"denoises {name}, {amount} noise: error / linear guess's", ours / guess, 0.75)


def attention(subject: Subject) -> Iterator[Finding]:
    """Which kernel the denoisers' attention modules use, and that it computes what the plain one
    does.
    """
    model = subject.model
    condition = subject.condition()
    x = subject.latents().to(subject.model.device)
    t = model.times(STEPS, condition.latent_shape)[1, 0]
    for component, kernels in attention_of(model).items():
        used = ", ".join(f"{count} x {kernel}" for kernel, count in kernels.items())
        yield Finding(f"attention, {component}", True, used, "any")
    with torch.no_grad():
        ours = model.predict(x, t, condition, subject.guidance())
        with force_kernel(model, "math"):
            plain = model.predict(x, t, condition, subject.guidance())
    yield below(
        "attention = math kernel",
        difference(ours, plain) / plain.abs().max().item(),
        subject.tolerance,
    )


LAWS: dict[str, Callable[[Subject], Iterator[Finding]]] = {
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


@exact_float32()
def check(subject: Subject, *, untrained: bool = False) -> list[Finding]:
    """Every law, in order. ``untrained``: leave out the one that only a trained network can
    keep.
    """
    found: list[Finding] = []
    parameters = [p for part in subject.model.components().values() for p in part.parameters()]
    trained = [parameter.requires_grad for parameter in parameters]
    for name, law in (LAWS if untrained else {**LAWS, "denoises": denoises}).items():
        try:
            found += law(subject)
        except Exception as error:  # whatever is wrong with the model is the finding
            found.append(
                Finding(
                    name,
                    False,
                    f"{type(error).__name__}: {one_line(error)}",
                    "no error",
                )
            )
    for parameter, flag in zip(parameters, trained, strict=True):
        parameter.requires_grad_(flag)
    return found
