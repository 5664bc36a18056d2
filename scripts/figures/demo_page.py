"""The page of demo runs side by side, the first beside the trivial rivals, and its picture."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from align_gen import bundled, compare
from align_gen.demo import HeldOutFigures
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.parquet_files import SCORES
from align_gen.galleries.table import ScoresTable
from align_gen.opening import open_model, open_rewards
from align_gen.pipelines.guidance.best_of import BestOf
from align_gen.run_folder import RunFolder
from align_gen.training.recipe import Recipe

from .rivals import WORDS, rival

HEAD = """\
| seed | reward | heldout | alignment | diversity | recall@5 | clip fraction | steps | seconds |
|---|---|---|---|---|---|---|---|---|"""
PAIRS = 12  # of the picture
CELL, MARGIN, LABEL = 88, 4, 16  # pixels
LONGEST_NAME = 17  # letters below a pair


# --- runs -----------------------------------------------------------------------------------------


def run_line(summary: Mapping[str, Any]) -> str:
    """One run's figures as a row of Markdown."""
    cells = [f"{summary['seed']}{', placebo' if summary['placebo'] else ''}"]
    for name in ("reward", "heldout", "alignment"):
        c = summary[name]
        delta = (c["after"] - c["before"]) / c["std"]
        low = c["ci_low"] / c["std"]
        high = c["ci_high"] / c["std"]
        cells.append(f"{delta:+.2f} [{low:+.2f}, {high:+.2f}], p = {c['p']:.4f}")
    recall = summary["recall_at_5"]
    cells.append(f"{summary['diversity']['ratio']:.3f}")
    cells.append(f"{recall['before']:.3f} → {recall['after']:.3f}")
    cells.append(f"{summary['clip_fraction']:.3f}")
    cells.append(str(summary["steps"]))
    cells.append(f"{summary['seconds']:.0f}")
    return "| " + " | ".join(cells) + " |"


def summary_of(run: Path) -> dict[str, Any]:
    """What a demo wrote about itself."""
    summary: dict[str, Any] = json.loads(RunFolder(run).summary.read_text())
    return summary


def flow_section(runs: Sequence[Path]) -> str:
    """The table of runs for the flow transformer; nothing without such runs."""
    if not runs:
        return ""
    lines = "\n".join(run_line(summary_of(run)) for run in runs)
    names = " ".join(f"`{run}`" for run in runs)
    return f"""
## On a flow transformer

`align-gen demo --model emoji-flow`, runs {names}: Stable Diffusion 3's class instead of
the U-Net, the same prompts, goal and rewards.

{HEAD}
{lines}
"""


# --- rivals ---------------------------------------------------------------------------------------


def line(name: str, calls: int, before: ScoresTable, table: ScoresTable, diversity: float) -> str:
    """One rival's figures as a row of Markdown."""
    cells = [name, f"{calls:,}"]
    for column, change in compare(before, table).columns.items():
        delta = change.delta / change.std
        low = change.ci_low / change.std
        high = change.ci_high / change.std
        cells.append(f"{table.mean(column):.4f} ({delta:+.2f} [{low:+.2f}, {high:+.2f}])")
    cells.append(f"{diversity:.2f}")
    return "| " + " | ".join(cells) + " |"


def winners(tables: Mapping[str, ScoresTable]) -> str:
    """Who has the highest mean of each head."""
    heads = next(iter(tables.values())).heads
    best = {head: max(tables, key=lambda name: tables[name].mean(head)) for head in heads}
    return "; ".join(f"highest `{head}`: **{name}**" for head, name in best.items())


def scores_of(gallery: Path) -> ScoresTable:
    """A gallery's scores; the gallery is where it lies by now, wherever it was drawn."""
    return ScoresTable.load(gallery / SCORES).at(gallery)


def rivals(recipe: Recipe, run: Path, summary: Mapping[str, Any], rows_per_sample: int) -> str:
    """The trained model against asking in words and against best-of-N, as Markdown.

    ``rows_per_sample``: rows of the network that a sample takes, with guidance.
    """
    before = scores_of(RunFolder(run).before)
    after = scores_of(RunFolder(run).final)
    gallery = len(before.rows) * recipe.evaluate.num_inference_steps * rows_per_sample
    trained = summary["denoiser_calls"] + gallery

    # As many candidates as the training would have paid for.
    n = max(1, round(trained / gallery))
    best_of = BestOf(open_rewards(recipe.rewards), n)
    entries = {
        "untouched": (gallery, before),
        "style in the prompt": (gallery, rival(recipe, run, "words", words=WORDS)),
        f"best of {n}": (n * gallery, rival(recipe, run, "best-of", guide=best_of)),
        recipe.method.name.upper(): (trained, after),
    }

    held_out = bundled.model_path(recipe.eval_rewards["heldout"]["path"])
    spread = {
        name: HeldOutFigures.of(table, held_out).diversity for name, (_, table) in entries.items()
    }
    ratio = {name: value / spread["untouched"] for name, value in spread.items()}
    rows = "\n".join(
        line(name, calls, before, table, ratio[name]) for name, (calls, table) in entries.items()
    )
    best = winners({name: table for name, (_, table) in entries.items()})
    return f"""| | denoiser calls | {" | ".join(before.heads)} | diversity |
|---|---|{"---|" * len(before.heads)}---|
{rows}

{best}."""


# --- the page and its picture ---------------------------------------------------------------------


def page(runs: Sequence[Path], flow: Sequence[Path]) -> str:
    """The whole page as Markdown; rivals are drawn where they are not there yet."""
    summaries = [summary_of(run) for run in runs]
    first = summaries[0]
    recipe = Recipe.load(RunFolder(runs[0]).recipe)
    model = open_model(recipe.model.path)
    rows_per_sample = model.rows_per_sample(recipe.sampling.guidance_scale)
    cost = recipe.method.cost(recipe.sampling, rows_per_sample)
    learned = cost.backwards / cost.forwards
    command = " ".join(map(str, runs))
    if flow:
        command += " --flow " + " ".join(map(str, flow))
    rows = "\n".join(map(run_line, summaries))
    return f"""# Results

Written by `python scripts/results.py {command}` from runs of `align-gen demo`.

## Runs

Each run: {first["images"]} pictures of {first["prompts"]} held-out prompts, the same seeds before \
and after.
Changes are in standard deviations over pictures before, with the 95 % interval and p of the \
paired change, clustered by
prompt. Diversity: mean distance of two pictures of one prompt in the held-out model, after ÷ \
before. Seconds of the
whole run on 2 cores.

{HEAD}
{rows}

![Random pairs of the first run: before above, after below](demo.png)

## Rivals of the first run at equal denoiser calls

In brackets: the change against the untouched model in standard deviations, with its 95 % \
interval. Calls count samples
through the denoiser, forward; the trained model also needs a backward pass for {learned:.0%} of \
its training calls.

{rivals(recipe, runs[0], first, rows_per_sample)}

The training is paid once, best-of-N for every picture again. Where the style can simply be asked \
for in words, asking
is the cheapest. Alignment by reward is for what prompts cannot say, and for users who will not \
say it.
{flow_section(flow)}"""


def picture(run: Path, seed: int = 0) -> Image.Image:
    """Random pairs of the held-out gallery: before above after, named below."""
    before = Gallery.load(RunFolder(run).before)
    after = Gallery.load(RunFolder(run).final)
    rows = {(row["prompt"], row["seed"]): index for index, row in enumerate(after.rows)}
    chosen = random.Random(seed).sample(range(len(before)), min(PAIRS, len(before)))
    width = len(chosen) * (CELL + MARGIN)
    page = Image.new("RGB", (width, 2 * (CELL + MARGIN) + LABEL), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=10)
    for column, index in enumerate(chosen):
        row = before.rows[index]
        left = column * (CELL + MARGIN)
        other = rows[row["prompt"], row["seed"]]
        for top, file in ((0, before.path(index)), (CELL + MARGIN, after.path(other))):
            small = Image.open(file).resize((CELL, CELL), Image.Resampling.BICUBIC)
            page.paste(small, (left, top))
        name = row["thing"]
        if len(name) > LONGEST_NAME:
            name = name[: LONGEST_NAME - 1] + "…"
        middle = left + CELL / 2
        draw.text((middle, 2 * (CELL + MARGIN)), name, fill="black", font=font, anchor="mt")
    return page
