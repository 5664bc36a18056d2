"""Write docs/memory.md: what saves memory, measured on the emoji model, estimated at real sizes.

    python scripts/write_memory.py
    python scripts/write_memory.py --measure step [--set optim.micro_batch=8 …]  # one figure, bytes

A figure is measured in a process of its own: the growth of its resident memory over what the same
work left behind when it was done once before, so that libraries do not count. Freed memory goes
back to the system at once, where glibc would keep it for later.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from align_gen import Recipe, pipelines
from align_gen.training.dry_run import MemoryEstimate, estimate, outline
from align_gen.training.memory import encode_and_free
from align_gen.training.setup import load_model, prepare_model, prepare_state

ROOT = Path(__file__).resolve().parent.parent
GIVE_BACK = {  # variables of glibc: freed memory goes back to the system at once
    "MALLOC_MMAP_THRESHOLD_": "16384",
    "MALLOC_MMAP_MAX_": "1000000",
    "MALLOC_TRIM_THRESHOLD_": "0",
}
RECIPE = "emoji-sd-prdp"
SMALL = (
    "sampling.num_inference_steps=2",
    "method.prompts_per_step=2",
    "method.keep=null",
    "optim.micro_batch=32",
    "evaluate.batch_size=32",
)
TEXTS = ["one apple", "one pear"]


# --- one figure -----------------------------------------------------------------------------------


def status(key: str) -> int:
    """Bytes, from this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def a_step(recipe: Recipe) -> None:
    """Load the model and take one PRDP step."""
    from accelerate import Accelerator

    from align_gen import methods
    from align_gen.methods.batches import Prompts, encode
    from align_gen.reward_heads import reward_set

    model = load_model(recipe)
    prepare_model(recipe, model)
    condition = encode(model, TEXTS, recipe.sampling)
    state = prepare_state(recipe, model, Accelerator(cpu=True))
    batch = Prompts(TEXTS, condition, [0, 1])
    take_step = methods.step_of(recipe.method.name)
    take_step(state, batch, reward_set(["jpeg_size"]), recipe.method, recipe.sampling)


def a_decoding(recipe: Recipe) -> None:
    """Load the model and decode 64 pictures of 256 x 256."""
    model = load_model(recipe)
    prepare_model(recipe, model)
    with torch.no_grad():
        model.decode(torch.zeros(64, *model.latent_shape(256, 256)))


def only_prompts(recipe: Recipe) -> None:
    """Load the model, encode, and drop the text encoders where the recipe says so; rest counts."""
    loaded.append(load_model(recipe))
    if recipe.memory.free_text_encoders:
        encode_and_free(loaded[-1], TEXTS)
    gc.collect()


loaded: list[pipelines.Model] = []  # so that it is there when the memory is read
# The work, and the line of /proc/self/status that says its memory: a peak, or what stays.
WORK: dict[str, tuple[Callable[[Recipe], None], str]] = {
    "step": (a_step, "VmHWM"),
    "decoding": (a_decoding, "VmHWM"),
    "prompts": (only_prompts, "VmRSS"),
}


def measure(what: str, recipe: Recipe) -> int:
    """Bytes of some work in this process; it runs twice, and the second time's growth counts."""
    torch.set_num_threads(1)
    work, key = WORK[what]
    work(recipe)
    loaded.clear()
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the first peak
    work(recipe)
    return status(key) - before


def measured(what: str, *overrides: str) -> float:
    """MiB of some work, measured in a process of its own."""
    options = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, __file__, "--measure", what, *options]
    done = subprocess.run(
        command, env={**os.environ, **GIVE_BACK}, stdout=subprocess.PIPE, check=True
    )
    return int(json.loads(done.stdout.splitlines()[-1])) / 2**20


# --- the page -------------------------------------------------------------------------------------

STEPS = {
    "micro-batch of 32, LoRA": (),
    "`optim.micro_batch: 8`": ("optim.micro_batch=8",),
    "`memory.checkpointing`": ("memory.checkpointing=true",),
    "both": ("memory.checkpointing=true", "optim.micro_batch=8"),
    "every weight (`model.lora: null`)": ("model.lora=null",),
    "every weight, `memory.checkpointing`": ("model.lora=null", "memory.checkpointing=true"),
}
SIZES = {
    "SD 1.5, 512 x 512": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "SDXL, 1024 x 1024": "stabilityai/stable-diffusion-xl-base-1.0",
    "SD 3.5 Medium, 1024 x 1024": "stabilityai/stable-diffusion-3.5-medium",
    "SD 3.5 Large, 1024 x 1024": "stabilityai/stable-diffusion-3.5-large",
    "FLUX.1 dev, 1024 x 1024": "black-forest-labs/FLUX.1-dev",
    "Qwen-Image, 1024 x 1024": "Qwen/Qwen-Image",
}


def step_row(name: str, overrides: tuple[str, ...]) -> str:
    """One way of taking a step, measured and estimated, as a row of Markdown."""
    recipe = Recipe.load(RECIPE, [*SMALL, *overrides])
    estimated = estimate(outline(recipe), recipe).peak / 2**20
    return f"| {name} | {measured('step', *overrides):,.0f} | {estimated:,.0f} |"


def size_estimate(path: str, checkpointing: str) -> MemoryEstimate:
    """What a published model needs, one picture at a time and without its text encoders."""
    settings = ["memory.free_text_encoders=true", "optim.micro_batch=1", "evaluate.batch_size=1"]
    settings += ["sampling.height=null", "sampling.width=null"]
    settings += [f"model.path={path}", f"memory.checkpointing={checkpointing}"]
    recipe = Recipe.load("sd15-prdp", settings)
    return estimate(outline(recipe), recipe)


def size_row(name: str, path: str) -> str:
    """One published model as a row of Markdown."""
    whole = size_estimate(path, "false")
    saved = size_estimate(path, "true")
    columns = (
        whole.weights,
        whole.freed,
        whole.encoding,
        whole.decoding,
        whole.learning,
        saved.learning,
        saved.peak,
    )
    return f"| {name} | {' | '.join(f'{size / 2**30:,.1f}' for size in columns)} |"


def page() -> str:
    """As Markdown."""
    steps = "\n".join(step_row(name, overrides) for name, overrides in STEPS.items())
    decoding = ", ".join(
        f"{mode} {measured('decoding', f'memory.vae={mode}'):,.0f}"
        for mode in ("whole", "slices", "tiles")
    )
    prompts = [
        measured("prompts", f"memory.free_text_encoders={value}") for value in ("false", "true")
    ]
    sizes = "\n".join(size_row(name, path) for name, path in SIZES.items())
    return f"""# Memory

Written by `python scripts/write_memory.py`. `align-gen finetune RECIPE --dry-run` estimates any \
recipe's memory without
reading weights: it simulates one micro-batch on PyTorch's meta device and adds up the memory.

## What saves it, measured

A PRDP step of emoji-sd on 32 pictures: growth of the process's resident memory, MiB. Freed memory \
goes back at once.
The estimate is the larger of the training step and drawing the evaluation gallery (here 32 \
pictures at a time). So it
is above the measured step where the gallery needs more.

| | measured | estimated |
|---|---|---|
{steps}

`memory.vae`, decoding 64 pictures of 256 x 256, MiB: {decoding}. `memory.free_text_encoders`, \
the model loaded and its
prompts encoded, MiB: {prompts[0]:,.0f} with its text encoder of 0.6 M parameters, \
{prompts[1]:,.0f} without.
`memory.offload_rewards` and `memory.offload_reference` move weights from the accelerator to the \
CPU's memory while they
are not in use. They save as many bytes as the weights have, and nothing on a machine without an \
accelerator.

## At real sizes, estimated

LoRA of rank 8, bfloat16, one picture at a time with guidance, GiB. Reward models come on top. \
On an H200 the first
three took up to a fifth more than estimated ([gpu.md](gpu.md)); the others were not tried.

| | weights | of them text encoders, freed | encoding 32 texts | decoding | learning | \
with checkpointing | peak then |
|---|---|---|---|---|---|---|---|
{sizes}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", choices=sorted(WORK))
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="over the recipe"
    )
    args = parser.parse_args()
    if args.measure:
        print(measure(args.measure, Recipe.load(RECIPE, [*SMALL, *args.set])))
    else:
        (ROOT / "docs" / "memory.md").write_text(page())


if __name__ == "__main__":
    main()
