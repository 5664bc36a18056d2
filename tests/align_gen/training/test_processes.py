"""Several processes: real ones over gloo, started by torch's launcher as accelerate starts them on
GPUs.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align_gen import Recipe, finetune
from align_gen.distributed import rank_slice
from align_gen.errors import UserError
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.table import ScoresTable
from align_gen.training.data import shuffled
from align_gen.training.sharding import require_equal_calls

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PATIENCE = 600  # seconds; a process that takes longer hangs, however slow the machine
TRAIN = ["a red dog", "a blue cat", "a bird"]
# float32 sums in another order: about sixty layers forward and backward, each of up to 3 * 3 * 64
# products whose roundings of 2^-24 are independent, so that the squares of the errors add up.
# 1.1e-5.
ROUNDING = math.sqrt(60 * 3 * 3 * 64) * 2**-24
REWARDS = '''
import os, signal

def flat_for_one(media, prompts):
    """Green, times 100; all pictures of one prompt tie."""
    green = 100 * media[:, 1].mean((1, 2))
    return green * green.new_tensor([prompt != "{flat}" for prompt in prompts])

def dies(media, prompts):
    """In the second process, at its second step."""
    if os.environ.get("RANK") == "1" and (len(calls) or calls.append(1)):
        {death}
    return media[:, 1].mean((1, 2))

calls = []
'''


def shared_recipe(folder: Path, model: Path, reward: str, **sections: Any) -> Recipe:
    """Three prompts a step, two pictures each: of two processes one has one prompt, the other
    two.
    """
    (folder / "train.txt").write_text("\n".join(TRAIN))
    (folder / "eval.txt").write_text("a green fox\nan elk\na horse")
    data = {
        "model": {"path": str(model), "lora": {"rank": 2}},
        "method": {
            "name": "prdp",
            "images_per_prompt": 2,
            "prompts_per_step": 3,
            "gradient_steps": 2,
            "beta": 1.0,
            "clip": 1.0,
        },
        "prompts": {"train": str(folder / "train.txt"), "eval": str(folder / "eval.txt")},
        "rewards": {f"{folder / 'rewards.py'}:{reward}": 1.0},
        "sampling": {"num_inference_steps": 3, "guidance_scale": 2.0, "height": 16, "width": 16},
        "evaluate": {"every": 0, "num_inference_steps": 3, "seeds": [0]},
        "optim": {"lr": 1e-4, "ema": 0.5, "micro_batch": 2},
        "run": {"steps": 1, "seed": 3, "save_every": 1},
    }  # fmt: skip
    return Recipe.parse({**data, **sections})


def launch(recipe: Recipe, folder: Path) -> "subprocess.Popen[str]":
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "align_gen",
        "finetune",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [*command, str(folder / "recipe.yaml"), "--allow-code", "--out", str(folder / "two")],
        cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(process: "subprocess.Popen[str]", start: str) -> Iterator[str]:
    """What it says, up to a line that starts so."""
    assert process.stderr is not None
    for line in process.stderr:
        yield line
        if line.startswith(start):
            return


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def files(run: Path) -> set[str]:
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    return {name for name in found if name != "report.html"}  # the command's, not finetune's


def test_two_processes_compute_what_one_does(tiny_folder: Path, tmp_path: Path) -> None:
    """Gradients (by the optimizer's first moments), weights and metrics to rounding, the same
    galleries and files.

    The prompts are shared unevenly, and the process with one has the one whose rewards all tie.
    """
    flat = TRAIN[shuffled(len(TRAIN), 3, 0)[0]]
    (tmp_path / "rewards.py").write_text(REWARDS.format(flat=flat, death="pass"))
    recipe = shared_recipe(tmp_path, tiny_folder, "flat_for_one")
    process = launch(recipe, tmp_path)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert said.count("attention: ") == 1  # one of them speaks
    finetune(recipe, tmp_path / "one")
    one, two = tmp_path / "one", tmp_path / "two"
    assert files(one) == files(two)
    for ours, theirs in zip(metrics(one), metrics(two), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"seconds"}:
            assert ours[key] == pytest.approx(theirs[key], rel=ROUNDING, abs=1e-6), key
    assert metrics(one)[1]["zero_variance"] == pytest.approx(1 / 3)
    name = "checkpoints/step-000001"
    a, b = (load_file(run / name / "weights.safetensors") for run in (one, two))
    assert all(torch.allclose(a[key], b[key], rtol=0, atol=1e-6) for key in a)
    moments = [
        torch.load(run / name / "optimizer.pt", weights_only=True)["state"] for run in (one, two)
    ]
    largest = max(state["exp_avg"].abs().max() for state in moments[0].values())
    for key, state in moments[0].items():
        assert torch.allclose(
            state["exp_avg"],
            moments[1][key]["exp_avg"],
            rtol=ROUNDING,
            atol=ROUNDING * largest.item(),
        )
    for folder in ("before", "samples/final"):
        pictures, others = Gallery.load(one / folder), Gallery.load(two / folder)
        assert pictures.rows == others.rows
        differences = [
            (pictures.image(i) - others.image(i)).abs().max() for i in range(len(pictures))
        ]
        assert max(differences) < 1.5 / 255
        assert ScoresTable.load(one / folder / "scores.parquet").rows == others.rows


@pytest.mark.parametrize(
    ("method", "lora"), [("prdp", None), ("ddpo", {"rank": 2})], ids=["full", "lora"]
)
def test_two_processes_with_a_half_of_the_network_each(
    tiny_folder: Path, tmp_path: Path, lora: dict[str, int] | None, method: str
) -> None:
    """FSDP2: the first step's metrics to rounding of one process's, though one of two has no
    signal; all to 1e-4 after two.

    Sums in another order differ in the last bit, which Adam, dividing by the gradient's own size,
    blows up. The second step is taken again from the checkpoint, to the last bit: shards are put
    together there, and cut from it. DDPO's loss, at a ratio of 1, is the sum of standardised
    advantages: rounding.
    """
    flat = TRAIN[shuffled(len(TRAIN), 3, 0)[0]]
    (tmp_path / "rewards.py").write_text(REWARDS.format(flat=flat, death="pass"))
    settings: dict[str, Any] = {
        "name": method,
        "images_per_prompt": 2,
        "prompts_per_step": 2,
        "clip": 1.0,
    }
    recipe = shared_recipe(
        tmp_path, tiny_folder, "flat_for_one", method=settings,
        run={"steps": 2, "seed": 3, "save_every": 1},
        evaluate={"num_inference_steps": 3, "seeds": [0, 1]},
    ).replace(model={"lora": lora})  # fmt: skip
    shards = recipe.replace(memory={"shard": True})
    process = launch(shards, tmp_path)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    name = "checkpoints/step-000002"
    (tmp_path / "two" / name).rename(tmp_path / "first")
    shutil.rmtree(tmp_path / "two/samples")
    process = launch(shards, tmp_path)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    found = re.search("weights in each process: (.*) of (.*) MB", said)
    assert found and 0.5 <= float(found[1]) / float(found[2]) < 0.6, (
        said
    )  # vectors of odd length are padded
    finetune(recipe, tmp_path / "one")
    one, two = tmp_path / "one", tmp_path / "two"
    assert files(one) == files(two)
    again = load_file(two / name / "weights.safetensors")
    assert all(
        torch.equal(again[key], value)
        for key, value in load_file(tmp_path / "first/weights.safetensors").items()
    )
    for ours, theirs in zip(metrics(one), metrics(two), strict=True):
        rel, rounding = (ROUNDING if ours["step"] < 2 else 1e-4), {"loss": 1e-4}
        for key in ours.keys() - {"seconds"}:
            assert ours[key] == pytest.approx(theirs[key], rel=rel, abs=rounding.get(key, 1e-6)), (
                key
            )
    for file in (
        f"{name}/weights.safetensors",
        *(str(f.relative_to(one)) for f in one.glob("export/**/*.safetensors")),
    ):
        a, b = load_file(one / file), load_file(two / file)
        assert a.keys() == b.keys() and all(
            torch.allclose(a[key], b[key], rtol=0, atol=1e-6) for key in a
        ), file
    moments = [
        torch.load(run / name / "optimizer.pt", weights_only=True)["state"] for run in (one, two)
    ]
    largest = max(state["exp_avg"].abs().max() for state in moments[0].values())
    for key, state in moments[0].items():
        assert torch.allclose(
            state["exp_avg"], moments[1][key]["exp_avg"], rtol=1e-4, atol=1e-4 * largest.item()
        )


@pytest.mark.parametrize(
    "method",
    [
        {"name": "ddpo", "history": 4, "min_count": 2, "clip": 1.0},
        {"name": "nft", "old": "average"},
        {"name": "raft", "prompt_share": 0.7, "gradient_steps": 2},
    ],
    ids=["ddpo with history", "nft", "raft"],
)
def test_other_methods_share_a_step_too(
    tiny_folder: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    """What is compared or remembered over all processes: metrics of two steps to 1e-4 of one
    process's.
    """
    flat = TRAIN[shuffled(len(TRAIN), 3, 0)[0]]
    (tmp_path / "rewards.py").write_text(REWARDS.format(flat=flat, death="pass"))
    settings = {"images_per_prompt": 2, "prompts_per_step": 3, **method}
    run = {"steps": 2, "seed": 3, "save_every": 2}
    recipe = shared_recipe(tmp_path, tiny_folder, "flat_for_one", method=settings, run=run)
    process = launch(recipe, tmp_path)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    finetune(recipe, tmp_path / "one")
    for ours, theirs in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for key in ours.keys() - {"seconds"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), key


def test_shards_want_several_processes_with_equal_shares(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS.format(flat="", death="pass"))
    recipe = shared_recipe(tmp_path, tiny_folder, "flat_for_one", memory={"shard": True})
    with pytest.raises(UserError, match=r"memory\.shard: there is one process"):
        finetune(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    require_equal_calls(4, 6, 2)
    with pytest.raises(
        UserError, match="prompts_per_step is 3; want a multiple of the 2 processes"
    ):
        require_equal_calls(3, 6, 2)
    with pytest.raises(UserError, match="held-out prompts is 5; want"):
        require_equal_calls(4, 5, 2)


@pytest.mark.parametrize(
    ("death", "said"),
    [
        (
            "raise ValueError('no green left')",
            "align-gen: RewardFailure: .*dies' failed: ValueError: no green left",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", "Signal 9 \\(SIGKILL\\) received"),
    ],
    ids=["error", "kill"],
)
def test_a_process_that_dies_ends_the_others(
    tiny_folder: Path, tmp_path: Path, death: str, said: str
) -> None:
    """With its error shown; what was saved stays, and nobody waits for it for ever: the launcher
    ends by itself, long before its 1000 steps are done.
    """
    (tmp_path / "rewards.py").write_text(REWARDS.format(flat="", death=death))
    process = launch(
        shared_recipe(tmp_path, tiny_folder, "dies", run={"steps": 1000, "seed": 3}), tmp_path
    )
    lines = list(until(process, "final"))
    _, rest = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert re.search(said, "".join(lines) + rest), "".join(lines) + rest


def test_asked_to_stop_all_of_them_finish_the_step_and_one_saves(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """SIGTERM to the launcher, as a cluster sends it: the same step is the last of both."""
    (tmp_path / "rewards.py").write_text(REWARDS.format(flat="", death="pass"))
    recipe = shared_recipe(
        tmp_path, tiny_folder, "flat_for_one", run={"steps": 10**5, "seed": 3, "save_every": 10**5}
    )
    process = launch(recipe, tmp_path)
    list(until(process, "train "))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE)
    step = json.loads((tmp_path / "two/state.json").read_text())["step"]
    assert said.count(f"stopped after step {step} of 100000, which is saved") == 2
    assert [path.name for path in (tmp_path / "two/checkpoints").iterdir()] == [f"step-{step:06d}"]


def test_shares_cover_everything_once_and_evenly() -> None:
    class Processes:
        def __init__(self, rank: int, count: int):
            self.process_index = rank
            self.num_processes = count

    for total in (0, 1, 5, 64):
        for count in (1, 2, 3, 8):
            shares = [rank_slice(total, Processes(rank, count)) for rank in range(count)]
            assert [number for each in shares for number in each] == list(range(total))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert rank_slice(5, None) == range(5)
