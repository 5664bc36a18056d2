"""What a user would try instead of training, and the trainer that TRL had, on the demo's model."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from align_gen import pipelines, sample, score
from align_gen.demo import summarise
from align_gen.files import whole_file
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.parquet_files import SCORES
from align_gen.galleries.prompts import load_prompts
from align_gen.galleries.table import ScoresTable
from align_gen.opening import open_model, open_rewards
from align_gen.pipelines.guidance.best_of import BestOf
from align_gen.progress import ProgressCallback
from align_gen.reward_heads import RewardSet
from align_gen.run_folder import RunFolder
from align_gen.training.engine import Run
from align_gen.training.evaluation import drawing
from align_gen.training.recipe import Recipe
from align_gen.training.setup import Session

WORDS = "a glossy 3d emoji of {}"


def rewards_of(recipe: Recipe) -> RewardSet:
    """All rewards of a recipe: the optimised and the held-out ones."""
    return open_rewards({**recipe.rewards, **recipe.eval_rewards})


def undrawn(row: Mapping[str, Any]) -> dict[str, Any]:
    """A gallery's row without its file: what can be drawn again."""
    return {key: value for key, value in row.items() if key != "file_name"}


def rival(
    recipe: Recipe, run: Path, name: str, guide: BestOf | None = None, words: str | None = None
) -> ScoresTable:
    """A gallery of the untouched model over a run's prompts and seeds, scored by its rewards.

    ``words`` are asked for instead of the bare prompt; scored is by the bare prompt in any case.
    """
    lines = (RunFolder(run).before / "metadata.jsonl").open()
    rows = [undrawn(json.loads(line)) for line in lines]
    rows = [{**row, "bare": row["prompt"]} for row in rows]
    if words is not None:
        prompts = load_prompts(recipe.prompts.eval)
        things = {row["prompt"]: row["thing"] for row in prompts}
        rows = [{**row, "prompt": words.format(things[row["bare"]])} for row in rows]
    gallery = sample(
        open_model(recipe.model.path),
        rows,
        out=run / "rivals" / name,
        guide=guide,
        overwrite=True,
        **{**drawing(recipe), "batch_size": 32},
    )
    bare = [{**row, "prompt": row["bare"]} for row in gallery.rows]
    return score(Gallery(gallery.folder, bare), rewards_of(recipe))


def untrained(name: str, recipe: Recipe, like: Path, calls: int) -> Run:
    """A gallery of the untouched model beside that of a run.

    ``name``: "style in the prompt", or "best of N" at as many network calls as the run had.
    """
    before = ScoresTable.of(RunFolder(like).before)
    gallery = len(before.rows) * recipe.evaluate.num_inference_steps * 2
    if name == "style in the prompt":
        table = rival(recipe, like, "words", words=WORDS)
        return Run(like, recipe, before, table, [{"step": 0}], 0)
    count = max(1, round((calls + gallery) / gallery))
    guide = BestOf(open_rewards(recipe.rewards), count)
    table = rival(recipe, like, "best-of", guide=guide)
    return Run(like, recipe, before, table, [{"step": 0}], (count - 1) * gallery)


def trl(
    recipe: Recipe, like: Path, folder: Path, calls: int, progress: ProgressCallback
) -> tuple[Run, Any]:
    """TRL's DDPOTrainer with our learning rate and clip, and the model that it trained.

    Its advantages are normalised over the whole batch of prompts, as its own default has it.
    """
    from align_gen.bench.trl import trl_trainer

    session = Session.of(recipe, Accelerator(cpu=True))
    clip = recipe.method.model_dump()["clip"]
    # Each step is drawn and learned once, both with guidance.
    calls_per_step = recipe.method.images * recipe.sampling.num_inference_steps * 2 * 2
    trainer = trl_trainer(session, train_clip_range=clip, seed=recipe.run.seed)
    steps = round(calls / calls_per_step)
    for number in range(steps):
        trainer.step(number, number)
        progress("trl", number + 1, steps, {})

    # The gallery over the prompts and seeds of the run beside it, scored by the same rewards.
    model = pipelines.load(trainer.sd_pipeline.sd_pipeline)
    before = ScoresTable.of(RunFolder(like).before)
    gallery = RunFolder(folder).final
    if not (gallery / "metadata.jsonl").is_file():
        rows = [undrawn(row) for row in before.rows]
        sample(model, rows, out=gallery, **{**drawing(recipe), "batch_size": 64})
    table = score(Gallery.load(gallery), rewards_of(recipe))
    table.save(gallery / SCORES)
    shutil.copytree(RunFolder(like).before, RunFolder(folder).before, dirs_exist_ok=True)
    run = Run(folder, recipe, before, table, [{"step": steps}], steps * calls_per_step)
    return run, model


def figures_of(run: Run, name: str, file: Path, **more: Any) -> dict[str, Any]:
    """A rival's summary, kept in a file."""
    summary = summarise(run) | {"arm": name, "spent": 0, "seconds": 0.0, "distance": None, **more}
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as stream:
        stream.write(json.dumps(summary, indent=1).encode())
    return summary
