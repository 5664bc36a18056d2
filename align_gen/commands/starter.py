"""The text of a recipe to start from: every key with its description, the usual ones set."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from .. import bundled
from .options import Option, description_of, options_of_model, sections_of, yaml_of
from .own_defaults import OwnDefaults, own_defaults

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
# A recipe to start from: set your own prompts and goal first.
# Keys in comments have their defaults; docs/recipe.md has all of them.
"""
COST = (
    "Rows through the denoiser: {forwards:,} a step, {backwards:,} of them backward; {all:,} in "
    "{steps:,} steps, and {galleries:,} for {number}."
)
ESTIMATED = "Memory and time: `align-gen finetune RECIPE --dry-run` estimates them; not measured."


def starter(model: str, method: str, rewards: Mapping[str, Any], out: str) -> str:
    """The recipe's text.

    Args:
        model: its ``model.path``.
        method: the method's name.
        rewards: label -> options, what is optimised.
        out: the folder of the run.

    Raises:
        UserError: no such method or model.
    """
    from ..training.recipe import Recipe
    from ..training.yaml_text import parse_yaml
    from .listing import method_kind

    kind = method_kind(method)  # refuses a name that is none, before the model is looked at
    own = own_defaults(model, method)
    values = _values(model, kind, out, own)
    body = "\n".join(_body(values, method, rewards)) + "\n"

    # What the recipe costs is known only once it is whole.
    recipe = Recipe.parse(parse_yaml(body, "recipe"))
    head = HEADER.splitlines()
    for sentence in (own.origin, cost_of(recipe, own), ESTIMATED):
        head += wrap(sentence, WIDTH, initial_indent="# ", subsequent_indent="# ")
    return "\n".join(head) + "\n" + body


def _values(model: str, kind: str, out: str, own: OwnDefaults) -> dict[str, dict[str, Any]]:
    """What was asked for, what a run cannot do without, and the model's own."""
    from ..pipelines.registry import TOYS

    values = {section: dict(keys) for section, keys in own.values.items()}
    values["model"] = {"path": model, **values.get("model", {})}
    if model in TOYS:  # too small for a LoRA
        values["model"]["lora"] = None
    # The bundled models know emoji and nothing else.
    subject = "emoji" if model in (*bundled.generators(), *TOYS) else "animals"
    values["prompts"] = {"eval": f"{subject}-heldout"}
    if kind in SOURCES:
        values["data"] = {kind: SOURCES[kind]}
    else:
        values["prompts"]["train"] = f"{subject}-train"
    values["run"] = {"out": out}
    return values


def _body(
    values: Mapping[str, Mapping[str, Any]], method: str, rewards: Mapping[str, Any]
) -> Iterator[str]:
    """The sections, in the order of the recipe's own fields: the file reads as docs/recipe.md."""
    from ..training.recipe import Recipe
    from .listing import method_options

    described = {name: description_of(Recipe, name) for name in Recipe.model_fields}
    sections = dict(sections_of(Recipe))
    for name in Recipe.model_fields:
        yield ""
        if name == "method":
            yield from _section(
                name, described[name], method_options(method), {"name": method}, OF_METHOD
            )
        elif name in REWARDS:
            chosen = rewards if name == "rewards" else _held_out(rewards)
            yield from _rewards(name, described[name], chosen)
        elif name in sections:
            options = options_of_model(sections[name])
            usual = USUAL.get(name, ())
            yield from _section(name, described[name], options, values.get(name, {}), usual)


def cost_of(recipe: Any, own: OwnDefaults) -> str:
    """The calls of a run, of its training and of its galleries."""
    from ..galleries.prompts import load_prompts

    def rows_of(guidance: float) -> int:
        if own.model is None:  # nearly every model compares two sides where it is guided
            return 2 if guidance > 1 else 1
        return int(own.model.rows_per_sample(guidance))

    evaluate, steps = recipe.evaluate, recipe.run.steps
    guidance = recipe.sampling.guidance_scale
    cost = recipe.method.cost(recipe.sampling, rows_of(guidance))
    between = (steps - 1) // evaluate.every if evaluate.every else 0
    # Galleries are drawn before, after, and every so often between.
    pictures = len(load_prompts(recipe.prompts.eval)) * len(evaluate.seeds)
    if evaluate.guidance_scale is not None:
        guidance = evaluate.guidance_scale
    rows = pictures * evaluate.num_inference_steps * rows_of(guidance)
    return COST.format(
        forwards=cost.forwards,
        backwards=cost.backwards,
        all=cost.forwards * steps,
        steps=steps,
        galleries=rows * (2 + between),
        number=f"{2 + between} galleries" if between else "the galleries before and after",
    )


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
