"""Signals: the first is noted, the second acts; real signals, sent to this process and to real
runs.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from align_gen.training import signals as stopping
from align_gen.training.signals import StopSignals

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
prompts: {{train: {train}, eval: {held_out}}}
rewards: {{mean_hue: {{hue: 120.0}}}}
sampling: {{num_inference_steps: 2, guidance_scale: 1.0, height: 16, width: 16}}
evaluate: {{every: 0, num_inference_steps: 2, seeds: [0]}}
run: {{steps: 100000, save_every: 100000}}
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_noted_and_the_second_acts(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The echo of a signal, as a terminal and a launcher give it, is none. Afterwards all handlers
    are as before.
    """
    seen: list[int] = []
    kept = signal.signal(number, lambda number, frame: seen.append(number))
    try:
        with StopSignals() as stopping_now:
            assert stopping_now.signum is None
            os.kill(os.getpid(), number)
            assert stopping_now.signum == number and not seen
            monkeypatch.setattr(stopping, "ECHO", math.inf)  # however slow the machine
            os.kill(os.getpid(), number)
            assert not seen
            monkeypatch.setattr(stopping, "ECHO", -1.0)
            os.kill(os.getpid(), number)
            assert seen == [number]
        os.kill(os.getpid(), number)
        assert seen == [number, number]
    finally:
        signal.signal(number, kept)
    assert (
        capfd.readouterr().err == f"align-gen: {number.name}: saving first; again stops at once\n"
    )


def test_in_another_thread_signals_are_left_alone() -> None:
    found: list[object] = []

    def work() -> None:
        with StopSignals():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_run_finishes_its_step_saves_and_says_how_to_go_on(
    number: signal.Signals, tiny_folder: Path, tmp_path: Path
) -> None:
    """The command, a real process, is asked to stop once it has said that a step is done: it would
    take days otherwise.

    No checkpoint is due before the end, so the one that is there is the signal's. The journal's
    last step is its step.
    """
    (tmp_path / "train.txt").write_text("a red dog\n")
    (tmp_path / "eval.txt").write_text("an elk\n")
    files = {
        "model": tiny_folder,
        "train": tmp_path / "train.txt",
        "held_out": tmp_path / "eval.txt",
    }
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(**files))
    command = [
        sys.executable,
        "-m",
        "align_gen",
        "finetune",
        str(tmp_path / "recipe.yaml"),
        "--out",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("train "):
                process.send_signal(number)
                break
        said += process.stderr.readlines()
    assert process.returncode == 128 + number, "".join(said)
    step = json.loads((tmp_path / "run/state.json").read_text())["step"]
    assert said[-1] == (
        f"align-gen: stopped after step {step} of 100000, which is saved; "
        "the same command goes on from there\n"
    )
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [f"step-{step:06d}"]
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"] == step
