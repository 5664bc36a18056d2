"""Measure a training step beside its floor: the calls its algorithm needs, times their bare cost.

The floor of a step is

    forwards x f + (forward and backwards) x b + images x (decoded + scored)

with f, b the seconds of one row of the bare network, and the others of one image, each at the best
of a few batch sizes. All are measured in turns with the step itself. Calls are counted while a step
runs, so the floor has no call that the step leaves out; that none is made in vain is for the tables
of ``methods.NAME.calls`` to say.
"""

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..training.recipe import Recipe
from ..training.setup import Session
from .timing import Row, in_turns, row

RECIPES = {"emoji-sd": "emoji-sd-prdp", "emoji-flow": "emoji-flow-prdp"}
METHODS = {  # a step of 32 images each, of two prompts
    "prdp": ["method.prompts_per_step=2"],
    "prdp, gradient_steps 1": ["method.prompts_per_step=2", "method.gradient_steps=1"],
    "ddpo": ["method={name: ddpo, images_per_prompt: 16, prompts_per_step: 2, clip: 4.0e-3}"],
    "ddpo, keep_graph": [
        "method={name: ddpo, images_per_prompt: 16, prompts_per_step: 2, clip: 4.0e-3, "
        "keep_graph: true}"
    ],
    "grpo": ["method={name: grpo, images_per_prompt: 16, prompts_per_step: 2, clip: 4.0e-3}"],
    "nft": ["method={name: nft, images_per_prompt: 16, prompts_per_step: 2, times_per_image: 4}"],
    "rwr": [
        "method={name: rwr, images_per_prompt: 16, prompts_per_step: 2, weights: exponential, "
        "gradient_steps: 4}"
    ],
    "raft": ["method={name: raft, images_per_prompt: 2, prompts_per_step: 16, gradient_steps: 4}"],
    "dpo, online": [
        "method={name: dpo, online: true, images_per_prompt: 2, prompts_per_step: 16, "
        "gradient_steps: 4}"
    ],
}
PLAIN = ("prdp", "ddpo")  # that a plain loop is written for
BATCHES = (16, 32, 64)  # rows or images that bare calls are tried at


def bench_steps(
    accelerator: Accelerator,
    models: Sequence[str] = tuple(RECIPES),
    *,
    rounds: int = 7,
    against: Any = None,
) -> Iterator[Row]:
    """Time every method on every model: ours, a plain loop, and on emoji-sd a rival of ddpo.

    Args:
        against: a factory of rivals, from a Session to ``(name, images, work)``.
    """
    from .plain import plain_step

    for name, bundle in ((model, RECIPES[model]) for model in models):
        for method, options in METHODS.items():
            # Held-out rewards are not part of a step.
            recipe = Recipe.load(bundle, options).replace(eval_rewards={})
            session = Session.of(recipe, accelerator)
            session.step()  # encodes texts, fills caches
            bare = Bare.of(session)
            works: dict[str, Callable[[], Any]] = {"step": session.step, **bare.works}
            # The rival is a DDPO alone, and of one model.
            rival = (
                against(session)
                if against is not None and (name, method) == ("emoji-sd", "ddpo")
                else None
            )
            if rival is not None:
                works["rival"] = rival[2]
            if session.recipe.method.name in PLAIN:
                works["plain"] = lambda session=session: plain_step(session)  # type: ignore[misc]
            counted: list[dict[str, int]] = []
            # Our step is counted while it is timed, so that its floor is of these very calls.
            works["step"] = lambda session=session, counted=counted: counted.append(
                count_calls(session)
            )  # type: ignore[misc]
            seconds = in_turns(works, rounds, accelerator.device)
            floors = [
                bare.floor(calls, {k: v[i] for k, v in seconds.items()})
                for i, calls in enumerate(counted)
            ]
            calls = {key: statistics.median(each[key] for each in counted) for key in counted[0]}
            yield row(method, name, session.recipe.method.images, seconds["step"], floors, calls)
            if "plain" in seconds:
                yield row(
                    f"{method}, plain loop",
                    name,
                    session.recipe.method.images,
                    seconds["plain"],
                    floors,
                )
            if rival is not None:
                yield row(rival[0], name, rival[1], seconds["rival"])


def count_calls(session: Session) -> dict[str, int]:
    """Take a step; count rows with and without a graph, and images decoded and scored."""
    counts = {
        "forwards": 0,
        "backwards": 0,
        "decoded": session.recipe.method.images,
        "scored": session.recipe.method.images,
    }

    def count(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows = len(inputs[0] if inputs else named["hidden_states"])
        counts["backwards" if torch.is_grad_enabled() else "forwards"] += rows

    modules = session.model.trainable.values()
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(count, with_kwargs=True).remove)
        session.step()
    return counts


@dataclass
class Bare:
    """Bare calls of a session, each at its best batch size.

    ``works[kind]`` makes ``sizes[kind]`` calls at once.
    """

    works: dict[str, Callable[[], Any]]
    sizes: dict[str, int]

    @classmethod
    def of(cls, session: Session) -> "Bare":
        works, sizes = {}, {}
        for kind, make in (
            ("forwards", _forward),
            ("backwards", _backward),
            ("decoded", _decode),
            ("scored", _score),
        ):
            tried = {size: make(session, size) for size in BATCHES}
            seconds = in_turns(
                {str(size): work for size, work in tried.items()}, 3, session.model.device
            )
            best = min(BATCHES, key=lambda size: min(seconds[str(size)]) / size)
            works[kind], sizes[kind] = tried[best], best
        return cls(works, sizes)

    def floor(self, calls: dict[str, int], seconds: dict[str, float]) -> float:
        """What a step's calls cost at the seconds of one round."""
        return sum(calls[kind] * seconds[kind] / size for kind, size in self.sizes.items())


def _network_call(session: Session, rows: int) -> Callable[[], Tensor]:
    """A call of the trained network on so many real rows, as ``predict`` makes it with guidance."""
    model = session.model
    sampling = session.recipe.sampling
    (network,) = model.trainable.values()
    texts = session.data.prompts[: rows // 2]
    condition = model.encode_prompts(texts, height=sampling.height, width=sampling.width)
    x = torch.randn(len(condition), *condition.latent_shape).to(model.device)
    t = model.times(sampling.num_inference_steps, condition.latent_shape)[0, 0]
    caught: list[Any] = []
    hook = network.register_forward_pre_hook(lambda _, *call: caught.append(call), with_kwargs=True)
    with torch.no_grad():
        model.predict(x, t, condition, sampling.guidance_scale)
    hook.remove()
    [(inputs, named)] = caught
    return lambda: network(*inputs, **named)[0]


def _forward(session: Session, rows: int) -> Callable[[], Any]:
    call = _network_call(session, rows)
    return lambda: torch.no_grad()(call)()


def _backward(session: Session, rows: int) -> Callable[[], Any]:
    call = _network_call(session, rows)
    parameters = session.model.parameters()

    def work() -> None:
        call().sum().backward()
        for parameter in parameters:
            parameter.grad = None

    return work


def _latents(session: Session, images: int) -> Tensor:
    model = session.model
    sampling = session.recipe.sampling
    shape = model.latent_shape(
        sampling.height or model.default_size[0], sampling.width or model.default_size[1]
    )
    return torch.randn(images, *shape).to(model.device)


def _decode(session: Session, images: int) -> Callable[[], Any]:
    latents = _latents(session, images)
    return lambda: torch.no_grad()(session.model.decode)(latents)


def _score(session: Session, images: int) -> Callable[[], Any]:
    with torch.no_grad():
        media = session.model.decode(_latents(session, images)).float()
    prompts = session.data.prompts[:images]
    return lambda: torch.no_grad()(session.rewards)(media, prompts)
