"""Runs of the arms: their data, their training, and how far each went from its reference."""

import json
from pathlib import Path

import torch

from align_gen import bundled, pipelines, sample
from align_gen.demo import summarise
from align_gen.files import whole_file
from align_gen.galleries.mining import pairs
from align_gen.galleries.pairs import write_pairs
from align_gen.galleries.parquet_files import SCORES
from align_gen.galleries.prompts import load_prompts
from align_gen.galleries.scoring import score_file
from align_gen.galleries.table import ScoresTable
from align_gen.methods.batches import encode
from align_gen.opening import open_model
from align_gen.pipelines.sampling import step_log_prob
from align_gen.pipelines.seeding import generator
from align_gen.progress import ProgressBar
from align_gen.run_folder import RunFolder
from align_gen.training.engine import finetune
from align_gen.training.recipe import Recipe
from align_gen.training.setup import load_model

from .arms import ARMS, BASES, DRAWN, model_of, recipe_of
from .rivals import figures_of, trl, untrained

DISTANCE = 32  # held-out prompts whose trajectories are drawn


def prepare_data(arm: str, folder: Path, progress: ProgressBar) -> None:
    """Draw and score the untouched model's pictures of training prompts; pair best and worst."""
    model = model_of(arm)
    recipe = Recipe.load(BASES[model])
    gallery = folder / "drawn"
    settings = dict(DRAWN[model])
    rewards = ARMS[arm].get("rewards", recipe.rewards)
    if (folder / "pairs.parquet").is_file():
        return
    if not (gallery / "metadata.jsonl").is_file():
        prompts = load_prompts(str(recipe.prompts.train))[: settings.pop("prompts")]
        sample(
            open_model(model),
            prompts,
            out=gallery,
            height=64,
            width=64,
            guidance_scale=3.0,
            progress=progress,
            **settings,
        )
    score_file(gallery, bundled.reward_spec(rewards), gallery / SCORES)

    # The best of each prompt is a gallery for sft, best and worst are pairs for dpo.
    table = ScoresTable.of(gallery)
    chosen = pairs(table, by="best_worst")
    best = folder / "best"
    best.mkdir(exist_ok=True)
    rows = {row["file_name"]: row for row in table.rows}
    for pair in chosen:
        (best / pair["chosen"]).write_bytes((gallery / pair["chosen"]).read_bytes())
    lines = [json.dumps(rows[pair["chosen"]]) + "\n" for pair in chosen]
    (best / "metadata.jsonl").write_text("".join(lines))
    write_pairs(folder / "pairs.parquet", chosen, gallery)


@torch.no_grad()
def distance(recipe: Recipe, trained: pipelines.Model) -> float:
    """KL(policy || reference) over whole trajectories in nats, from the policy's own samples."""
    sampling = Recipe.load(BASES[recipe.model.path]).sampling  # alike for all

    # Policy and reference see the same latents: only their densities differ.
    base = load_model(recipe)
    prompts = [row["prompt"] for row in load_prompts(recipe.prompts.eval)][:DISTANCE]
    size = recipe.optim.micro_batch
    parts = []
    for start in range(0, len(prompts), size):
        texts = prompts[start : start + size]
        indices = range(start, start + len(texts))
        drawn = pipelines.rollout(
            trained,
            encode(trained, texts, sampling),
            generator=[generator(0, "distance", 0, index) for index in indices],
            num_inference_steps=sampling.num_inference_steps,
            eta=sampling.eta,
            guidance_scale=sampling.guidance_scale,
            reduction="sum",
        )

        # Texts anew: the reference has a text encoder of its own.
        condition = encode(base, texts, sampling)
        reference = [
            step_log_prob(
                base,
                drawn,
                step,
                condition,
                eta=sampling.eta,
                guidance_scale=sampling.guidance_scale,
                reduction="sum",
            )
            for step in drawn.stochastic.tolist()
        ]
        parts.append((drawn.log_probs - torch.stack(reference, 1)).sum(1))  # (b,)
    return torch.cat(parts).mean().item()


def learn(arm: str, seed: int, calls: int, folder: Path, progress: ProgressBar) -> None:
    """Make a run of an arm and write what it measured, unless that is there."""
    run = RunFolder(folder / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}")
    if run.summary.is_file():
        return
    recipe, spent = recipe_of(arm, seed, calls, folder)
    result = finetune(recipe, run.path, progress=progress)
    trained = load_model(recipe)
    trained.reload(run.export)
    more = {"arm": arm, "spent": spent, "distance": distance(recipe, trained)}
    more["seconds"] = sum(line.get("seconds", 0.0) for line in result.metrics)
    with whole_file(run.summary) as stream:
        stream.write(json.dumps(summarise(result) | more, indent=1).encode())


def learn_rival(name: str, calls: int, folder: Path, progress: ProgressBar) -> None:
    """The same of a rival, drawn beside the first run of ddpo."""
    like = RunFolder(folder / "ddpo-0")
    rival = RunFolder(folder / name.replace("'", "").replace(" ", "-").lower())
    if rival.summary.is_file():
        return
    recipe, _ = recipe_of("ddpo", 0, calls, folder)
    if name == "TRL's ddpo":
        run, model = trl(recipe, like.path, rival.path, calls, progress)
        figures_of(run, name, rival.summary, distance=distance(recipe, model))
    else:
        run = untrained(name, recipe, like.path, calls)
        figures_of(run, name, rival.summary, before=str(like.before), after=run.after.folder)
