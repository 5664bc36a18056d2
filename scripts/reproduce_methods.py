"""Every method on the emoji models at equal denoiser calls, on held-out prompts: the runs of
docs/results/methods.md.

    python scripts/reproduce_methods.py [--arms prdp ddpo …] [--seeds 0 1 2] [--calls 82000] [--runs
    runs/methods]

Arms learn from the demo's prompts, reward, LoRA and sampler, each as long as its steps cost so many
rows forward. A run that is there is not made again, and one that was interrupted goes on. Offline
arms learn from pictures of the untouched model, drawn and scored once, whose calls count. The
distance from the reference is measured alike for all: the mean log ratio of trajectories that the
trained model draws on held-out prompts, in nats. scripts/methods_page.py makes the page's tables of
what is there. Videos have a tenth of the calls.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from methods_rivals import figures_of, trl, untrained

from align_gen import bundled, methods, pipelines, sample
from align_gen.demo import summarise
from align_gen.files import whole_file
from align_gen.galleries.mining import pairs
from align_gen.galleries.pairs import write_pairs
from align_gen.galleries.prompts import load_prompts
from align_gen.galleries.scoring import score_file
from align_gen.galleries.table import SCORES, ScoresTable
from align_gen.methods.batches import encode
from align_gen.methods.trajectories import draw, replay
from align_gen.pipelines.seeding import generator
from align_gen.progress import ProgressBar
from align_gen.training.engine import finetune, load_model, prepare_model, prepare_state
from align_gen.training.recipe import Recipe

Section = dict[str, Any]
SMALL: Section = {"images_per_prompt": 8, "prompts_per_step": 8}
SLOW = 2e-4  # regression on one's own pictures fell apart at the demo's 1.2e-3
OWN: dict[
    str, Section
] = {  # it learns the conditional branch, whose own pictures are unguided; guided ones add up
    "sampling": {"num_inference_steps": 20, "guidance_scale": 1.0, "eta": 0.0},
    "evaluate": {"guidance_scale": 3.0},
    "optim": {"lr": SLOW},
}
DDPO: Section = {"name": "ddpo", **SMALL, "clip": 4e-3}
NFT = {"name": "nft", **SMALL, "times_per_image": 4, "advantage_limit": 1.0}
OFFLINE = {"name": "dpo", "prompts_per_step": 64, "images_per_prompt": 2, "beta": 1000.0}
MANY_PRDP = {"images_per_prompt": 2, "keep": None, "prompts_per_step": 32}
MANY_DDPO = {**DDPO, "images_per_prompt": 1, "prompts_per_step": 64, "history": 32}
VIDEO_SHARE = (
    10  # a row of eight frames costs about twenty times a picture's: this share of the calls
)
FLAT = {"name": "clip", "goal": ["a flat icon"], "baseline": ["a glossy 3d emoji"], "alpha": 1.0}
VIDEO: dict[str, Section] = {  # emoji-video draws in 3D already, so its goal is the other one
    "rewards": {"clip": {**FLAT, "path": "emoji-clip"}},
    "eval_rewards": {
        "heldout": {**FLAT, "path": "emoji-heldout-clip"},
        "alignment": {"name": "clip", "path": "emoji-heldout-clip"},
    },
    "model": {"path": "emoji-video", "lora": {"rank": 16}},
    "optim": {"lr": 6e-4, "micro_batch": 8},
    "evaluate": {"seeds": [0, 1], "num_inference_steps": 10, "batch_size": 8},
}
ARMS: dict[str, dict[str, Section]] = {  # sections of the recipe that differ from the demo's
    "prdp": {},
    "prdp, placebo": {"run": {"placebo": True}},
    "ddpo": {"method": DDPO},
    "grpo": {"method": {**DDPO, "name": "grpo", "window": 2}},
    "nft": {"method": NFT},
    "rwr": {
        **OWN,
        "method": {
            "name": "rwr",
            **SMALL,
            "weights": "exponential",
            "beta": 1.0,
            "gradient_steps": 4,
        },
    },
    "raft": {**OWN, "method": {"name": "raft", **SMALL, "gradient_steps": 8}},
    "dpo, online": {
        "method": {"name": "dpo", "online": True, **SMALL, "beta": 1000.0, "gradient_steps": 4},
        "optim": {"lr": 6e-4},
    },
    "dpo, offline": {"method": OFFLINE, "data": {"pairs": "pairs.parquet"}, "optim": {"lr": 6e-4}},
    "sft on the best": {
        "method": {"name": "sft", "prompts_per_step": 64},
        "data": {"media": "best"},
        "optim": {"lr": SLOW},
    },
    "prdp, 32 prompts": {"method": MANY_PRDP},
    "ddpo, 64 prompts": {"method": MANY_DDPO},
    "flow-dpo": {
        "model": {"path": "emoji-flow"},
        "method": OFFLINE,
        "data": {"pairs": "pairs.parquet"},
        "optim": {"lr": 1e-3},
    },
    "dpo on videos": {
        **VIDEO,
        "method": {**OFFLINE, "prompts_per_step": 16},
        "data": {"pairs": "pairs.parquet"},
    },
}
RIVALS = ("style in the prompt", "best of N", "TRL's ddpo")
DISTANCE = 32  # held-out prompts whose trajectories are drawn
DRAWN: dict[str, dict[str, Any]] = {  # what offline arms learn from
    "emoji-sd": {
        "seeds": (0, 1, 2, 3),
        "num_inference_steps": 20,
        "prompts": None,
        "batch_size": 64,
    },
    "emoji-flow": {
        "seeds": (0, 1, 2, 3),
        "num_inference_steps": 20,
        "prompts": None,
        "batch_size": 64,
    },
    "emoji-video": {"seeds": (0, 1), "num_inference_steps": 8, "prompts": 160, "batch_size": 8},
}
BASES = {
    "emoji-sd": "emoji-sd-prdp",
    "emoji-flow": "emoji-flow-prdp",
    "emoji-video": "emoji-sd-prdp",
}


def model_of(arm: str) -> str:
    found: str = ARMS[arm].get("model", {}).get("path", "emoji-sd")
    return found


def recipe_of(arm: str, seed: int, calls: int, folder: Path) -> tuple[Recipe, int]:
    """The arm's recipe, as many steps as ``calls`` rows forward allow, and the rows that it spent
    before them.
    """
    model = model_of(arm)
    base = Recipe.load(BASES[model])
    sections = {key: dict(value) for key, value in ARMS[arm].items()}
    spent = 0
    if "data" in sections:
        sections["data"] = {
            key: str(folder / f"drawn-{model}" / name) for key, name in sections["data"].items()
        }
        sections["prompts"] = {"train": None, "eval": base.prompts.eval}
        told = DRAWN[model]
        count = told["prompts"] or len(load_prompts(str(base.prompts.train)))
        spent = count * len(told["seeds"]) * told["num_inference_steps"] * 2
    sections["run"] = {"seed": seed, "save_every": 20, "out": None, **sections.get("run", {})}
    recipe = base.replace(**sections)
    passes = 1 if recipe.sampling.guidance_scale == 1 else 2
    each = methods.load(recipe.method["name"]).calls(
        recipe.method_options(), recipe.sampling, passes
    )["forwards"]
    calls //= VIDEO_SHARE if model == "emoji-video" else 1
    return recipe.replace(run={"steps": max(1, round((calls - spent) / each))}), spent


def prepare_data(arm: str, folder: Path, progress: ProgressBar) -> None:
    """Pictures of the untouched model on training prompts, scored; the best and the worst of each
    as pairs.
    """
    model = model_of(arm)
    recipe = Recipe.load(BASES[model])
    gallery = folder / "drawn"
    told = dict(DRAWN[model])
    rewards = ARMS[arm].get("rewards", recipe.rewards)
    if (folder / "pairs.parquet").is_file():
        return
    if not (gallery / "metadata.jsonl").is_file():
        prompts = load_prompts(str(recipe.prompts.train))[: told.pop("prompts")]
        say = lambda done, total: progress("draw", done, total, {})  # noqa: E731
        options: dict[str, Any] = {
            "height": 64,
            "width": 64,
            "guidance_scale": 3.0,
            "progress": say,
            **told,
        }
        sample(pipelines.load(bundled.model_path(model)), prompts, out=gallery, **options)
    score_file(gallery, bundled.reward_spec(rewards), gallery / SCORES)
    table = ScoresTable.of(gallery)
    found = pairs(table, by="best_worst")
    best = folder / "best"
    best.mkdir(exist_ok=True)
    rows = {row["file_name"]: row for row in table.rows}
    for pair in found:
        (best / pair["chosen"]).write_bytes((gallery / pair["chosen"]).read_bytes())
    lines = [json.dumps(rows[pair["chosen"]]) + "\n" for pair in found]
    (best / "metadata.jsonl").write_text("".join(lines))
    write_pairs(folder / "pairs.parquet", found, gallery)


def distance(recipe: Recipe, trained: pipelines.Model) -> float:
    """KL(policy || reference) over whole trajectories, nats, estimated from the policy's own
    samples.
    """
    sampling = Recipe.load(BASES[recipe.model.path]).sampling  # alike for all
    base = load_model(recipe)
    fresh = load_model(recipe)
    prepare_model(recipe, fresh)
    state = prepare_state(recipe, fresh, Accelerator(cpu=True))
    prompts = [row["prompt"] for row in load_prompts(recipe.prompts.eval)][:DISTANCE]
    own = [generator(0, "distance", 0, place) for place in range(len(prompts))]
    with torch.no_grad():
        state.model = trained
        samples, _ = draw(state, encode(trained, prompts, sampling), own, sampling, "sum")
        state.model = base
        reference = replay(state, samples, encode(base, prompts, sampling), sampling, "sum")
    return (samples.log_probs - reference).sum(1).mean().item()


def learn(arm: str, seed: int, calls: int, folder: Path, progress: ProgressBar) -> None:
    """Make a run and keep what it measured, if that is not there."""
    run = folder / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
    if (run / "summary.json").is_file():
        return
    recipe, spent = recipe_of(arm, seed, calls, folder)
    result = finetune(recipe, run, progress=progress)
    trained = load_model(recipe)
    trained.reload(run / "export")
    more = {"arm": arm, "spent": spent, "distance": distance(recipe, trained)}
    more["seconds"] = sum(line.get("seconds", 0.0) for line in result.metrics)
    with whole_file(run / "summary.json") as stream:
        stream.write(json.dumps(summarise(result) | more, indent=1).encode())


def rival(name: str, calls: int, folder: Path, progress: ProgressBar) -> None:
    """The same of a rival, drawn beside the first run of ddpo."""
    like = folder / "ddpo-0"
    own = folder / name.replace("'", "").replace(" ", "-").lower()
    if (own / "summary.json").is_file():
        return
    recipe, _ = recipe_of("ddpo", 0, calls, folder)
    if name == "TRL's ddpo":
        run, model = trl(recipe, like, own, calls, progress)
        figures_of(run, name, own / "summary.json", distance=distance(recipe, model))
    else:
        run = untrained(name, recipe, like, calls)
        figures_of(
            run, name, own / "summary.json", before=str(like / "before"), after=run.after.folder
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", default=[*ARMS, *RIVALS], choices=[*ARMS, *RIVALS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--calls", type=int, default=82_000)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    args = parser.parse_args()
    with ProgressBar() as progress:
        for arm in (arm for arm in args.arms if arm in ARMS):
            if "data" in ARMS[arm]:
                prepare_data(arm, args.runs / f"drawn-{model_of(arm)}", progress)
            for seed in args.seeds:
                learn(arm, seed, args.calls, args.runs, progress)
        for name in (arm for arm in args.arms if arm in RIVALS):
            rival(name, args.calls, args.runs, progress)


if __name__ == "__main__":
    main()
