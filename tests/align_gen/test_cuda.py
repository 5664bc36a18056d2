"""On a GPU what a CPU computes, within rounding; the kernels and half precision that only run
there; its memory.
"""

import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from align_gen import bundled, pipelines, sample, score
from align_gen.bench.sizes import bench_sizes
from align_gen.check.laws import check
from align_gen.check.subject import Subject
from align_gen.galleries.gallery import Gallery
from align_gen.pipelines.attention import attention_of, kernel_error, use_attention
from align_gen.precision import exact_float32
from align_gen.reward_heads import reward_set
from align_gen.training.engine import finetune
from align_gen.training.recipe import Recipe
from align_gen.training.setup import Session
from tests.tiny import failed

# make gpu sets the variable, and fails where there is none
WANTED = torch.cuda.is_available() or "ALIGN_GEN_TEST_GPU" in os.environ
pytestmark = pytest.mark.skipif(not WANTED, reason="no CUDA device")
SMALL = [
    "sampling.num_inference_steps=4",
    "method.images_per_prompt=4",
    "method.prompts_per_step=2",
]
METHODS = {
    "prdp": ["method.keep=2"],
    "ddpo": ["method={name: ddpo, images_per_prompt: 4, prompts_per_step: 2, clip: 4.0e-3}"],
    "nft": ["method={name: nft, images_per_prompt: 4, prompts_per_step: 2, times_per_image: 2}"],
    "dpo": [
        "method={name: dpo, online: true, images_per_prompt: 4, prompts_per_step: 2, beta: 1000.0}"
    ],
}


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Which device accelerate uses is a matter of the process; each test chooses anew."""
    AcceleratorState._reset_state(reset_partial_state=True)


def gallery(device: str, folder: Path) -> Gallery:
    model = pipelines.load(bundled.model_path("emoji-sd"))
    model.to(device)
    prompts = ["a red apple", "a dog"]
    return sample(
        model, prompts, out=folder, seeds=(0, 1), num_inference_steps=10, height=64, width=64
    )


def test_a_picture_is_the_same_on_both(tmp_path: Path) -> None:
    """Noise is drawn on the CPU. Stored pictures have 255 levels; rounding may move a pixel by some
    of them.
    """
    here, there = gallery("cpu", tmp_path / "cpu"), gallery("cuda", tmp_path / "cuda")
    for place in range(len(here)):
        difference = (here.image(place) - there.image(place)).abs()
        assert difference.mean() < 1e-3 and difference.max() < 0.05


def test_a_score_is_the_same_on_both() -> None:
    pictures = Gallery.load(bundled.PICTURES)
    spec = bundled.reward_spec({"clip": {"path": "emoji-clip"}})
    here, there = (score(pictures, reward_set(spec).to(device)) for device in ("cpu", "cuda"))
    for a, b in zip(here.heads["clip"], there.heads["clip"], strict=True):
        assert a is not None and b is not None and abs(a - b) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_the_same_on_both(method: str) -> None:
    """The trained LoRA moves alike: Adam's first step is nearly the sign of the gradient, so
    moments are compared.
    """
    recipe = Recipe.load(
        "emoji-sd-prdp", [*METHODS[method], *SMALL[:1], *(SMALL[1:] if method == "prdp" else [])]
    )
    moments = []
    for cpu in (True, False):
        AcceleratorState._reset_state(reset_partial_state=True)
        setting = Session.of(recipe, Accelerator(cpu=cpu))
        with exact_float32():
            setting.step()
        assert setting.model.device.type == ("cpu" if cpu else "cuda")
        state = setting.state.optimizer.state_dict()["state"]
        moments.append(torch.cat([each["exp_avg"].flatten().cpu() for each in state.values()]))
    here, there = moments
    assert here.norm() > 0 and (here - there).norm() / here.norm() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["auto", "xformers", "flash", "efficient", "cudnn", "math"])
def test_the_laws_hold_with_every_kernel(kernel: str, dtype: torch.dtype) -> None:
    model = pipelines.load(bundled.model_path("emoji-sd"), dtype=dtype)
    model.to("cuda")
    try:
        use_attention(model, kernel)
    except ValueError as error:  # flash has no float32, cudnn no such head; the message says which
        pytest.skip(str(error))
    assert not failed(check(Subject.of(model)))


def test_xformers_is_what_auto_takes_where_it_runs() -> None:
    """It is built for one version of torch; with another it has no kernel, and auto takes torch's
    own.
    """
    model, device = (
        pipelines.load(bundled.model_path("emoji-sd"), dtype=torch.bfloat16),
        torch.device("cuda"),
    )
    use_attention(model, device=device)
    runs = kernel_error("xformers", 24, torch.bfloat16, device) is None
    assert ("xformers" in attention_of(model)["unet"]) == runs


def test_the_estimate_is_within_a_fifth_of_what_a_gpu_takes() -> None:
    """Stable Diffusion 1.5 at 512 x 512, random weights, two real steps."""
    (row,) = bench_sizes(
        Accelerator(mixed_precision="bf16"), ("stable-diffusion-v1-5/stable-diffusion-v1-5",)
    )
    assert row.peak is not None and 0.8 <= row.estimate / row.peak <= 1.2


def test_a_run_is_resumed_on_a_gpu(tmp_path: Path) -> None:
    """Cut in its second step and begun again, it ends as it does undisturbed: kernels that add in
    any order allow.
    """

    def cut(phase: str, done: int, total: int, numbers: object) -> None:
        if (phase, done) == ("train", 2):
            raise InterruptedError

    small = [
        "run.steps=3",
        "run.save_every=1",
        "method.keep=2",
        "evaluate={every: 0, seeds: [0], batch_size: 80}",
    ]
    recipe = Recipe.load("emoji-sd-prdp", [*SMALL, *small])
    whole = finetune(recipe, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        finetune(recipe, tmp_path / "cut", progress=cut)
    again = finetune(recipe, tmp_path / "cut")
    assert [line["step"] for line in again.metrics] == [line["step"] for line in whole.metrics]
    for name in ("loss", "grad_norm", "reward/combined"):
        first, second = (
            next(line[name] for line in run.metrics if line["step"] == 3) for run in (whole, again)
        )
        assert first == pytest.approx(second, rel=0.02)
