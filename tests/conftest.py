"""Fixtures shared by every package's tests. What builds the tiny pipelines is ``tests/tiny.py``."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Tests compare with a CPU's arithmetic, bit by bit; those of a GPU are in test_cuda.py.
if "ALIGN_GEN_TEST_GPU" not in os.environ:
    os.environ.update(CUDA_VISIBLE_DEVICES="", ACCELERATE_USE_CPU="true")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion as ``from_pretrained`` reads it. Only to be read: every test shares
    it.
    """
    from tests.tiny.stable_diffusion import stable_diffusion

    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """Makes an adapter of a fresh tiny pipeline: ``tiny_model(scheduler=…, seed=…, **unet
    options)``.
    """
    from align_gen.pipelines.families.stable_diffusion import StableDiffusion
    from tests.tiny.stable_diffusion import stable_diffusion

    return lambda **options: StableDiffusion(stable_diffusion(**options))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny networks: sharing their work costs more than it saves; and bit-identity wants equal
    thread counts.
    """
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The global generator, from which peft draws a LoRA, starts alike in every test, whatever ran
    before.
    """
    import torch

    torch.manual_seed(0)
