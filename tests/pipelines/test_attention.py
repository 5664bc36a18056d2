"""Attention kernels: each agrees with plain arithmetic, belongs to one model, and is refused where
it cannot run.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from align_gen import pipelines
from align_gen.pipelines import Model
from align_gen.pipelines.attention import (
    KERNELS,
    _set,
    attend,
    attention_of,
    describe,
    kernel_error,
    kernel_of,
    use_attention,
)
from tests.tiny import PIPELINES

CPU = torch.device("cpu")
HERE = [name for name in ("sdpa", *KERNELS) if kernel_error(name, 16, torch.float32, CPU) is None]


def output(model: Model) -> Tensor:
    """Of the network, with its gradient to the input, which is another kernel's work."""
    condition = model.encode_prompts(["a cat"], height=16, width=16)
    x = torch.randn(
        1, *condition.latent_shape, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    made = model.predict(x, model.times(4, condition.latent_shape)[1, 0], condition, 3.0)
    (gradient,) = torch.autograd.grad(made.square().sum(), x)
    return torch.cat([made.detach(), gradient])


@pytest.mark.parametrize("name", HERE)
def test_a_kernel_is_softmax_of_query_key_times_value(name: str) -> None:
    query, key, value = torch.randn(
        3, 2, 3, 20, 16, generator=torch.Generator().manual_seed(0)
    ).unbind()
    expected = (query @ key.mT / 16**0.5).softmax(-1) @ value
    assert torch.allclose(attend(name, query, key, value), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
@pytest.mark.parametrize("name", HERE)
def test_every_kernel_here_draws_what_math_draws(family: str, name: str) -> None:
    """U-Net, joint attention, and a processor of the dispatcher."""
    model = pipelines.load(PIPELINES[family]())
    use_attention(model, "math")
    expected = output(model)
    (counts,) = use_attention(model, name).values()
    assert set(counts) == {name}
    assert (output(model) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_choice_is_one_models_and_can_be_taken_back() -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    one, other = (pipelines.load(PIPELINES["flux"]()) for _ in range(2))
    before = _AttentionBackendRegistry.get_active_backend()
    kind = type(next(iter(one.pipeline.transformer.attn_processors.values())))
    use_attention(one, "math")
    assert set(attention_of(one)["transformer"]) == {"math"}
    assert set(attention_of(other)["transformer"]) == {"sdpa"}
    assert _AttentionBackendRegistry.get_active_backend() == before
    use_attention(one, "sdpa")
    assert {type(processor) for processor in one.pipeline.transformer.attn_processors.values()} == {
        kind
    }


def test_auto_on_a_cpu_is_torchs_own_choice() -> None:
    """And it is said in one line: the tiny U-Net has 8 attention modules."""
    assert describe(use_attention(pipelines.load(PIPELINES["sd"]()), "auto")) == "unet 8 x sdpa"


@pytest.mark.parametrize("name", [name for name in (*KERNELS, "xformers") if name not in HERE])
def test_a_kernel_that_does_not_run_here_is_refused_and_nothing_changes(name: str) -> None:
    model = pipelines.load(PIPELINES["sd"]())
    with pytest.raises(
        ValueError, match=rf"^attention {name}: not here, with heads of 2 in torch.float32 on cpu: "
    ):
        use_attention(model, name)
    assert describe(attention_of(model)) == "unet 8 x sdpa"


def test_an_unknown_name_lists_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"want one of .*'xformers'"):
        use_attention(pipelines.load(PIPELINES["sd"]()), "fast")


def test_a_kernel_that_cannot_take_what_it_is_given_says_so() -> None:
    """As a mask, on a kernel that takes none: found in the middle of a call, named like a user's
    mistake.
    """
    model = pipelines.load(PIPELINES["sd"]())
    module = next(m for m in model.pipeline.unet.modules() if hasattr(m, "set_processor"))
    _set(module, "cudnn")
    with pytest.raises(
        ValueError, match="attention cudnn: cannot take what AttnProcessor2_0 gives it"
    ):
        output(model)


@pytest.mark.parametrize("name", HERE)
def test_a_frozen_copy_made_after_the_choice_carries_it(name: str) -> None:
    model = pipelines.load(PIPELINES["sd"]())
    use_attention(model, name)
    model.train_full()
    modules = [m for m in model.reference_copies["unet"].modules() if hasattr(m, "set_processor")]
    assert {kernel_of(module) for module in modules} == {name}


@pytest.mark.slow
def test_xformers_on_a_cpu_is_silent() -> None:
    """With the real package where it is installed (extra "dev"); importing and drawing print
    nothing.
    """
    pytest.importorskip("xformers")
    code = (
        "from align_gen import pipelines; from tests.tiny import PIPELINES;"
        "from align_gen.pipelines.attention import use_attention;"
        "use_attention(pipelines.load(PIPELINES['sd']()), 'auto')"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
