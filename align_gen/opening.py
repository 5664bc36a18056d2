"""Open models and rewards by name: a bundled one, a path, a hub name, or an open object."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bundled
from .errors import UserError
from .precision import dtype_of

if TYPE_CHECKING:
    import torch

    from .pipelines import Model
    from .pipelines.guidance import Guide
    from .reward_heads import RewardSet


def open_model(
    source: Any,
    *,
    dtype: str = "fp32",
    adapter: str | Path | None = None,
    attention: str | None = None,
    device: "torch.device | str | None" = None,
) -> "Model":
    """A model by name, or a diffusers pipeline or Model that is open already, ready to run.

    Args:
        source: a bundled name, a pipeline folder, a hub name ``owner/model``, or an object.
        dtype: of the weights: fp32, bf16 or fp16; an object keeps its own.
        adapter: an export of ``finetune`` to load on top.
        attention: a kernel, see ``pipelines.attention``; None leaves what the pipeline has.
        device: where to; None leaves it where it is.

    Raises:
        ValueError: no such model, or an adapter that does not fit.
    """
    from . import pipelines
    from .pipelines.attention import use_attention

    source = bundled.generator_path(source) if isinstance(source, str) else source
    model = pipelines.load(source, dtype=dtype_of(dtype))
    if adapter is not None:
        model.reload(Path(adapter))
    if device is not None:
        model.to(device)
    if attention is not None:
        use_attention(model, attention)
    return model


def open_rewards(spec: Any, device: "torch.device | str | None" = None) -> "RewardSet":
    """Rewards as a set, from names, callables, heads, or a mapping to weights or options.

    See ``reward_heads.reward_set``; ``path`` may name a bundled model.

    Raises:
        ValueError: no such reward, or an option that it has not.
    """
    from .reward_heads import RewardSet, reward_set

    if isinstance(spec, RewardSet):
        rewards = spec
    else:
        rewards = reward_set(bundled.reward_spec(spec) if isinstance(spec, dict) else spec)
    return rewards if device is None else rewards.to(device)


def open_guide(guide: "Guide | None", device: "torch.device | str | None" = None) -> "Guide | None":
    """A guide with its rewards open: a ``BestOf`` may name them in any way of ``open_rewards``.

    A reward set checks what each head returns, so that no picture is chosen by a wrong shape or a
    NaN.

    Raises:
        ValueError: no such reward, or one that needs more than pictures and prompts.
    """
    from .pipelines.guidance.best_of import BestOf
    from .reward_heads import RewardSet

    # A set is the caller's own, and stays where it is.
    if not isinstance(guide, BestOf) or isinstance(guide.reward, RewardSet):
        return guide
    rewards = open_rewards(guide.reward, device)
    rewards.require(())
    return replace(guide, reward=rewards)


def code_named(data: Mapping[str, Any]) -> dict[str, str]:
    """The keys of a recipe's data under which rewards are named by their code, and those names."""
    from .reward_heads.code import code_in

    found = {}
    for section in ("rewards", "eval_rewards"):
        spec = data.get(section)
        for key, name in code_in(spec) if isinstance(spec, Mapping) else ():
            found[f"{section}.{key}"] = name
    return found


def refuse_code(named: Mapping[str, str], source: str) -> None:
    """UserError where a file names code, which its author wrote and the user may not have read."""
    for key, name in named.items():
        raise UserError(
            f"{source}: {key}: {name!r} runs code; want --allow-code "
            "(in Python: Recipe.load(…, allow_code=True))"
        )
