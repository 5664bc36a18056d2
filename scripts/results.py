"""Set a demo run beside the trivial rivals at equal denoiser calls, and write docs/results.md.

    python scripts/results.py runs/demo [--out docs/results.md]

Rivals draw the same held-out prompts with the same seeds from the untouched model: with the style's words in the
prompt, and as the best of N by the optimised reward, N chosen so that the gallery costs as many denoiser calls as the
training and its gallery did. All are judged by the same heads against the *bare* prompts.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align_gen import bundled, compare, pipelines, sample, score
from align_gen.engine import mean
from align_gen.pipelines.guidance import BestOf
from align_gen.prompts import load_prompts
from align_gen.recipe import Recipe
from align_gen.reward_heads import reward_set
from align_gen.scores import ScoresTable

WORDS = "a glossy 3d emoji of {}"


def rival(recipe: Recipe, run: Path, name: str, guide: BestOf | None = None, words: str | None = None) -> ScoresTable:
    """A gallery of the untouched model over the run's own prompts and seeds, scored by the run's heads."""
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


def line(name: str, calls: int, before: ScoresTable, table: ScoresTable) -> str:
    cells = [name, f"{calls:,}"]
    for column, change in compare(before, table).columns.items():
        low, high = change.ci_low / change.std, change.ci_high / change.std
        cells.append(f"{mean(table, column):.4f} ({change.delta / change.std:+.2f} [{low:+.2f}, {high:+.2f}])")
    return "| " + " | ".join(cells) + " |"


def winners(tables: Mapping[str, ScoresTable]) -> str:
    heads = next(iter(tables.values())).heads
    best = {head: max(tables, key=lambda name: mean(tables[name], head)) for head in heads}
    return "; ".join(f"highest `{head}`: **{name}**" for head, name in best.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of align-gen demo")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    args = parser.parse_args()
    recipe = Recipe.load(args.run / "recipe.yaml")
    summary: dict[str, Any] = json.loads((args.run / "summary.json").read_text())
    before = ScoresTable.load(args.run / "before" / "scores.parquet")
    after = ScoresTable.load(args.run / "samples" / "final" / "scores.parquet")

    gallery_calls = len(before.rows) * recipe.evaluate.num_inference_steps * 2  # guidance doubles them
    n = max(1, round((summary["denoiser_calls"] + gallery_calls) / gallery_calls))
    judge = reward_set(bundled.reward_spec(recipe.rewards))
    tables = {
        "untouched": before,
        "style in the prompt": rival(recipe, args.run, "words", words=WORDS),
        f"best of {n}": rival(recipe, args.run, "best-of", guide=BestOf(judge, n)),
        recipe.method["name"].upper(): after,
    }
    calls = dict(
        zip(
            tables,
            (gallery_calls, gallery_calls, n * gallery_calls, summary["denoiser_calls"] + gallery_calls),
            strict=True,
        )
    )
    rows = "\n".join(line(name, calls[name], before, table) for name, table in tables.items())
    columns = " | ".join(before.heads)
    args.out.write_text(f"""# Results

Written by `python scripts/results.py {args.run}` from a run of `align-gen demo --seed {summary["seed"]}`.

{len(before.rows)} pictures of {summary["prompts"]} held-out prompts, the same seeds everywhere. In brackets: the change
against the untouched model in standard deviations over pictures, with its 95 % interval, clustered by prompt. Calls
count samples through the denoiser, forward; the trained model also needs backward passes for
{recipe.method["gradient_steps"]} of every {2 * recipe.method["gradient_steps"] + 1} of its training calls.

| | denoiser calls | {columns} |
|---|---|{"---|" * len(before.heads)}
{rows}

{winners(tables)}.

The training is paid once, best-of-N for every picture again. Where the style can simply be asked for in words, asking
is the cheapest. Alignment by reward is for what prompts cannot say, and for users who will not say it.
""")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
