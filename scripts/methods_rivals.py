"""What a user would try instead of training, and the trainer that TRL had: on the demo's model,
prompts and judges.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from results import WORDS, rival

from align_gen import bundled, pipelines, sample, score
from align_gen.bench.setting import Setting
from align_gen.demo import summarise
from align_gen.files import whole_file
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.table import SCORES, ScoresTable
from align_gen.pipelines.guidance.best_of import BestOf
from align_gen.progress import ProgressCallback
from align_gen.reward_heads import reward_set
from align_gen.training.engine import Run
from align_gen.training.recipe import Recipe


def untrained(name: str, recipe: Recipe, like: Path, calls: int) -> Run:
    """A gallery of the untouched model beside that of a run: "style in the prompt", or "best of N"
    at as many calls.
    """
    before = ScoresTable.of(like / "before")
    gallery = len(before.rows) * recipe.evaluate.num_inference_steps * 2
    if name == "style in the prompt":
        return Run(
            like, recipe, before, rival(recipe, like, "words", words=WORDS), [{"step": 0}], 0
        )
    count = max(1, round((calls + gallery) / gallery))
    guide = BestOf(reward_set(bundled.reward_spec(recipe.rewards)), count)
    table = rival(recipe, like, "best-of", guide=guide)
    return Run(like, recipe, before, table, [{"step": 0}], (count - 1) * gallery)


def trl(
    recipe: Recipe, like: Path, folder: Path, calls: int, listen: ProgressCallback
) -> tuple[Run, Any]:
    """TRL's DDPOTrainer with our learning rate and clip, and the model that it made.

    Its advantages are normalised over the whole batch of prompts, as its own default has it.
    """
    from align_gen.bench.trl import trl_trainer

    setting = Setting.of(recipe, Accelerator(cpu=True))
    clip = recipe.method["clip"]
    each = setting.images * recipe.sampling.num_inference_steps * 2 * 2
    trainer = trl_trainer(setting, train_clip_range=clip, seed=recipe.run.seed)
    steps = round(calls / each)
    for number in range(steps):
        trainer.step(number, number)
        listen("trl", number + 1, steps, {})
    model = pipelines.load(trainer.sd_pipeline.sd_pipeline)
    before = ScoresTable.of(like / "before")
    gallery = folder / "samples" / "final"
    if not (gallery / "metadata.jsonl").is_file():
        prompts = [
            {key: value for key, value in row.items() if key != "file_name"} for row in before.rows
        ]
        sample(
            model, prompts, out=gallery, num_inference_steps=recipe.evaluate.num_inference_steps,
            guidance_scale=recipe.sampling.guidance_scale, height=64, width=64, batch_size=64,
        )  # fmt: skip
    judges = reward_set(bundled.reward_spec({**recipe.rewards, **recipe.eval_rewards}))
    table = score(Gallery.load(gallery), judges)
    table.save(gallery / SCORES)
    shutil.copytree(like / "before", folder / "before", dirs_exist_ok=True)
    return Run(folder, recipe, before, table, [{"step": steps}], steps * each), model


def figures_of(run: Run, name: str, file: Path, **more: Any) -> dict[str, Any]:
    """A rival's summary, kept in a file."""
    summary = summarise(run) | {"arm": name, "spent": 0, "seconds": 0.0, "distance": None, **more}
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as stream:
        stream.write(json.dumps(summary, indent=1).encode())
    return summary
