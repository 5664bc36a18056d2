"""Whole runs on a tiny Stable Diffusion: their recipes, how they are stopped, what they left."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from align_gen import Recipe, finetune
from align_gen.galleries.gallery import write_gallery
from align_gen.pipelines.seeding import generator
from align_gen.progress import ProgressCallback
from align_gen.training.engine import Run

STEPS = 3
TRAIN = ["a red dog", "a blue cat", "a bird", "two owls", "one bee"]
HELD_OUT = ["a green fox", "an elk"]


def small_recipe(folder: Path, model: Path, method: dict[str, Any], /, **sections: Any) -> Recipe:
    """Three steps of 2 prompts x 2 pictures of 16 x 16; ``sections`` replace whole ones.

    Without training prompts, as where pictures are given, name ``prompts`` and ``rewards``.
    """
    (folder / "train.txt").write_text("\n".join(TRAIN[:3]))
    (folder / "eval.txt").write_text(HELD_OUT[0])
    data = {
        "model": {"path": str(model), "lora": {"rank": 2}},
        "method": {"images_per_prompt": 2, "prompts_per_step": 2, **method},
        "prompts": {"train": str(folder / "train.txt"), "eval": str(folder / "eval.txt")},
        "rewards": {"mean_hue": {"hue": 120.0}},
        "sampling": {"num_inference_steps": 3, "guidance_scale": 2.0, "height": 16, "width": 16},
        "evaluate": {"num_inference_steps": 2, "seeds": [0]},
        "optim": {"lr": 1e-2, "ema": 0.5, "micro_batch": 3},
        "run": {"steps": STEPS, "seed": 3, "save_every": 1},
    }
    return Recipe.parse({**data, **sections})


def measured_recipe(folder: Path, model: Path) -> Recipe:
    """Three steps of PRDP, 2 prompts x 2 pictures, measured before, at step 2 and after."""
    (folder / "train.txt").write_text("\n".join(TRAIN))
    (folder / "eval.txt").write_text("\n".join(HELD_OUT))
    return Recipe.parse(
        {
            "model": {"path": str(model), "lora": {"rank": 2}},
            "method": {
                "name": "prdp",
                "images_per_prompt": 2,
                "prompts_per_step": 2,
                "gradient_steps": 2,
                "beta": 1e-3,
                "clip": 1e-5,
            },
            "prompts": {"train": str(folder / "train.txt"), "eval": str(folder / "eval.txt")},
            "rewards": {"mean_hue": {"hue": 120.0}},
            "eval_rewards": {"jpeg_size": 1.0},
            "sampling": {
                "num_inference_steps": 3,
                "guidance_scale": 2.0,
                "height": 16,
                "width": 16,
            },
            "evaluate": {"every": 2, "num_inference_steps": 2, "seeds": [0]},
            "optim": {"lr": 1e-2, "ema": 0.5, "micro_batch": 4},
            "run": {"steps": STEPS, "seed": 3, "save_every": 1},
        }
    )


def held_out_only(folder: Path) -> dict[str, str]:
    """The section ``prompts`` of a run that learns from what it is given."""
    return {"eval": str(folder / "eval.txt")}


def given_media(folder: Path, each: int) -> Path:
    """A gallery of ``each`` pictures of two prompts."""
    media = torch.rand(2 * each, 3, 16, 16, generator=generator(0, "pictures"))
    rows = [{"prompt": text} for text in ("a red dog", "a bird") for _ in range(each)]
    write_gallery(folder / "given", media, rows)
    return folder / "given"


def given_pairs(folder: Path) -> Path:
    """Three preference pairs, a prompt each."""
    media = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    write_gallery(folder / "pictures", media, [{"prompt": f"{i // 2}"} for i in range(6)])
    rows = [
        {"prompt": f"{i}", "chosen": f"{2 * i:05d}.png", "rejected": f"{2 * i + 1:05d}.png"}
        for i in range(3)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "pictures" / "metadata.jsonl").write_text(text)
    return folder / "pictures"


# --- to stop a run --------------------------------------------------------------------------------


class Stopped(Exception):
    """What a kill looks like from inside."""


def stop_at(step: int) -> ProgressCallback:
    """Stop a run after this step was logged and before it is saved."""

    def listen(phase: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        if phase == "train" and done == step:
            raise Stopped

    return listen


def whole_and_resumed(recipe: Recipe, folder: Path, stop: int = 2) -> Run:
    """Require that a run stopped in a step and taken up again is the uninterrupted one, to the last
    bit; return the latter.
    """
    whole = finetune(recipe, folder / "whole")
    with pytest.raises(Stopped):
        finetune(recipe, folder / "run", progress=stop_at(stop))
    resumed = finetune(recipe, folder / "run")

    last = recipe.run.steps
    assert same(weights(resumed.folder, last), weights(whole.folder, last))
    assert lines(resumed.folder) == lines(whole.folder)
    return whole


# --- what a run left ------------------------------------------------------------------------------


def lines(run: Path) -> list[dict[str, Any]]:
    """The metrics without the clock's."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def weights(run: Path, step: int = STEPS) -> dict[str, Tensor]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    loaded: dict[str, Tensor] = load_file(folder / "weights.safetensors")
    return loaded


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def digests(run: Path) -> dict[str, str]:
    """Every file with its content's hash."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def picture_digests(run: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(run).items() if name.endswith(".png")}
