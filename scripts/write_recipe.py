"""Write docs/recipe.md: every key of a recipe, and every method's options, read off their models.

python scripts/write_recipe.py [--check]
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from align_gen import methods
from align_gen.commands.listing import headline
from align_gen.commands.options import Option, description_of, model_in, options_of_model
from align_gen.training.recipe import Recipe
from align_gen.training.yaml_text import YamlLoader

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipe.md"
COLUMNS = ("key", "type", "default", "bounds", "unit", "description")
# One for every section, in the order of the page; each is checked against the section's model.
EXAMPLES = {
    "model": "model: {path: emoji-sd, lora: {rank: 16}, dtype: bf16}",
    "method": "method: {name: prdp, images_per_prompt: 16, keep: 4, prompts_per_step: 8, beta: 15}",
    "prompts": "prompts: {train: emoji-train, eval: emoji-heldout}",
    "data": "data: {pairs: pairs.parquet}",
    "rewards": """\
rewards:
  clip: {path: emoji-clip, goal: [a glossy 3d emoji], baseline: [a flat icon], weight: 1.0}
  mine.py:near: 0.5""",
    "combine": "combine: {rule: mean_minus_std, k: 0.5, normalise: group}",
    "eval_rewards": """\
eval_rewards:
  heldout: {name: clip, path: emoji-heldout-clip, goal: [a glossy 3d emoji]}""",
    "sampling": "sampling: {num_inference_steps: 8, guidance_scale: 3.0, height: 64, width: 64}",
    "evaluate": "evaluate: {every: 20, num_inference_steps: 20, seeds: [0, 1]}",
    "stop": "stop: {when: eval_rewards_fall, patience: 3}",
    "optim": "optim: {lr: 1.0e-4, ema: 0.99, micro_batch: 4}",
    "memory": "memory: {checkpointing: true, vae: slices}",
    "run": "run: {steps: 200, seed: 0, save_every: 20, out: runs/mine}",
}
REWARDS = """\
A mapping from a label of your own to a weight, or to options: `name` (a reward of
`align-gen list rewards`, `file.py:function`, or `package.module:attribute`; the label without it),
`weight` (a number, 1 by default), `offload` (true lets the model wait on the CPU), and the reward's
own options, which `align-gen list reward NAME` prints. A reward that is code, as `mine.py:near`,
needs `--allow-code`."""
METHOD = """\
`name` says which; the other keys are that method's own, see [Methods](#methods). Keys with the same
name mean the same in all of them."""
INTRODUCTION = """\
# Recipes: every key

Written by `python scripts/write_recipe.py` from the models that check a recipe.

A recipe is one YAML file. `align-gen recipe new NAME` writes one to start from,
`align-gen finetune RECIPE --set section.key=value` overrides single keys, and `--dry-run` prints
the recipe as it will run. Paths count from the folder in which the command runs. Unknown keys are
refused. In the tables, *required* means that there is no default.
"""


def table(options: Sequence[Option], prefix: str = "") -> str:
    """Options as a table of Markdown, without the columns that are empty throughout."""
    rows = [_cells(option, prefix) for option in options]
    shown = [name for name in COLUMNS if any(row[name] for row in rows)]
    lines = [shown, ["---"] * len(shown)]
    lines += [[row[name] for name in shown] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(option: Option, prefix: str) -> dict[str, str]:
    default = option.default
    cells = option.json() | {
        "key": f"`{prefix}{option.name}`",
        "default": "*required*" if default == "required" else f"`{default}`",
    }
    return {name: text.replace("|", "\\|") for name, text in cells.items()}


def keys_of(section: type[BaseModel], prefix: str = "") -> list[str]:
    """A section's table, and one of each section inside of it."""
    tables = [table(options_of_model(section), prefix)]
    for name, field in section.model_fields.items():
        inner = model_in(field.annotation)
        if inner is not None:
            tables.append(table(options_of_model(inner), f"{prefix}{name}."))
    return tables


def section_of(name: str) -> Iterator[str]:
    """The paragraphs about one section of a recipe."""
    field = Recipe.model_fields[name]
    model = model_in(field.annotation)
    yield f"## {name}"
    yield description_of(Recipe, name)
    if name == "method":
        yield METHOD
    elif name in ("rewards", "eval_rewards"):
        if name == "rewards":
            yield REWARDS
    else:
        assert model is not None, name
        yield from keys_of(model)
    yield f"```yaml\n{EXAMPLES[name]}\n```"


def method_of(name: str) -> Iterator[str]:
    """The paragraphs about one method."""
    yield f"### {name}"
    yield f"{headline(f'align_gen.methods.{name}')}."
    yield table(options_of_model(methods.options_of(name)))


def require_examples() -> None:
    """Refuse examples that no recipe would take.

    Raises:
        SystemExit: a section has none, or one does not load.
    """
    missing = Recipe.model_fields.keys() ^ EXAMPLES.keys()
    if missing:
        sys.exit(f"scripts/write_recipe.py: EXAMPLES and the recipe differ in {sorted(missing)}")
    data: dict[str, Any] = {}
    for text in EXAMPLES.values():
        data |= yaml.load(text, YamlLoader)
    # PRDP learns from prompts alone: the example of `data` is for other methods.
    data["data"] = {}
    Recipe.parse(data, "EXAMPLES")


def page() -> str:
    """The whole page as Markdown."""
    require_examples()
    paragraphs = [INTRODUCTION.rstrip()]
    for name in EXAMPLES:
        paragraphs += section_of(name)
    paragraphs += ["## Methods", "`align-gen list method NAME` prints the same."]
    for name in sorted(methods.METHODS):
        paragraphs += method_of(name)
    return "\n\n".join(paragraphs) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = page()
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/recipe.md is out of date: python scripts/write_recipe.py")


if __name__ == "__main__":
    main()
