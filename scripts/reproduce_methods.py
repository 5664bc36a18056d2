"""Every method on emoji-sd at equal denoiser calls, on held-out prompts; writes docs/results/methods.md.

    python scripts/reproduce_methods.py [--arms prdp ddpo …] [--seeds 0 1 2] [--calls 82000] [--runs runs/methods]

Arms learn from the demo's prompts, reward, LoRA and sampler, each as long as its steps cost so many rows forward. A run
that is there is not made again, and one that was interrupted goes on. Offline arms learn from pictures of the untouched
model, drawn and scored once, whose calls count. The distance from the reference is measured alike for all: the mean log
ratio of trajectories that the trained model draws on held-out prompts, in nats.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from align_gen import bundled, methods, pipelines, sample
from align_gen.data import encode
from align_gen.demo import summarise
from align_gen.engine import finetune, load_model, prepare_model, prepare_state
from align_gen.gallery import whole_file
from align_gen.pairs import pairs, write_pairs
from align_gen.pipelines.seeding import generator
from align_gen.progress import Progress
from align_gen.prompts import load_prompts
from align_gen.recipe import Recipe
from align_gen.scores import SCORES, ScoresTable
from align_gen.scoring import score_file
from align_gen.trajectories import draw, replay

SMALL = {"images_per_prompt": 8, "prompts_per_step": 8}
SLOW = 2e-4  # regression on one's own pictures fell apart at the demo's 1.2e-3
NFT = {"name": "nft", **SMALL, "times_per_image": 4, "advantage_limit": 1.0}
ARMS: dict[str, dict[str, Any]] = {  # sections of the recipe that differ from the demo's
    "prdp": {},
    "prdp, placebo": {"run": {"placebo": True}},
    "ddpo": {"method": {"name": "ddpo", **SMALL, "clip": 4e-3}},
    "grpo": {"method": {"name": "grpo", **SMALL, "clip": 4e-3, "window": 2}},
    "nft": {"method": NFT},
    "rwr": {
        "method": {"name": "rwr", **SMALL, "weights": "exponential", "beta": 1.0, "gradient_steps": 2},
        "optim": {"lr": SLOW},
    },
    "raft": {"method": {"name": "raft", **SMALL, "gradient_steps": 4}, "optim": {"lr": SLOW}},
    "dpo, online": {"method": {"name": "dpo", "online": True, **SMALL, "beta": 200.0, "gradient_steps": 4}},
    "dpo, offline": {
        "method": {"name": "dpo", "prompts_per_step": 64, "images_per_prompt": 2, "beta": 200.0},
        "data": {"pairs": "pairs.parquet"},
    },
    "sft on the best": {
        "method": {"name": "sft", "prompts_per_step": 64},
        "data": {"media": "best"},
        "optim": {"lr": SLOW},
    },
}
SEEDS, STEPS = (0, 1, 2, 3), 20  # of the offline arms' pictures
DISTANCE = 32  # held-out prompts whose trajectories are drawn


def recipe_of(arm: str, seed: int, calls: int, folder: Path) -> tuple[Recipe, int]:
    """The arm's recipe, as many steps as ``calls`` rows forward allow, and the rows that it spent before them."""
    base = Recipe.load("emoji-sd-prdp")
    sections = {key: dict(value) for key, value in ARMS[arm].items()}
    spent = 0
    if "data" in sections:
        sections["data"] = {key: str(folder / name) for key, name in sections["data"].items()}
        sections["prompts"] = {"train": None, "eval": base.prompts.eval}
        spent = len(load_prompts(str(base.prompts.train))) * len(SEEDS) * STEPS * 2
    sections["run"] = {"seed": seed, "save_every": 20, "out": None, **sections.get("run", {})}
    recipe = base.replace(**sections)
    each = methods.load(recipe.method["name"]).calls(recipe.method_options(), recipe.sampling, 2)["forwards"]
    return recipe.replace(run={"steps": max(1, round((calls - spent) / each))}), spent


def prepare_data(folder: Path, progress: Progress) -> None:
    """Pictures of the untouched model on the training prompts, scored; the best and the worst of each as pairs."""
    recipe, gallery = Recipe.load("emoji-sd-prdp"), folder / "drawn"
    if not (gallery / "metadata.jsonl").is_file():
        model = pipelines.load(bundled.model_path(recipe.model.path))
        prompts = load_prompts(str(recipe.prompts.train))
        told = lambda done, total: progress("draw", done, total, {})  # noqa: E731
        options: dict[str, Any] = {"seeds": SEEDS, "num_inference_steps": STEPS, "guidance_scale": 3.0}
        sample(model, prompts, out=gallery, height=64, width=64, batch_size=64, progress=told, **options)
    score_file(gallery, bundled.reward_spec(recipe.rewards), gallery / SCORES)
    table = ScoresTable.of(gallery)
    found = pairs(table, by="best_worst")
    write_pairs(folder / "pairs.parquet", found, gallery)
    best = folder / "best"
    best.mkdir(exist_ok=True)
    rows = {row["file_name"]: row for row in table.rows}
    for pair in found:
        (best / pair["chosen"]).write_bytes((gallery / pair["chosen"]).read_bytes())
    lines = [json.dumps(rows[pair["chosen"]]) + "\n" for pair in found]
    (best / "metadata.jsonl").write_text("".join(lines))


def distance(recipe: Recipe, run: Path) -> float:
    """KL(policy || reference) over whole trajectories, nats, estimated from the policy's own samples."""
    base, trained = load_model(recipe), load_model(recipe)
    trained.reload(run / "export")
    fresh = load_model(recipe)
    prepare_model(recipe, fresh)
    state = prepare_state(recipe, fresh, Accelerator(cpu=True))
    prompts = [row["prompt"] for row in load_prompts(recipe.prompts.eval)][:DISTANCE]
    condition = encode(trained, prompts, recipe.sampling)
    own = [generator(0, "distance", 0, place) for place in range(len(prompts))]
    state.model = trained
    with torch.no_grad():
        samples, _ = draw(state, condition, own, recipe.sampling, "sum")
        state.model = base
        reference = replay(state, samples, encode(base, prompts, recipe.sampling), recipe.sampling, "sum")
    return (samples.log_probs - reference).sum(1).mean().item()


def figures(arm: str, seed: int, calls: int, folder: Path, progress: Progress) -> dict[str, Any]:
    """What a run measured; made if it is not there."""
    recipe, spent = recipe_of(arm, seed, calls, folder)
    run = folder / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
    file = run / "summary.json"
    if not file.is_file():
        result = finetune(recipe, run, listen=progress)
        summary = summarise(result) | {"arm": arm, "spent": spent, "distance": distance(recipe, run)}
        summary["seconds"] = sum(line.get("seconds", 0.0) for line in result.metrics)
        with whole_file(file) as stream:
            stream.write(json.dumps(summary, indent=1).encode())
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def line(summary: dict[str, Any]) -> str:
    cells = [summary["arm"], str(summary["seed"]), f"{summary['denoiser_calls'] + summary['spent']:,}"]
    for name in ("reward", "heldout", "alignment"):
        c = summary[name]
        delta, low, high = (value / c["std"] for value in (c["after"] - c["before"], c["ci_low"], c["ci_high"]))
        cells.append(f"{delta:+.2f} [{low:+.2f}, {high:+.2f}]")
    cells += [f"{summary['diversity']['ratio']:.2f}", f"{summary['distance']:.1f}", f"{summary['seconds']:.0f}"]
    return "| " + " | ".join(cells) + " |"


def pareto(summaries: list[dict[str, Any]], file: Path) -> None:
    """Held-out change against distance, a dot a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for arm in dict.fromkeys(summary["arm"] for summary in summaries):
        own = [summary for summary in summaries if summary["arm"] == arm]
        change = [(s["heldout"]["after"] - s["heldout"]["before"]) / s["heldout"]["std"] for s in own]
        axes.scatter([s["distance"] for s in own], change, label=arm)
    axes.axhline(0, color="lightgrey", zorder=0)
    axes.set(xlabel="distance from the reference, nats a trajectory", ylabel="held-out reward, change in std")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--calls", type=int, default=82_000)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/methods.md"))
    args = parser.parse_args()
    with Progress() as progress:
        if any("data" in ARMS[arm] for arm in args.arms):
            prepare_data(args.runs, progress)
        for seed in args.seeds:
            for arm in args.arms:
                figures(arm, seed, args.calls, args.runs, progress)
    order = list(ARMS)
    found = [json.loads(file.read_text()) for file in args.runs.glob("*/summary.json")]
    found.sort(key=lambda summary: (order.index(summary["arm"]), summary["seed"]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pareto(found, args.out.with_name("pareto.png"))
    rows = "\n".join(map(line, found))
    pictures, prompts = found[0]["images"], found[0]["prompts"]
    args.out.write_text(f"""# Methods on emoji-sd

Written by `python scripts/reproduce_methods.py`: the demo's goal ("a glossy 3d emoji" against "a flat icon"), prompts,
LoRA and judges; {pictures} pictures of {prompts} held-out prompts, the same seeds before and after. Changes are in
standard deviations over pictures before, with the 95 % interval of the paired change, clustered by prompt. Calls are
rows through the denoiser, forward, with those that drew the data of offline arms. Diversity: mean distance of two
pictures of one prompt, after ÷ before. Distance: log ratio of the trained model's own trajectories to the untouched
one's, nats. Seconds of the training steps on 2 cores.

| method | seed | calls | reward | heldout | alignment | diversity | distance | seconds |
|---|---|---|---|---|---|---|---|---|
{rows}

![Held-out reward against distance from the reference](pareto.png)
""")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
