"""Kill real runs with SIGKILL and finish them: do they end as if nothing had happened?

    python scripts/kill_trials.py [--trials 20] [--seed 0] [--full]

A short run of emoji-sd (LoRA, or every weight with --full; with an average; epochs end inside of
steps) is finished once, undisturbed. Then, again and again, it is started in a process of its own
and killed: half of the times at a random moment of that run's time, half of the times just before a
random one of the file operations by which it writes, checkpoints among them. Then the same call
finishes it. Weights, optimizer, metrics and galleries must be the same to the last bit; what
differs is printed, and the exit code is 1.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from align_gen import Recipe, finetune
from align_gen.run_folder import RunFolder

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def recipe_of(folder: Path, full: bool) -> Recipe:
    """Three steps of two prompts out of three, measured after each: epochs end inside of steps."""
    (folder / "train.txt").write_text("a cat\na red car\na tree\n")
    (folder / "eval.txt").write_text("a dog\nan apple\n")
    data = {
        "model": {"path": "emoji-sd", "lora": None if full else {"rank": 4}},
        "method": {
            "name": "prdp",
            "images_per_prompt": 2,
            "prompts_per_step": 2,
            "gradient_steps": 2,
            "beta": 1.0,
            "clip": 1e-3,
        },
        "prompts": {"train": str(folder / "train.txt"), "eval": str(folder / "eval.txt")},
        "rewards": {"clip": {"path": "emoji-clip", "goal": ["a glossy 3d emoji"]}},
        "eval_rewards": {"jpeg_size": 1.0},
        "sampling": {"num_inference_steps": 3, "guidance_scale": 2.0, "height": 64, "width": 64},
        "evaluate": {"every": 1, "num_inference_steps": 3, "seeds": [0, 1]},
        "optim": {"lr": 1e-4, "ema": 0.5, "micro_batch": 2},
        "run": {"steps": 3, "seed": 1, "save_every": 1},
    }
    return Recipe.parse(data)


def fingerprint(run: Path) -> dict[str, str]:
    """Every file that must come out the same; of the metrics all but the clock's."""
    found = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(file.relative_to(run))
        if file.name == "SHA256SUMS":  # of such files
            continue
        if file.name == "metrics.jsonl":  # of the run, and of each checkpoint
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            content = json.dumps(
                [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
            ).encode()
        elif file.suffix == ".safetensors":
            # The order of its header's entries is another every time.
            with safe_open(file, "np") as tensors:
                about = sorted((tensors.metadata() or {}).items())
                names = tensors.keys()
                values = [tensors.get_tensor(key).tobytes() for key in names]
            content = b"".join([repr(about).encode(), *values])
        else:
            content = file.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def in_process(work: Callable[[], Any], after: Callable[[int], None] = lambda pid: None) -> int:
    """Run it in a fork, which starts in a moment; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    after(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_before_write(recipe: Recipe, out: Path, number: int) -> None:
    """Run it, killed just before its ``number``-th file operation.

    A run that is not killed leaves the count of its operations in ``OUT.count``.
    """
    count = 0

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and opens_to_write(*arguments[1:3])
        if (writes or event in WRITES) and str(out) in str(arguments[0]):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    finetune(recipe, out)
    Path(f"{out}.count").write_text(str(count))


def opens_to_write(mode: Any, flags: Any) -> bool:
    """Whether a file is opened to be written, by ``open`` with a mode or ``os.open`` with flags."""
    if isinstance(mode, str):
        return mode[:1] in "wax"
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def killed_after(seconds: float) -> Callable[[int], None]:
    return lambda pid: threading.Timer(seconds, os.kill, (pid, signal.SIGKILL)).start()


def where(run: Path) -> str:
    """What the run was at, from what it left."""
    parts = [path for path in run.rglob("*") if path.name.endswith(".part")]
    step = max(RunFolder(run).saved_steps(), default=0)
    doing = ", ".join(sorted({path.name for path in parts})) or "no file half-written"
    return f"step {step} saved; {doing}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="train every weight")
    args = parser.parse_args()
    torch.set_num_threads(1)  # and no work before the forks: only imports
    chance = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="kill-trials-"))
    recipe = recipe_of(folder, args.full)

    # Killed before operation 0 is never killed: this is what all others must end as.
    whole = folder / "whole"
    started = time.monotonic()
    if in_process(partial(killed_before_write, recipe, whole, 0)):
        raise SystemExit("the undisturbed run failed")
    seconds = time.monotonic() - started
    writes = int(Path(f"{whole}.count").read_text())
    expected = fingerprint(whole)
    print(
        f"undisturbed: {seconds:.1f} s, {writes} file operations, {len(expected)} files", flush=True
    )

    # Odd trials die at an operation, even ones at a moment.
    wrong = 0
    for trial in range(args.trials):
        out = folder / f"trial-{trial}"
        if trial % 2:
            number = chance.randrange(1, writes + 1)
            how = f"before file operation {number}"
            status = in_process(partial(killed_before_write, recipe, out, number))
        else:
            moment = chance.uniform(0, seconds)
            how = f"after {moment:.1f} s"
            status = in_process(partial(finetune, recipe, out), killed_after(moment))

        # The same call finishes what is left.
        state = where(out) if status == -signal.SIGKILL else f"not killed ({status})"
        again = in_process(partial(finetune, recipe, out))
        found = fingerprint(out)
        different = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        wrong += bool(different) or again != 0
        verdict = (
            "the same" if not different and again == 0 else f"DIFFERENT ({again}): {different[:5]}"
        )
        print(f"{trial + 1:3} killed {how}: {state}. Finished: {verdict}", flush=True)
        shutil.rmtree(out)
    shutil.rmtree(folder)
    print(f"{args.trials - wrong} of {args.trials} ended as the undisturbed run did")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
