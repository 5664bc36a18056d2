"""Memory of a PRDP step does not grow with the number of denoising steps."""

import json
import subprocess
import sys

STEP = """
import json, os, sys
import torch
from accelerate import Accelerator
from align_gen import pipelines
from align_gen.batches import Prompts, Sampling
from align_gen.bundled import model_path
from align_gen.methods import prdp
from align_gen.reward_heads import reward_set
from align_gen.state import TrainState

steps = int(sys.argv[1])
torch.set_num_threads(1)
model = pipelines.load(model_path("emoji-sd"))
model.train_lora(pipelines.LoraOptions(rank=4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
state = TrainState(model, optimizer, Accelerator(cpu=True), 1.0, micro_batch=4)
condition = model.encode_prompts(["one apple"])
batch = Prompts(["one apple"], condition, [0])
options = prdp.Options(images_per_prompt=8, prompts_per_step=1, gradient_steps=2, clip=1e9)
sampling = Sampling(num_inference_steps=steps, guidance_scale=3.0, height=64, width=64)

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of loading
prdp.step(state, batch, model, reward_set(["jpeg_size"]), options, sampling)
stored = 8 * (steps + 1) * 4 * torch.Size(condition.latent_shape).numel()
print(json.dumps({"peak": status("VmHWM") - before - stored, "calls": steps}))
"""


def peak_of_a_step(steps: int) -> float:
    """Peak - RSS before - stored latents of one step in a fresh process, bytes."""
    done = subprocess.run([sys.executable, "-c", STEP, str(steps)], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak"])


def test_peak_memory_is_that_of_few_steps() -> None:
    """The loss couples all steps, yet 40 of them cost at most 1.1 times the memory of 5."""
    assert peak_of_a_step(40) <= 1.1 * peak_of_a_step(5)
