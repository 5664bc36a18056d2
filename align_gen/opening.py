"""Open models and rewards by name: a bundled one, a path, a hub name, or an open object."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bundled
from .precision import dtype_of

if TYPE_CHECKING:
    import torch

    from .pipelines import Model
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
    elif isinstance(spec, str):
        rewards = reward_set([spec])
    else:
        rewards = reward_set(bundled.reward_spec(spec) if isinstance(spec, dict) else spec)
    return rewards if device is None else rewards.to(device)
