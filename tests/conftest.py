"""Fixtures shared by every package's tests; tests/tiny has the pipelines, tests/kits the rest."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Their assertions are shown with values, as those of test files are.
pytest.register_assert_rewrite("tests.kits")

# Tests compare with a CPU's arithmetic, bit by bit; those of a GPU are in test_cuda.py.
if "ALIGN_GEN_TEST_GPU" not in os.environ:
    os.environ.update(CUDA_VISIBLE_DEVICES="", ACCELERATE_USE_CPU="true")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion as ``from_pretrained`` reads it; shared, so only to be read."""
    from tests.tiny.stable_diffusion import stable_diffusion

    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """Make an adapter of a fresh pipeline: ``tiny_model(scheduler=…, seed=…, **unet options)``."""
    from align_gen.pipelines.families.stable_diffusion import StableDiffusion
    from tests.tiny.stable_diffusion import stable_diffusion

    return lambda **options: StableDiffusion(stable_diffusion(**options))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny networks cost more to share than they save; and bits depend on the count of threads."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start the global generator, from which peft draws a LoRA, alike in every test."""
    import torch

    torch.manual_seed(0)
