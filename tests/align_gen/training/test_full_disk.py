"""A disk that fills up in the middle of a run: a small tmpfs in a mount namespace of its own, then
made larger.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
RECIPE = """
model: {{path: {model}, lora: {{rank: 2}}}}
method:
  name: prdp
  images_per_prompt: 2
  prompts_per_step: 1
  gradient_steps: 1
  beta: 1.0
  clip: 1.0e-3
prompts: {{train: {folder}/train.txt, eval: {folder}/eval.txt}}
rewards: {{mean_hue: {{hue: 120.0}}}}
sampling: {{num_inference_steps: 2, guidance_scale: 1.0, height: 16, width: 16}}
evaluate: {{every: 0, num_inference_steps: 2, seeds: [0, 1]}}
optim: {{ema: 0.5}}
run: {{steps: 3, save_every: 1}}
"""
SCRIPT = """
mount -t tmpfs -o size={size} tmpfs {folder}/disk || exit 99
{command} --out {folder}/disk/run 2> {folder}/first.err; echo $? > {folder}/first
find {folder}/disk -name '*.part' > {folder}/left
find {folder}/disk/run -name 'step-*' > {folder}/kept
mount -o remount,size=100m {folder}/disk
{command} --out {folder}/disk/run 2> {folder}/second.err; echo $? > {folder}/second
cp -r {folder}/disk/run {folder}/run
"""


def outcome(run: Path) -> dict[str, str]:
    """Pictures and weights, by hash."""
    pictures = {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*.png")}
    weights = load_file(run / "checkpoints/step-000003/weights.safetensors")
    pictures |= {name: value.numpy().tobytes() for name, value in weights.items()}
    return {name: hashlib.sha256(content).hexdigest() for name, content in pictures.items()}


@pytest.mark.skipif(
    shutil.which("unshare") is None,
    reason="no unshare, which makes a small disk without being root",
)
@pytest.mark.parametrize(("size", "what"), [("16k", "before"), ("200k", "checkpoints")])
def test_a_run_survives_a_full_disk(
    tiny_folder: Path, tmp_path: Path, size: str, what: str
) -> None:
    """Full while the first gallery, or a checkpoint, is written: one line, exit code 1, nothing
    half-written left.

    With room again, the same command ends as a run that was never disturbed.
    """
    (tmp_path / "train.txt").write_text("a red dog\na cat\n")
    (tmp_path / "eval.txt").write_text("an elk\n")
    (tmp_path / "disk").mkdir()
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny_folder, folder=tmp_path))
    command = f"{sys.executable} -m align_gen finetune {tmp_path}/recipe.yaml"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = SCRIPT.format(size=size, folder=tmp_path, command=command)
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    said = (tmp_path / "first.err").read_text().splitlines()
    assert (tmp_path / "first").read_text().strip() == "1", said
    assert f"run/{what}" in said[-1] and "cannot be written (" in said[-1]
    # No checkpoint is promised that is not there.
    promised = "the same command goes on from the last checkpoint" in said[-1]
    assert promised == bool((tmp_path / "kept").read_text())
    assert (tmp_path / "left").read_text() == ""
    assert (tmp_path / "second").read_text().strip() == "0", (tmp_path / "second.err").read_text()
    subprocess.run(
        [*command.split(), "--out", str(tmp_path / "whole")],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
