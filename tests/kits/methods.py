"""What tests of methods share: toys, an optimizer that remembers, and one step of any method."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from align_gen import methods, pipelines
from align_gen.methods.batches import Batch, Media, Pairs, Prompts, Sampling
from align_gen.methods.state import TrainState
from align_gen.pipelines import Model
from align_gen.reward_heads import RewardSet, reward_set

MIXTURE: dict[str, Any] = {"means": ((-1.0, 0.5), (1.0, -0.5)), "stds": (0.5, 0.8)}
GROUP = 6  # images of each prompt
TEXTS = ("a", "b")
STEPS = 4
SAMPLING = Sampling(num_inference_steps=STEPS)


# --- rewards --------------------------------------------------------------------------------------


def rewards_of(rewards: Any) -> RewardSet:
    """A set of one function, of a list of them, or of none; a set as it is."""
    if isinstance(rewards, RewardSet):
        return rewards
    listed = [rewards] if callable(rewards) else list(rewards)
    return reward_set(listed) if listed else RewardSet({})


def first_coordinate(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return media[:, 0, 0, 0]


def flat_for_b(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """The first coordinate; all pictures of prompt b tie."""
    counts = torch.tensor([prompt != "b" for prompt in prompts])
    return first_coordinate(media, prompts) * counts


def flat(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """All pictures tie."""
    return torch.ones(len(media))


# --- the contract of a method: nothing else in the tests calls it ---------------------------------


def step_of(
    state: TrainState,
    batch: Batch,
    options: Any,
    rewards: Any = (),
    sampling: Sampling = SAMPLING,
) -> dict[str, float]:
    """Take one step of the method that ``options`` are of; ``rewards`` is a function, a list of
    them, or a set.
    """
    heads = rewards_of(rewards)
    return methods.step_of(options.name)(state, batch, heads, options, sampling)


def require(options: Any, sampling: Sampling) -> None:
    """Check options against each other and against ``sampling``; raises ValueError."""
    options.require(sampling)


def cost(options: Any, sampling: Sampling, rows: int) -> dict[str, int]:
    """Rows of the denoiser that one step promises at most, ``rows`` of them a sample."""
    return asdict(options.cost(sampling, rows))


def batch_kind(options: Any) -> str:
    """What a step's batch is: "prompts", "pairs" or "media"."""
    kind: str = options.batch_kind()
    return kind


def options_of(method: str, **values: Any) -> Any:
    return methods.options_of(method)(**values)


# --- one step on a toy ----------------------------------------------------------------------------


class Recorder(torch.optim.SGD):
    """SGD that remembers every step: the parameters before it, and their gradient."""

    def __init__(self, parameters: Any, lr: float):
        super().__init__(parameters, lr=lr)
        self.seen: list[tuple[list[Tensor], list[Tensor | None]]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = self.param_groups[0]["params"]
        gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
        self.seen.append(([p.detach().clone() for p in parameters], gradients))
        super().step(closure)


class Taken(NamedTuple):
    """A step's metrics, and the gradient of the toy's one parameter at every update."""

    metrics: dict[str, float]
    gradients: list[Tensor]


def take(
    method: str,
    model: Model,
    rewards: Any = first_coordinate,
    *,
    batch: Batch | None = None,
    texts: Sequence[str] = TEXTS,
    lr: float = 0.1,
    micro_batch: int = 4096,
    step: int = 0,
    sharded: bool = False,
    memory: dict[str, Any] | None = None,
    sampling: Sampling = SAMPLING,
    **options: Any,
) -> Taken:
    """Take one step on a toy: of ``batch``, or of prompts of ``texts``.

    All other keywords are the method's options. A test binds the method and its usual options by
    ``partial``.
    """
    state = state_of(model, lr=lr, micro_batch=micro_batch, step=step, sharded=sharded)
    if memory is not None:
        state.memory = memory
    given = prompts_of(model, *texts) if batch is None else batch
    metrics = step_of(state, given, options_of(method, **options), rewards, sampling)
    return Taken(metrics, gradients_of(state))


def gradients_of(state: TrainState) -> list[Tensor]:
    """The gradients that a Recorder saw, one an update."""
    assert isinstance(state.optimizer, Recorder)
    found = [gradient for _, (gradient,) in state.optimizer.seen]
    assert all(gradient is not None for gradient in found)
    return found  # type: ignore[return-value]


def state_of(
    model: Model,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    lr: float = 0.1,
    micro_batch: int = 4096,
    **more: Any,
) -> TrainState:
    """Make the state of a run whose gradients are not clipped; without an optimizer, a Recorder."""
    optimizer = optimizer or Recorder(model.parameters(), lr)
    return TrainState(
        model,
        optimizer,
        Accelerator(cpu=True),
        max_grad_norm=1e9,
        micro_batch=micro_batch,
        **more,
    )


# --- models ---------------------------------------------------------------------------------------


def toy(name: str = "toy-diffusion", **mixture: Any) -> Model:
    model = pipelines.load(name, **mixture)
    model.train_full()
    return model


def moved(name: str, scale: float = 0.1) -> Model:
    """A toy in two dimensions away from its reference, as after some training."""
    model = toy(name, **MIXTURE)
    (parameter,) = model.parameters()
    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        parameter.add_(scale * noise)
    return model


def closed_form(model: Model, steps: int, slope: float, beta: float) -> float:
    """slope V / beta, V <- m_t^2 V + std^2 along the chain: Var_ref(x_0 | x_T), m_t the slope of
    step t's mean.

    The optimum over trajectories tilts p(x_0 | x_T), a Gaussian of variance V, by exp(slope x_0 /
    beta).
    """
    variance = 0.0
    points = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    condition = model.encode_prompts(["a", "a"])
    for t, s in model.times(steps, (1, 1, 1)):
        with model.as_reference():
            output = model.predict(points, t, condition, 1.0)
        mean, std = model.process.transition(points, output, t, s, 1.0)
        variance = (mean[1] - mean[0]).item() ** 2 * variance + std.item() ** 2
    return slope * variance / beta


# --- batches --------------------------------------------------------------------------------------


def prompts_of(model: Model, *texts: str) -> Prompts:
    return Prompts(texts, model.encode_prompts(texts), range(len(texts)))


def media_of(model: Model, media: Tensor, texts: Sequence[str]) -> Media:
    """Pictures that are there: those of one text are adjacent, their ids 0, 1, ..."""
    return Media(texts, model.encode_prompts(texts), range(len(media)), media)


def pairs_of(model: Model, chosen: Tensor, rejected: Tensor, texts: Sequence[str]) -> Pairs:
    return Pairs(texts, model.encode_prompts(texts), range(len(texts)), chosen, rejected)


def pictures(count: int, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, 1, 1, generator=generator)


def count_rows(model: Model) -> list[int]:
    """Note the rows of every call of the trained network from now on."""
    counts: list[int] = []
    model.trainable["denoiser"].register_forward_pre_hook(
        lambda module, inputs: counts.append(len(inputs[0]))
    )
    return counts
