"""A run as one YAML file and one strict model of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator

from .. import bundled, methods
from ..errors import UserError
from ..methods.base import MethodOptions
from ..methods.batches import Sampling
from ..opening import code_named, refuse_code
from ..precision import DtypeName, dtype_name
from ..reward_heads.base import label
from ..strict import Strict
from .calibration import Combine
from .lookup import OPEN, look_beside
from .memory import Memory
from .yaml_text import apply_override, parse_yaml, validate, with_names


def _short_dtype(value: Any) -> Any:
    return dtype_name(value) if isinstance(value, str) else value


class Lora(Strict):
    """Low-rank adaptation of every trainable component."""

    rank: int = Field(8, ge=1, description="Rank of the update.")
    alpha: float | None = Field(
        None, gt=0, description="Scale of the update, times rank. null: the rank itself, scale 1."
    )
    target_modules: str | tuple[str, ...] | None = Field(
        None,
        description="Names of layers, or their last parts; * stands for any letters. null: the "
        "family's default.",
    )


class ModelSection(Strict):
    """The generator to train."""

    path: str = Field(description="A bundled name, a pipeline folder, or a hub name owner/model.")
    adapter: str | None = Field(
        None, description="An earlier export to go on from; it is then the reference too."
    )
    lora: Lora | None = Field(
        Lora(), description="null trains every weight, against a frozen copy."
    )
    dtype: Annotated[DtypeName, BeforeValidator(_short_dtype)] = Field(
        "fp32", description="Precision of the frozen weights; what is trained stays in fp32."
    )
    attention: Literal["auto", "sdpa", "math", "flash", "efficient", "cudnn", "xformers"] = Field(
        "auto", description="Attention kernel. auto: PyTorch's own choice."
    )


class PromptsSection(Strict):
    """Prompt lists: a bundled name, a .txt file (a prompt a line) or a .jsonl file."""

    train: str | None = Field(
        None, description="Prompts to learn from; null for methods that learn from data."
    )
    eval: str = Field(description="Held-out prompts, which are only measured.")


class DataSection(Strict):
    """Of methods that learn from what is there already."""

    pairs: str | None = Field(
        None, description="Preference pairs, as `align-gen pairs` writes them."
    )
    media: str | None = Field(
        None, description="Pictures with prompts: a gallery, or anything `align-gen score` reads."
    )


class Evaluate(Strict):
    """How held-out prompts are drawn and measured."""

    every: int = Field(
        0, ge=0, description="Measure after every so many steps. 0: before and after only."
    )
    num_inference_steps: int = Field(20, ge=1, description="Denoising steps of a picture.")
    eta: float = Field(
        0.0, ge=0, le=1, description="Noise of a step: 0 is the ODE (DDIM), 1 the DDPM posterior."
    )
    guidance_scale: float | None = Field(
        None, ge=0, description="Classifier-free guidance. null: as in sampling."
    )
    seeds: tuple[int, ...] = Field(
        (0, 1, 2, 3), min_length=1, description="One picture of every prompt for each number."
    )
    batch_size: int = Field(32, ge=1, description="Pictures at a time; bounds memory.")

    @field_validator("seeds", mode="before")
    @classmethod
    def _one_or_more(cls, seeds: Any) -> Any:
        return (seeds,) if type(seeds) is int else seeds

    @field_validator("seeds")
    @classmethod
    def _once_each(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("want each seed once")
        return seeds


class Stop(Strict):
    """When a run ends before its last step."""

    when: Literal["never", "eval_rewards_fall"] = Field(
        "never", description="eval_rewards_fall: a held-out mean lies .25 deviations below start."
    )
    patience: int = Field(3, ge=1, description="Measurements in a row that must say so.")


class Optim(Strict):
    """AdamW, gradient clipping and averaging."""

    lr: float = Field(1e-4, gt=0, description="Learning rate, constant.")
    weight_decay: float = Field(1e-4, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an average of the weights, which is what is measured and exported. "
        "null: the weights themselves.",
    )
    micro_batch: int = Field(
        16, ge=1, description="Samples per denoiser call; bounds memory and changes nothing else."
    )


class RunSection(Strict):
    """Length, seed and bookkeeping of a run."""

    steps: int = Field(100, ge=1, description="Training steps, each a round of the method.")
    seed: int = Field(0, description="Decides everything that is random.")
    save_every: int = Field(10, ge=1, description="Write a checkpoint every so many steps.")
    tracker: str = Field("none", description="An accelerate tracker: tensorboard, wandb, …")
    out: str | None = Field(None, description="The run's folder. null: runs/latest.")
    placebo: bool = Field(
        False, description="Shuffle rewards within each prompt: what rises then is not learning."
    )


class Recipe(Strict):
    """Everything that decides a run; ``method`` holds the checked options of the method named."""

    model: ModelSection
    method: SerializeAsAny[MethodOptions] = Field(
        description="name, and the options of that method."
    )
    prompts: PromptsSection
    data: DataSection = DataSection()
    rewards: dict[Any, Any] = Field(
        {}, description="What is optimised: a reward, or a label, to its weight or its options."
    )
    combine: Combine = Combine()
    eval_rewards: dict[Any, Any] = Field(
        {}, description="What is measured and never optimised, written as rewards are."
    )
    sampling: Sampling = Sampling()
    evaluate: Evaluate = Evaluate()
    stop: Stop = Stop()
    optim: Optim = Optim()
    memory: Memory = Memory()
    run: RunSection = RunSection()

    @classmethod
    def load(
        cls,
        source: str | Path,
        overrides: Sequence[str] = (),
        *,
        beside: bool = True,
        allow_code: bool = False,
    ) -> "Recipe":
        """From a bundled name or a YAML file.

        Args:
            overrides: "section.key=value"; paths in them count from the working directory.
            beside: look for the files that a recipe names beside it first, and then in the working
                directory. Not for the recipe that a run wrote down, whose paths are looked up.
            allow_code: let the file name rewards by their code, which a run executes. Rewards of
                the table need no leave, nor does what ``overrides`` name.

        Raises:
            UserError: one line that names the key and what is accepted.
        """
        is_bundled = str(source) in bundled.recipes()
        path = bundled.RECIPES / f"{source}.yaml" if is_bundled else Path(source)
        if not path.is_file():
            raise UserError(
                f"recipe {str(source)!r}: no such file; want a .yaml file, "
                f"or one of {bundled.recipes()}"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except ValueError as error:
            raise UserError(f"{path}: not YAML: {error}") from error
        data = parse_yaml(text, str(path))
        if not isinstance(data, dict):
            raise UserError(f"{path}: want a mapping with the sections {sorted(cls.model_fields)}")
        if beside and not is_bundled:
            data = look_beside(data, path.parent)
        from_file = code_named(data)
        for override in overrides:
            apply_override(data, override)
        recipe = cls.parse(data, str(path))
        if not allow_code:
            named = code_named(data).items() & from_file.items()
            refuse_code(dict(sorted(named)), str(path))
        return recipe

    @classmethod
    def parse(cls, data: Mapping[str, Any], source: str = "recipe") -> "Recipe":
        """From plain data, checked; mistakes are a UserError."""
        if "method" in data:
            data = {**data, "method": method_options(data["method"], source)}
        recipe: Recipe = validate(cls, data, source)
        try:
            recipe.method.require(recipe.sampling)
        except ValueError as error:
            raise UserError(str(error)) from error
        for key, wanted in recipe.method.required_keys().items():
            section, name = key.split(".")
            if getattr(getattr(recipe, section), name) is None:
                raise UserError(f"{source}: {key}: {wanted} wants it; it is null")
        _require_source(recipe, source)
        _require_measurement(recipe, source)
        return recipe

    def replace(self, **sections: Any) -> "Recipe":
        """A copy with whole sections replaced, or, for mappings over a section, single keys of it.

        Rewards, and a method of another name, replace what was there.
        """
        data = self.model_dump()
        for name, value in sections.items():
            merge = isinstance(value, Mapping) and name not in OPEN
            if merge and name == "method":
                merge = value.get("name") in (None, self.method.name)
            data[name] = {**data.get(name, {}), **value} if merge else value
        return Recipe.parse(data)

    def __repr__(self) -> str:
        return f"Recipe({self.method.name} on {self.model.path!r}, {self.run.steps} steps)"

    __str__ = __repr__

    def to_yaml(self) -> str:
        """Complete, with every default spelled out; callables by their name."""
        plain = json.loads(json.dumps(with_names(self.model_dump()), default=str))
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def method_options(data: Any, source: str = "recipe") -> MethodOptions:
    """The checked options of the method that a recipe's section names.

    Raises:
        UserError: no such method, or an option that it has not.
    """
    if isinstance(data, MethodOptions):
        return data
    name = data.get("name") if isinstance(data, Mapping) else None
    if not isinstance(name, str) or name not in methods.METHODS:
        known = sorted(methods.METHODS)
        raise UserError(f"{source}: method.name: no method {name!r}; have {known}")
    options: MethodOptions = validate(methods.options_of(name), data, source, "method.")
    return options


def _require_source(recipe: Recipe, source: str) -> None:
    """A method's units must come from somewhere, and from one place."""
    name = recipe.method.name
    kind = recipe.method.batch_kind()
    given = {
        "prompts": recipe.prompts.train,
        "pairs": recipe.data.pairs,
        "media": recipe.data.media,
    }
    key = "prompts.train" if kind == "prompts" else f"data.{kind}"
    if given[kind] is None:
        raise UserError(f"{source}: {key}: method {name} learns from it; want a file or a name")
    for other in ("pairs", "media"):
        if other != kind and given[other] is not None:
            raise UserError(
                f"{source}: data.{other}: method {name} does not use it; want {key} alone"
            )


def _require_measurement(recipe: Recipe, source: str) -> None:
    """Check that methods which compare pictures have a reward, and that something is measured."""
    kind = recipe.method.batch_kind()
    compares = kind == "prompts" or (kind == "media" and recipe.method.images_per_prompt > 1)
    if compares and not recipe.rewards:
        raise UserError(f"{source}: rewards: nothing says what is good; want one or more")
    if not (recipe.rewards or recipe.eval_rewards):
        raise UserError(f"{source}: eval_rewards: nothing to measure with; want one or more")
    if kind == "pairs" and recipe.run.placebo:
        raise UserError(
            f"{source}: run.placebo: shuffles rewards, and these pairs are chosen already"
        )
    both = sorted({label(key) for key in recipe.rewards} & {*map(label, recipe.eval_rewards)})
    if both:
        raise UserError(
            f"{source}: eval_rewards: {both} is optimised too; a held-out reward needs another name"
        )
    measured = recipe.eval_rewards and recipe.evaluate.every
    if recipe.stop.when == "eval_rewards_fall" and not measured:
        raise UserError(
            f"{source}: stop.when: eval_rewards_fall wants eval_rewards and evaluate.every > 0"
        )
