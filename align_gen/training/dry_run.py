"""Plan a run without reading weights: its calls, memory and time."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .. import bundled, pipelines
from ..errors import UserError, user_mistakes
from ..galleries.prompts import load_prompts, require_disjoint
from ..methods.base import Cost
from ..methods.denoising import Noised, conditional_guidance
from ..peak_memory import PeakMemory, size_of
from ..pipelines import Condition, Model, Rollout
from ..pipelines.registry import TOYS
from ..pipelines.sampling import step_log_prob
from ..pipelines.skeleton import ShapesOnly, describe_source, make_fake, skeleton
from ..precision import dtype_of
from ..progress import duration
from ..reward_heads.options import check_options
from ..reward_heads.registry import HEADS
from .recipe import Recipe
from .setup import load_model, prepare_model

FLOAT = 4  # bytes; trained tensors, gradients and latents are float32 in every precision
STEPS = 4  # of the trajectories that are measured: memory grows with them by stored latents alone


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of tensors that a run keeps, and, on top of them, that each kind of work makes.

    Attributes:
        weights: of every component, and of the frozen copy in full training.
        freed: of the weights, once the texts are encoded.
        training: gradients, two moments, average and its spare.
        stored: a step's latents and pictures.
        encoding: of texts.
        sampling: one call's worth of pictures being drawn.
        decoding: one call's worth of latents.
        learning: one micro-batch forward and backward.
    """

    weights: int
    freed: int
    training: int
    stored: int
    encoding: int
    sampling: int
    decoding: int
    learning: int

    @property
    def peak(self) -> int:
        """The most that is needed at once; reward models and the libraries come on top."""
        work = max(self.sampling, self.decoding, self.learning)
        running = self.weights - self.freed + self.training + self.stored + work
        return max(self.weights + self.encoding, running)


@dataclass(frozen=True)
class Work:
    """Floating-point operations of the denoiser for one row: forward, and forward and backward."""

    forward: float
    both: float

    def of(self, cost: Cost) -> float:
        """Operations of one step."""
        return cost.forwards * self.forward + cost.backwards * (self.both - self.forward)


@dataclass(frozen=True)
class Plan:
    """Calls, memory and time of a run; as text by ``str``.

    Attributes:
        cost: of one step.
        memory: at its peak; None for toys.
        operations: of the denoiser in one step; None for toys.
        speed: operations a second of a bare matrix product on this machine.
    """

    recipe: Recipe
    trained_parameters: int
    cost: Cost
    memory: MemoryEstimate | None = None
    operations: float | None = None
    speed: float | None = None

    @property
    def seconds(self) -> float | None:
        """The least that all steps can take here."""
        if self.operations is None or self.speed is None:
            return None
        return self.recipe.run.steps * self.operations / self.speed

    def json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "trained_parameters": self.trained_parameters,
            "per_step": asdict(self.cost),
            "steps": self.recipe.run.steps,
            "denoiser_rows": self.cost.forwards * self.recipe.run.steps,
            "memory": None
            if self.memory is None
            else {**asdict(self.memory), "peak": self.memory.peak},
            "seconds_at_least": self.seconds,
            "recipe": self.recipe.to_yaml(),
        }

    def __str__(self) -> str:
        steps = self.recipe.run.steps
        cost = self.cost
        lines = [
            f"trained parameters    {self.trained_parameters:,}",
            f"denoiser per step     {cost.forwards:,} rows forward, {cost.backwards:,} of them "
            "backward",
            f"denoiser in all       {cost.forwards * steps:,} rows in {steps:,} steps",
        ]
        if self.memory is not None:
            parts = ", ".join(f"{name} {_mib(size)}" for name, size in asdict(self.memory).items())
            peak = _mib(self.memory.peak)
            lines.append(
                f"memory                {peak} MiB at the peak, without reward models: {parts}"
            )
        if self.seconds is not None and self.speed is not None:
            lines.append(
                f"time on this machine  at least {duration(self.seconds)}: a bare matrix product "
                f"runs at {self.speed / 1e9:,.0f} GFLOP/s here; galleries and rewards come on top"
            )
        return "\n".join([*lines, "---", self.recipe.to_yaml().rstrip()])


def describe(recipe: Recipe) -> Plan:
    """Plan a run: what is trained, and the calls, memory and time.

    Raises:
        UserError: a mistake in the recipe, or in a reward's options.
    """
    sampling = recipe.sampling
    with user_mistakes():
        check_reward_options(recipe)
        held_out = load_prompts(recipe.prompts.eval)
        if recipe.prompts.train is not None:
            require_disjoint(load_prompts(recipe.prompts.train), held_out)
        if recipe.model.path in TOYS:
            model = load_model(recipe)
            prepare_model(recipe, model)
        else:
            model = outline(recipe)
        cost = recipe.method.cost(sampling, model.rows_per_sample(sampling.guidance_scale))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if recipe.model.path in TOYS:
        return Plan(recipe, parameters, cost)
    memory, work = measure(model, recipe)
    speed = matrix_product_speed(dtype_of(recipe.model.dtype))
    return Plan(recipe, parameters, cost, memory, work.of(cost), speed)


def check_reward_options(recipe: Recipe) -> None:
    """Check the options of rewards from the table, without loading any.

    Raises:
        ValueError: names the reward, the option and what is accepted.
    """
    for key, value in {**recipe.rewards, **recipe.eval_rewards}.items():
        options = dict(value) if isinstance(value, Mapping) else {}
        name = options.pop("name", key)
        if name in HEADS:
            ours = {k: v for k, v in options.items() if k not in ("weight", "offload")}
            check_options(name, ours)


def matrix_product_speed(dtype: torch.dtype, size: int = 2048, rounds: int = 3) -> float:
    """Operations a second of a bare matrix product on this machine's device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(size, size, device=device).to(dtype)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def outline(recipe: Recipe) -> Model:
    """The recipe's model made ready to train, of tensors without data."""
    section = recipe.model
    if section.adapter is not None and not Path(section.adapter).is_dir():
        raise UserError(f"model.adapter: {section.adapter}: no such folder; want an export")
    pipeline = skeleton(
        describe_source(bundled.generator_path(section.path)), dtype_of(section.dtype)
    )
    model = pipelines.load(pipeline)
    model.prompt_cache = None  # type: ignore[attr-defined]  # real texts are kept there
    prepare_model(recipe, model)
    return model


def estimate(model: Model, recipe: Recipe) -> MemoryEstimate:
    """The memory of a run; ``model`` comes from ``outline``."""
    memory, _ = measure(model, recipe)
    return memory


def measure(model: Model, recipe: Recipe) -> tuple[MemoryEstimate, Work]:
    """Run one micro-batch of everything on shapes alone, and count. ``model`` is an ``outline``."""
    method = recipe.method
    micro = recipe.optim.micro_batch
    cost = method.cost(recipe.sampling, 1)
    copies = {f"copy of {name}": module for name, module in model.reference_copies.items()}
    modules = {**model.components(), **copies}
    on_device = model.components() if recipe.memory.offload_reference else modules
    weights = size_of(on_device.values())
    encoders = [part for name, part in modules.items() if name.startswith("text_encoder")]
    freed = size_of(encoders) if recipe.memory.free_text_encoders else 0
    trained = sum(parameter.numel() for parameter in model.parameters())
    # Gradients and two moments; an average, and what it is swapped with.
    training = FLOAT * trained * (3 if recipe.optim.ema is None else 5)

    with make_fake(modules) as shapes:
        encoding, condition = _encode(model, recipe)
        # Galleries are drawn too, in batches of their own.
        drawn = condition.repeat(max(min(micro, method.images), recipe.evaluate.batch_size))
        learned = condition.repeat(min(micro, cost.images))
        half = dtype_of(recipe.model.dtype)
        with nullcontext() if half == torch.float32 else torch.autocast("cpu", half):
            sampling, final = _draw(model, drawn, recipe)
            learning = _learn(model, learned, recipe)
            work = _work(model, condition, recipe)
        decoding, picture = _decode(model, final, shapes)

    latents = FLOAT * (recipe.sampling.num_inference_steps + 1)
    latents *= torch.Size(condition.latent_shape).numel()
    stored = method.images * (latents + picture)
    memory = MemoryEstimate(
        weights, freed, training, stored, encoding, sampling, decoding, learning
    )
    return memory, work


def _encode(model: Model, recipe: Recipe) -> tuple[int, Condition]:
    """Peak bytes of encoding a full batch of texts, and one condition."""
    height = recipe.sampling.height or model.default_size[0]
    width = recipe.sampling.width or model.default_size[1]
    texts = [str(number) for number in range(31)]  # and the negative one
    with PeakMemory() as memory:
        condition = model.encode_prompts(
            texts, height=height, width=width, num_frames=recipe.sampling.num_frames
        )
    return memory.peak, condition[:1]


def _draw(model: Model, rows: Condition, recipe: Recipe) -> tuple[int, Tensor]:
    """Peak bytes of drawing, and the finished latents."""
    with PeakMemory() as memory:
        final = _rollout(model, rows, recipe).final
    return memory.peak, final


def _learn(model: Model, rows: Condition, recipe: Recipe) -> int:
    """Peak bytes of one micro-batch forward and backward, besides the gradients."""
    drawn = _rollout(model, rows, recipe)
    with PeakMemory() as memory:
        _objective(model, drawn, rows, recipe).backward()
    gradients = (each.grad for each in model.parameters() if each.grad is not None)
    return memory.peak - sum(gradient.nbytes for gradient in gradients)


def _work(model: Model, row: Condition, recipe: Recipe) -> Work:
    """Operations of the denoiser for one row.

    They are counted apart from the bytes: the counter's hooks keep tensors alive.
    """
    passes = model.rows_per_sample(recipe.sampling.guidance_scale)
    with FlopCounterMode(display=False) as flops:
        drawn = _rollout(model, row, recipe)
    forward = flops.get_total_flops() / (STEPS * passes)
    with FlopCounterMode(display=False) as flops:
        _objective(model, drawn, row, recipe).backward()
    # Methods that denoise learn without guidance.
    return Work(forward, flops.get_total_flops() / (passes if len(drawn.stochastic) else 1))


def _objective(model: Model, drawn: Rollout, rows: Condition, recipe: Recipe) -> Tensor:
    """What one call of the denoiser learns from, as likelihoods or as denoising."""
    sampling = recipe.sampling
    options: dict[str, Any] = {"eta": sampling.eta, "guidance_scale": sampling.guidance_scale}
    if len(drawn.stochastic):
        step = int(drawn.stochastic[0])
        return step_log_prob(model, drawn, step, rows, **options).sum()
    # Methods that denoise need no noise in sampling, and learn without guidance.
    t = drawn.times[:1, 0].expand(len(rows))
    noise = torch.zeros_like(drawn.final)
    x_t = model.process.add_noise(drawn.final, noise, t)
    target = model.process.target(drawn.final, noise, t).float()
    noised = Noised(x_t, t, target, rows, conditional_guidance(model, sampling))
    return noised.squared_errors(model).sum()


def _rollout(model: Model, rows: Condition, recipe: Recipe) -> Rollout:
    options: dict[str, Any] = {
        "eta": recipe.sampling.eta,
        "guidance_scale": recipe.sampling.guidance_scale,
    }
    return pipelines.rollout(model, rows, num_inference_steps=STEPS, **options)


def _decode(model: Model, latents: Tensor, shapes: ShapesOnly) -> tuple[int, int]:
    """Peak bytes of decoding a micro-batch, and the bytes of one picture or video."""
    with shapes.everything, torch.no_grad(), PeakMemory() as decoding:
        media = model.decode(latents).float()
    return decoding.peak, media.nbytes // len(media)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"
