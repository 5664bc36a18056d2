"""The memory estimate of a dry run: what it is made of, and what a real step of the emoji model really takes."""

import json
import os
import subprocess
import sys

import pytest
import torch

from align_gen import Recipe
from align_gen.dry_run import estimate, outline
from align_gen.peak_memory import PeakMemory

STEP = """
import json, sys
import torch

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

from accelerate import Accelerator
from align_gen import Recipe
from align_gen.batches import Prompts
from align_gen.engine import load_model, prepare_model, prepare_state
from align_gen.methods import prdp
from align_gen.reward_heads import reward_set

recipe = Recipe.load("emoji-sd-prdp", json.loads(sys.argv[1]))
torch.set_num_threads(1)

def ready():
    model = load_model(recipe)
    prepare_model(recipe, model)
    condition = model.encode_prompts(["one apple", "one pear"], height=64, width=64)
    return prepare_state(recipe, model, Accelerator(cpu=True)), Prompts(["one apple", "one pear"], condition, [0, 1])

ready()  # libraries take memory of their own when they are first used; that is not the model's
before = status("VmRSS")
state, batch = ready()
prdp.step(state, batch, state.model, reward_set(["jpeg_size"]), recipe.method_options(), recipe.sampling)
print(json.dumps(status("VmHWM") - before))
"""
SMALL = ["sampling.num_inference_steps=2", "method.prompts_per_step=2", "method.keep=null", "optim.micro_batch=32"]
# glibc keeps freed memory for later, in pieces that may not fit: here, what is freed goes back at once.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "0"}


@pytest.mark.parametrize(
    "more", [[], ["memory.checkpointing=true"], ["model.lora=null"]], ids=["lora", "checkpointing", "full"]
)
def test_the_estimate_is_within_a_fifth_of_what_a_step_takes(more: list[str]) -> None:
    overrides = [*SMALL, *more]
    command, env = [sys.executable, "-c", STEP, json.dumps(overrides)], {**os.environ, **GIVE_BACK}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    measured = float(done.stdout.splitlines()[-1])
    recipe = Recipe.load("emoji-sd-prdp", overrides)
    expected = estimate(outline(recipe), recipe).peak
    print(f"{more}: estimated {expected / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert 0.8 <= expected / measured <= 1.2


def test_bytes_are_counted_while_they_live() -> None:
    """1000 floats and their double, 8000 bytes; then the first is freed, a view is nothing new, and a 10 x 10 comes."""
    with PeakMemory() as memory:
        first = torch.zeros(1000)
        second = first * 2
        del first
        product = second.view(10, 100) @ second.view(100, 10)
        assert (memory.now, memory.peak) == (4400, 8000)
        del second, product
        assert memory.now == 0


def test_what_was_there_before_is_not_counted() -> None:
    weight = torch.zeros(1000)
    with PeakMemory() as memory:
        weight.t()
        weight.add_(1)
    assert memory.peak == 0
