"""Set demo runs side by side, the first beside the trivial rivals, and write docs/results.md and
docs/demo.png.

    python scripts/results.py runs/demo [runs/demo-1 … runs/placebo] [--out docs/results.md]

Rivals draw the same held-out prompts with the same seeds from the untouched model: with the style's
words in the prompt, and as the best of N by the optimised reward, N chosen so that the gallery
costs as many denoiser calls as the training and its gallery did. All are judged by the same heads
against the *bare* prompts. The picture shows pairs drawn at random, failures included.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from align_gen import bundled, compare, methods, pipelines, sample, score
from align_gen.demo import HeldOutFigures
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.prompts import load_prompts
from align_gen.galleries.table import ScoresTable
from align_gen.pipelines.guidance.best_of import BestOf
from align_gen.reward_heads import reward_set
from align_gen.training.recipe import Recipe

HEAD = """| seed | reward | heldout | alignment | diversity | recall@5 | clip fraction | steps | seconds |
|---|---|---|---|---|---|---|---|---|"""
WORDS = "a glossy 3d emoji of {}"
PAIRS, CELL, MARGIN, LABEL = 12, 88, 4, 16  # of the picture; the last three in pixels


def rival(
    recipe: Recipe, run: Path, name: str, guide: BestOf | None = None, words: str | None = None
) -> ScoresTable:
    """A gallery of the untouched model over the run's own prompts and seeds, scored by the run's
    heads.
    """
    rows = [json.loads(line) for line in (run / "before" / "metadata.jsonl").open()]
    prompts = load_prompts(recipe.prompts.eval)
    things = {row["prompt"]: row["thing"] for row in prompts}
    asked = [{**row, "bare": row["prompt"]} for row in rows]
    if words is not None:
        asked = [{**row, "prompt": words.format(things[row["bare"]])} for row in asked]
    gallery = sample(
        pipelines.load(bundled.model_path(recipe.model.path)),
        [{key: value for key, value in row.items() if key != "file_name"} for row in asked],
        out=run / "rivals" / name,
        num_inference_steps=recipe.evaluate.num_inference_steps,
        guidance_scale=recipe.sampling.guidance_scale,
        eta=recipe.evaluate.eta,
        height=recipe.sampling.height,
        width=recipe.sampling.width,
        guide=guide,
        batch_size=32,
    )
    judged = [
        {**row, "prompt": row["bare"]} for row in gallery.rows
    ]  # whatever was asked, the bare prompt is what counts
    heads = reward_set(bundled.reward_spec({**recipe.rewards, **recipe.eval_rewards}))
    return score(type(gallery)(gallery.folder, judged), heads)


def line(name: str, calls: int, before: ScoresTable, table: ScoresTable, diversity: float) -> str:
    cells = [name, f"{calls:,}"]
    for column, change in compare(before, table).columns.items():
        low = change.ci_low / change.std
        high = change.ci_high / change.std
        cells.append(
            f"{table.mean(column):.4f} ({change.delta / change.std:+.2f} [{low:+.2f}, {high:+.2f}])"
        )
    cells.append(f"{diversity:.2f}")
    return "| " + " | ".join(cells) + " |"


def winners(tables: Mapping[str, ScoresTable]) -> str:
    heads = next(iter(tables.values())).heads
    best = {head: max(tables, key=lambda name: tables[name].mean(head)) for head in heads}
    return "; ".join(f"highest `{head}`: **{name}**" for head, name in best.items())


def rivals(recipe: Recipe, run: Path, summary: Mapping[str, Any], passes: int) -> str:
    """The trained model against asking in words and against best-of-N, as Markdown.

    ``passes``: rows of the network a sample takes, with guidance.
    """
    # Wherever the run lies by now.
    before, after = (
        ScoresTable.load(run / name / "scores.parquet").at(run / name)
        for name in ("before", "samples/final")
    )
    gallery = len(before.rows) * recipe.evaluate.num_inference_steps * passes
    n = max(1, round((summary["denoiser_calls"] + gallery) / gallery))
    best_of = BestOf(reward_set(bundled.reward_spec(recipe.rewards)), n)
    found = {
        "untouched": (gallery, before),
        "style in the prompt": (gallery, rival(recipe, run, "words", words=WORDS)),
        f"best of {n}": (n * gallery, rival(recipe, run, "best-of", guide=best_of)),
        recipe.method["name"].upper(): (summary["denoiser_calls"] + gallery, after),
    }
    judge = bundled.model_path(recipe.eval_rewards["heldout"]["path"])
    spread = {name: HeldOutFigures.of(table, judge).diversity for name, (_, table) in found.items()}
    ratio = {name: value / spread["untouched"] for name, value in spread.items()}
    rows = "\n".join(
        line(name, calls, before, table, ratio[name]) for name, (calls, table) in found.items()
    )
    return f"""| | denoiser calls | {" | ".join(before.heads)} | diversity |
|---|---|{"---|" * len(before.heads)}---|
{rows}

{winners({name: table for name, (_, table) in found.items()})}."""


def run_line(summary: Mapping[str, Any]) -> str:
    """One run's figures as a row of Markdown."""
    cells = [f"{summary['seed']}{', placebo' if summary['placebo'] else ''}"]
    for name in ("reward", "heldout", "alignment"):
        c = summary[name]
        delta, low, high = (
            value / c["std"] for value in (c["after"] - c["before"], c["ci_low"], c["ci_high"])
        )
        cells.append(f"{delta:+.2f} [{low:+.2f}, {high:+.2f}], p = {c['p']:.4f}")
    recall = summary["recall_at_5"]
    cells += [
        f"{summary['diversity']['ratio']:.3f}",
        f"{recall['before']:.3f} → {recall['after']:.3f}",
    ]
    cells += [f"{summary['clip_fraction']:.3f}", str(summary["steps"]), f"{summary['seconds']:.0f}"]
    return "| " + " | ".join(cells) + " |"


def flow_option(runs: Sequence[Path]) -> str:
    return " --flow " + " ".join(map(str, runs)) if runs else ""


def flow_section(runs: Sequence[Path]) -> str:
    """The same table for the flow transformer; nothing without runs of it."""
    if not runs:
        return ""
    lines = chr(10).join(run_line(json.loads((run / "summary.json").read_text())) for run in runs)
    return f"""
## On a flow transformer

`align-gen demo --model emoji-flow`, runs {" ".join(f"`{run}`" for run in runs)}: Stable Diffusion 3's class instead of
the U-Net, the same prompts, goal and rewards.

{HEAD}
{lines}
"""


def picture(run: Path, seed: int = 0) -> Image.Image:
    """Random pairs of the held-out gallery: before above after, named below."""
    before = Gallery.load(run / "before")
    after = Gallery.load(run / "samples" / "final")
    places = {(row["prompt"], row["seed"]): index for index, row in enumerate(after.rows)}
    chosen = random.Random(seed).sample(range(len(before)), min(PAIRS, len(before)))
    page = Image.new("RGB", (len(chosen) * (CELL + MARGIN), 2 * (CELL + MARGIN) + LABEL), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=10)
    for column, index in enumerate(chosen):
        row = before.rows[index]
        left = column * (CELL + MARGIN)
        other = places[row["prompt"], row["seed"]]
        for top, file in ((0, before.path(index)), (CELL + MARGIN, after.path(other))):
            page.paste(Image.open(file).resize((CELL, CELL), Image.Resampling.BICUBIC), (left, top))
        name = row["thing"] if len(row["thing"]) <= 17 else row["thing"][:16] + "…"
        draw.text(
            (left + CELL / 2, 2 * (CELL + MARGIN)), name, fill="black", font=font, anchor="mt"
        )
    return page


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", help="finished runs of align-gen demo; rivals meet the first"
    )
    parser.add_argument(
        "--flow", type=Path, nargs="*", default=[], help="runs of align-gen demo --model emoji-flow"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    args = parser.parse_args()
    summaries = [json.loads((run / "summary.json").read_text()) for run in args.runs]
    first = args.runs[0]
    summary = summaries[0]
    recipe = Recipe.load(first / "recipe.yaml")
    picture(first).save(args.out.parent / "demo.png", optimize=True)
    passes = pipelines.load(bundled.model_path(recipe.model.path)).rows_per_sample(
        recipe.sampling.guidance_scale
    )
    calls = methods.load(recipe.method["name"]).calls(
        recipe.method_options(), recipe.sampling, passes
    )
    learned = calls["backwards"] / calls["forwards"]
    command = " ".join(map(str, args.runs)) + flow_option(args.flow)
    args.out.write_text(f"""# Results

Written by `python scripts/results.py {command}` from runs of `align-gen demo`.

## Runs

Each run: {summary["images"]} pictures of {summary["prompts"]} held-out prompts, the same seeds before and after.
Changes are in standard deviations over pictures before, with the 95 % interval and p of the paired change, clustered by
prompt. Diversity: mean distance of two pictures of one prompt in the held-out model, after ÷ before. Seconds of the
whole run on 2 cores.

{HEAD}
{chr(10).join(map(run_line, summaries))}

![Random pairs of the first run: before above, after below](demo.png)

## Rivals of the first run at equal denoiser calls

In brackets: the change against the untouched model in standard deviations, with its 95 % interval. Calls count samples
through the denoiser, forward; the trained model also needs a backward pass for {learned:.0%} of its training calls.

{rivals(recipe, first, summary, passes)}

The training is paid once, best-of-N for every picture again. Where the style can simply be asked for in words, asking
is the cheapest. Alignment by reward is for what prompts cannot say, and for users who will not say it.
{flow_section(args.flow)}""")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
