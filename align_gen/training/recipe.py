"""A run as one YAML file and one strict model of it."""

import difflib
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from .. import bundled, methods
from ..errors import UserError, one_line
from ..methods.batches import Sampling
from ..reward_heads.base import label
from ..strict import Strict
from .calibration import Combine
from .memory import Memory


class Lora(Strict):
    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    target_modules: str | tuple[str, ...] | None = None  # names, or one regular expression


class ModelSection(Strict):
    path: str
    adapter: str | None = None  # an earlier export to go on from; it is then the reference too
    lora: Lora | None = Lora()  # null trains every weight against a frozen copy
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    attention: Literal["auto", "sdpa", "math", "flash", "efficient", "cudnn", "xformers"] = "auto"


class PromptsSection(Strict):
    train: str | None = None  # null for methods that learn from data
    eval: str


class DataSection(Strict):
    """Of methods that learn from what is there already."""

    pairs: str | None = None  # preferences, as `align-gen pairs` writes them
    media: str | None = None  # a gallery, or anything that `align-gen score` reads


class Evaluate(Strict):
    every: int = Field(0, ge=0)  # 0: before and after only
    num_inference_steps: int = Field(20, ge=1)
    eta: float = Field(0.0, ge=0, le=1)
    guidance_scale: float | None = Field(None, ge=0)  # null: the training's
    seeds: tuple[int, ...] = Field((0, 1, 2, 3), min_length=1)
    batch_size: int = Field(32, ge=1)

    @field_validator("seeds")
    @classmethod
    def _once_each(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("want each seed once")
        return seeds


class Stop(Strict):
    when: Literal["never", "eval_rewards_fall"] = "never"
    patience: int = Field(3, ge=1)


class Optim(Strict):
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)
    micro_batch: int = Field(
        16, ge=1
    )  # samples per denoiser call; bounds memory, changes nothing else


class RunSection(Strict):
    steps: int = Field(100, ge=1)
    seed: int = 0
    save_every: int = Field(10, ge=1)
    tracker: str = "none"
    out: str | None = None
    placebo: bool = False  # shuffle rewards within each prompt: what rises then is not learning


class Recipe(Strict):
    """Everything that decides a run. ``method`` is checked by the method it names."""

    model: ModelSection
    method: dict[str, Any]
    prompts: PromptsSection
    data: DataSection = DataSection()
    rewards: dict[Any, Any] = Field({})
    combine: Combine = Combine()
    eval_rewards: dict[Any, Any] = Field({})
    sampling: Sampling = Sampling()
    evaluate: Evaluate = Evaluate()
    stop: Stop = Stop()
    optim: Optim = Optim()
    memory: Memory = Memory()
    run: RunSection = RunSection()

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """From a bundled name or a YAML file; ``overrides`` are "section.key=value".

        Raises:
            UserError: one line that names the key and what is accepted.
        """
        path = (
            bundled.RECIPES / f"{source}.yaml" if str(source) in bundled.recipes() else Path(source)
        )
        if not path.is_file():
            raise UserError(
                f"recipe {str(source)!r}: no such file; want a .yaml file, or one of {bundled.recipes()}"
            )
        try:
            data = yaml.load(path.read_text(encoding="utf-8"), YamlLoader)
        except (
            yaml.YAMLError,
            ValueError,
            RecursionError,
        ) as error:  # ValueError: bytes that are no text, huge integers
            raise UserError(f"{path}: not YAML: {one_line(error)}") from error
        if not isinstance(data, dict):
            raise UserError(f"{path}: want a mapping with the sections {sorted(cls.model_fields)}")
        for override in overrides:
            _override(data, override)
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: Mapping[str, Any], source: str = "recipe") -> "Recipe":
        """From plain data, checked; mistakes are a UserError."""
        recipe = checked(cls, data, source)
        options = recipe.method_options(source)
        method = methods.load(options.name)
        method.check(options, recipe.sampling)
        for key, wanted in (method.needs(options) if hasattr(method, "needs") else {}).items():
            section, name = key.split(".")
            if getattr(getattr(recipe, section), name) is None:
                raise UserError(f"{source}: {key}: {wanted} wants it; it is null")
        _require_source(recipe, options, source)
        if recipe.rewards.keys() & recipe.eval_rewards.keys():
            both = sorted(map(str, recipe.rewards.keys() & recipe.eval_rewards.keys()))
            raise UserError(
                f"{source}: eval_rewards: {both} is optimised too; a held-out reward needs another name"
            )
        if recipe.stop.when == "eval_rewards_fall" and not (
            recipe.eval_rewards and recipe.evaluate.every
        ):
            raise UserError(
                f"{source}: stop.when: eval_rewards_fall wants eval_rewards and evaluate.every > 0"
            )
        return recipe.model_copy(update={"method": options.model_dump()})

    def method_options(self, source: str = "recipe") -> Any:
        """The method's own checked options."""
        name = self.method.get("name")
        if not isinstance(name, str) or name not in methods.METHODS:
            raise UserError(
                f"{source}: method.name: no method {name!r}; have {sorted(methods.METHODS)}"
            )
        return checked(methods.load(name).Options, self.method, source, "method.")

    def replace(self, **sections: Any) -> "Recipe":
        """A copy with whole sections replaced, or, for mappings over a section, single keys of it.

        Rewards, and a method of another name, replace what was there.
        """
        data = self.model_dump()
        for name, value in sections.items():
            merge = isinstance(value, Mapping) and name not in ("rewards", "eval_rewards")
            merge = merge and (name != "method" or value.get("name") in (None, self.method["name"]))
            data[name] = {**data.get(name, {}), **value} if merge else value
        return Recipe.parse(data)

    def to_yaml(self) -> str:
        """Complete, with every default spelled out; callables by their name."""
        plain = json.loads(json.dumps(_named(self.model_dump()), default=str))
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _require_source(recipe: Recipe, options: Any, source: str) -> None:
    """A method's units must come from somewhere, and what compares pictures must be told what is
    good.
    """
    kind = methods.load(options.name).kind(options)
    given = {
        "prompts": recipe.prompts.train,
        "pairs": recipe.data.pairs,
        "media": recipe.data.media,
    }
    key = "prompts.train" if kind == "prompts" else f"data.{kind}"
    if given[kind] is None:
        raise UserError(
            f"{source}: {key}: method {recipe.method['name']} learns from it; want a file or a name"
        )
    for other in ("pairs", "media"):
        if other != kind and given[other] is not None:
            raise UserError(
                f"{source}: data.{other}: method {recipe.method['name']} does not use it; want {key} alone"
            )
    compares = kind == "prompts" or (kind == "media" and options.images_per_prompt > 1)
    if compares and not recipe.rewards:
        raise UserError(f"{source}: rewards: nothing says what is good; want one or more")
    if not (recipe.rewards or recipe.eval_rewards):
        raise UserError(f"{source}: eval_rewards: nothing to measure with; want one or more")
    if kind == "pairs" and recipe.run.placebo:
        raise UserError(
            f"{source}: run.placebo: shuffles rewards, and these pairs are chosen already"
        )


def checked(model: type[Any], data: Any, source: str, prefix: str = "") -> Any:
    """Validate, turning the first complaint into one line: the key, what is accepted, the nearest
    known key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = prefix + ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, first["loc"][:-1])
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {known}"
            raise UserError(f"{source}: unknown key {key}; {hint}") from None
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        got = "" if first["type"] == "missing" else f", got {reprlib.repr(first['input'])}"
        raise UserError(f"{source}: {key}: {first['msg'].lower()}{got}{more}") from None


def difference(mine: str, theirs: str) -> str:
    """The lines in which two recipes differ, short enough for one message."""
    lines = difflib.unified_diff(theirs.splitlines(), mine.splitlines(), lineterm="", n=0)
    changed = [
        line.replace("  ", "")
        for line in lines
        if line[0] in "+-" and line[:3] not in ("+++", "---")
    ]
    return "; ".join(changed[:6]) + (" …" if len(changed) > 6 else "")


def _known_keys(model: Any, location: tuple[Any, ...]) -> list[str]:
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(
            (o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model
        )
    return sorted(model.model_fields)


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override}: want section.key=value")
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {override}: {parent} is no section")
    try:
        data[last] = yaml.load(value, YamlLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--set {override}: {value!r} is not YAML") from error


def _named(value: Any) -> Any:
    """Callables by their name, so that a recipe can be written down."""
    if isinstance(value, Mapping):
        return {_named(key): _named(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_named(item) for item in value]
    return label(value) if callable(value) else value


class YamlLoader(yaml.SafeLoader):
    """YAML 1.2's floats: 1e-4 is a number. Duplicate keys and aliases are refused."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(
            yaml.AliasEvent
        ):  # a few lines of them can stand for more than any memory
            raise yaml.YAMLError("aliases (*name) are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"key {sorted(twice)[0]!r} stands twice")
        return super().construct_mapping(node, deep)


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)
