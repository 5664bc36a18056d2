"""A method's training step beside its floor: the calls that its algorithm needs, times what they
cost bare.

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
from .setting import Setting
from .timing import Row, in_turns, row

RECIPES = {"emoji-sd": "emoji-sd-prdp", "emoji-flow": "emoji-flow-prdp"}
METHODS = {  # a step of 32 images each, of two prompts
    "prdp": ["method.prompts_per_step=2"],
    "prdp, gradient_steps 1": ["method.prompts_per_step=2", "method.gradient_steps=1"],
    "ddpo": ["method={name: ddpo, images_per_prompt: 16, prompts_per_step: 2, clip: 4.0e-3}"],
    "ddpo, keep_graph": [
        "method={name: ddpo, images_per_prompt: 16, prompts_per_step: 2, clip: 4.0e-3, keep_graph: true}"
    ],
    "grpo": ["method={name: grpo, images_per_prompt: 16, prompts_per_step: 2, clip: 4.0e-3}"],
    "nft": ["method={name: nft, images_per_prompt: 16, prompts_per_step: 2, times_per_image: 4}"],
    "rwr": [
        "method={name: rwr, images_per_prompt: 16, prompts_per_step: 2, weights: exponential, gradient_steps: 4}"
    ],
    "raft": ["method={name: raft, images_per_prompt: 2, prompts_per_step: 16, gradient_steps: 4}"],
    "dpo, online": [
        "method={name: dpo, online: true, images_per_prompt: 2, prompts_per_step: 16, gradient_steps: 4}"
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
    """Rows of every method on every model: ours, the same as a plain loop, and a rival of ddpo on
    emoji-sd.

    Args:
        against: a factory of rivals, from a Setting to ``(name, images, work)``.
    """
    from .plain import plain_step

    for name, bundle in ((model, RECIPES[model]) for model in models):
        for method, options in METHODS.items():
            setting = Setting.of(Recipe.load(bundle, options), accelerator)
            setting.step()  # encodes texts, fills caches
            bare = Bare.of(setting)
            works: dict[str, Callable[[], Any]] = {"step": setting.step, **bare.works}
            rival = (
                against(setting)
                if against is not None and (name, method) == ("emoji-sd", "ddpo")
                else None
            )
            if rival is not None:
                works["rival"] = rival[2]
            if setting.recipe.method["name"] in PLAIN:
                works["plain"] = lambda setting=setting: plain_step(setting)  # type: ignore[misc]
            counted: list[dict[str, int]] = []
            works["step"] = lambda setting=setting, counted=counted: counted.append(
                count_calls(setting)
            )  # type: ignore[misc]
            seconds = in_turns(works, rounds, accelerator.device)
            floors = [
                bare.floor(calls, {k: v[i] for k, v in seconds.items()})
                for i, calls in enumerate(counted)
            ]
            calls = {key: statistics.median(each[key] for each in counted) for key in counted[0]}
            yield row(method, name, setting.images, seconds["step"], floors, calls)
            if "plain" in seconds:
                yield row(f"{method}, plain loop", name, setting.images, seconds["plain"], floors)
            if rival is not None:
                yield row(rival[0], name, rival[1], seconds["rival"])


def count_calls(setting: Setting) -> dict[str, int]:
    """Take a step; rows that passed the network without and with a graph, images decoded and
    scored.
    """
    counts = {"forwards": 0, "backwards": 0, "decoded": setting.images, "scored": setting.images}

    def count(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows = len(inputs[0] if inputs else named["hidden_states"])
        counts["backwards" if torch.is_grad_enabled() else "forwards"] += rows

    modules = setting.model.trainable.values()
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(count, with_kwargs=True).remove)
        setting.step()
    return counts


@dataclass
class Bare:
    """The bare calls of a setting, each at its best batch size: ``works[kind]`` does
    ``sizes[kind]`` of them.
    """

    works: dict[str, Callable[[], Any]]
    sizes: dict[str, int]

    @classmethod
    def of(cls, setting: Setting) -> "Bare":
        works, sizes = {}, {}
        for kind, make in (
            ("forwards", _forward),
            ("backwards", _backward),
            ("decoded", _decode),
            ("scored", _score),
        ):
            tried = {size: make(setting, size) for size in BATCHES}
            seconds = in_turns(
                {str(size): work for size, work in tried.items()}, 3, setting.model.device
            )
            best = min(BATCHES, key=lambda size: min(seconds[str(size)]) / size)
            works[kind], sizes[kind] = tried[best], best
        return cls(works, sizes)

    def floor(self, calls: dict[str, int], seconds: dict[str, float]) -> float:
        """What a step's calls cost at the seconds of one round."""
        return sum(calls[kind] * seconds[kind] / size for kind, size in self.sizes.items())


def _network_call(setting: Setting, rows: int) -> Callable[[], Tensor]:
    """The trained network on real inputs of so many rows, as ``predict`` would call it with
    guidance.
    """
    model = setting.model
    sampling = setting.recipe.sampling
    (network,) = model.trainable.values()
    texts = setting.data.prompts[: rows // 2]
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


def _forward(setting: Setting, rows: int) -> Callable[[], Any]:
    call = _network_call(setting, rows)
    return lambda: torch.no_grad()(call)()


def _backward(setting: Setting, rows: int) -> Callable[[], Any]:
    call = _network_call(setting, rows)
    parameters = setting.model.parameters()

    def work() -> None:
        call().sum().backward()
        for parameter in parameters:
            parameter.grad = None

    return work


def _latents(setting: Setting, images: int) -> Tensor:
    model = setting.model
    sampling = setting.recipe.sampling
    shape = model.latent_shape(
        sampling.height or model.default_size[0], sampling.width or model.default_size[1]
    )
    return torch.randn(images, *shape).to(model.device)


def _decode(setting: Setting, images: int) -> Callable[[], Any]:
    latents = _latents(setting, images)
    return lambda: torch.no_grad()(setting.model.decode)(latents)


def _score(setting: Setting, images: int) -> Callable[[], Any]:
    with torch.no_grad():
        media = setting.model.decode(_latents(setting, images)).float()
    prompts = setting.data.prompts[:images]
    return lambda: torch.no_grad()(setting.rewards)(media, prompts)
