"""The text of a recipe to start from: every key with its description, the usual ones set."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from .. import bundled
from .options import Option, description_of, options_of_model, sections_of, yaml_of

# What a method may learn from besides prompts: a key of ``data``, and a file to name there.
SOURCES = {"pairs": "pairs.parquet", "media": "galleries/good"}
# Keys that are set; the others stand in comments with their defaults.
USUAL: dict[str, Sequence[str]] = {
    "model": ("path", "dtype"),
    "sampling": ("num_inference_steps", "guidance_scale"),
    "evaluate": ("num_inference_steps", "seeds"),
    "optim": ("lr",),
    "run": ("steps", "seed", "out"),
}
OF_METHOD = ("name", "images_per_prompt", "prompts_per_step")
REWARDS = ("rewards", "eval_rewards")
HELD_OUT = "emoji-heldout-clip"  # beside emoji-clip
WIDTH = 100
COMMENT: dict[str, Any] = {
    "width": WIDTH,
    "initial_indent": "  # ",
    "subsequent_indent": "  # ",
}
HEADER = """\
# A recipe to start from: set your own prompts and goal first. `finetune RECIPE --dry-run` says what
# it costs. Keys in comments have their defaults; docs/recipe.md has all of them.
"""


def starter(model: str, method: str, rewards: Mapping[str, Any], out: str) -> str:
    """The recipe's text.

    Args:
        model: its ``model.path``.
        method: the method's name.
        rewards: label -> options, what is optimised.
        out: the folder of the run.

    Raises:
        UserError: no such method.
    """
    from ..pipelines.registry import TOYS
    from ..training.recipe import Recipe
    from .listing import method_kind, method_options

    # What was asked for, and what a run cannot do without.
    described = {name: description_of(Recipe, name) for name in Recipe.model_fields}
    values: dict[str, dict[str, Any]] = {
        "model": {"path": model},
        "prompts": {"eval": "emoji-heldout"},
        "run": {"out": out},
    }
    if model in TOYS:  # too small for a LoRA
        values["model"]["lora"] = None
    kind = method_kind(method)
    if kind in SOURCES:
        values["data"] = {kind: SOURCES[kind]}
    else:
        values["prompts"]["train"] = "emoji-train"

    # In the order of the recipe's own fields, so that the file reads as docs/recipe.md does.
    sections = dict(sections_of(Recipe))
    lines = HEADER.splitlines()
    for name in Recipe.model_fields:
        lines.append("")
        if name == "method":
            lines += _section(
                name, described[name], method_options(method), {"name": method}, OF_METHOD
            )
        elif name in REWARDS:
            chosen = rewards if name == "rewards" else _held_out(rewards)
            lines += _rewards(name, described[name], chosen)
        elif name in sections:
            options = options_of_model(sections[name])
            usual = USUAL.get(name, ())
            lines += _section(name, described[name], options, values.get(name, {}), usual)
    return "\n".join(lines) + "\n"


def _section(
    name: str,
    description: str,
    options: Sequence[Option],
    values: Mapping[str, Any],
    usual: Sequence[str],
) -> Iterator[str]:
    """A section's lines; its heading is a comment too where none of its keys is set."""
    live = [option.name for option in options if option.name in (*values, *usual)]
    if description:
        yield from wrap(description, WIDTH, initial_indent="# ", subsequent_indent="# ")
    yield f"{name}:" if live else f"# {name}:"
    for option in options:
        yield from wrap(_comment(option), **COMMENT)
        value = yaml_of(values[option.name]) if option.name in values else option.default
        mark = "" if option.name in live else "# "
        yield f"  {mark}{option.name}: {value}"


def _comment(option: Option) -> str:
    """An option's description, or its name, with type, bounds and unit."""
    facts = ", ".join(filter(None, (option.type, option.bounds, option.unit)))
    return f"{option.description or option.name.replace('_', ' ')} ({facts})"


def _rewards(name: str, description: str, rewards: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {description}"
    yield f"{name}:" if rewards else f"# {name}: {{}}"
    for label, options in rewards.items():
        yield f"  {yaml_of(label)}: {yaml_of(options)}"


def _held_out(rewards: Mapping[str, Any]) -> dict[str, Any]:
    """The same goals by another bundled CLIP, where the optimised one is bundled."""
    held_out = {}
    for label, options in rewards.items():
        if options.get("path") in bundled.clips() and options["path"] != HELD_OUT:
            held_out[f"heldout_{label}"] = {**options, "path": HELD_OUT}
    return held_out
