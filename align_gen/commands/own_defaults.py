"""A model's own size, steps, guidance and precision, for a recipe to start from."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import bundled
from ..errors import user_mistakes

# Keys that depend on the model more than on the goal; whole sections where none is named.
KEYS: dict[str, tuple[str, ...]] = {
    "model": ("dtype", "attention"),
    "sampling": (),
    "evaluate": ("num_inference_steps", "batch_size"),
    "optim": ("micro_batch",),
    "memory": (),
}
LIKE = {"emoji-video": "emoji-sd"}  # the same networks, with motion
LARGE = 5 * 10**8  # trained parameters from which a run wants half precision and less memory
SAVING: dict[str, dict[str, Any]] = {
    "model": {"dtype": "bf16"},
    "evaluate": {"batch_size": 1},
    "optim": {"micro_batch": 1},
    "memory": {"checkpointing": True, "free_text_encoders": True},
}
GENERAL = (
    "Nothing of this model is here, and nothing was loaded: size, steps, guidance and precision "
    "are general defaults, not its own."
)
TOY = "Size, steps, guidance and precision are general defaults: this model is a toy."


@dataclass(frozen=True)
class OwnDefaults:
    """Keys of a recipe as a model wants them.

    Attributes:
        values: section -> key -> value.
        origin: a sentence that says where they come from.
        model: the model without weights, to count its calls with; None if nothing of it is here.
    """

    values: Mapping[str, Mapping[str, Any]]
    origin: str
    model: Any = None


def own_defaults(name: str, method: str) -> OwnDefaults:
    """What the shipped recipe of a model sets, or else what its pipeline does by default.

    Nothing is downloaded.

    Args:
        name: as ``model.path`` has it.
        method: the method's name; a shipped recipe of that method comes first.

    Raises:
        UserError: no such model, or one of a class without an adapter.
    """
    from ..pipelines.registry import TOYS

    if name in TOYS:
        return OwnDefaults({}, TOY)
    with user_mistakes():
        model = _without_weights(name)
    if model is None:
        return OwnDefaults({}, GENERAL)

    recipe = _shipped(LIKE.get(name, name), method)
    if recipe is None:
        pipeline = type(model.pipeline)
        origin = (
            f"Size, steps and guidance are the defaults of diffusers' {pipeline.__name__}; "
            "precision and batches go by the number of parameters."
        )
        values = _of_pipeline(pipeline, model)
    else:
        origin = f"Size, steps, guidance and precision are those of the recipe {recipe}."
        values = _of_recipe(recipe)
    frames = model.default_frames
    if frames > 1:
        values["sampling"].setdefault("num_frames", frames)
    # A recipe of pictures takes as many of them at a time as a video has frames, and more.
    if name in LIKE:
        for section, key in (("evaluate", "batch_size"), ("optim", "micro_batch")):
            values[section][key] = max(1, values[section][key] // frames)
    return OwnDefaults(values, origin, model)


def _without_weights(name: str) -> Any:
    """The model on tensors without data; None if its small files are not on this machine."""
    from huggingface_hub import snapshot_download

    from .. import pipelines
    from ..pipelines.loading import is_hub_name
    from ..pipelines.skeleton import PUBLISHED, describe_source, read_description, skeleton

    source = bundled.generator_path(name)
    published = {json.loads(file.read_text())["repo"] for file in PUBLISHED.glob("*.json")}
    if not is_hub_name(source) or source in published:
        return pipelines.load(skeleton(describe_source(source)))
    try:
        folder = snapshot_download(source, allow_patterns="*.json", local_files_only=True)
        description = read_description(Path(folder))
    except (OSError, ValueError):
        # Never downloaded, or in part.
        return None
    return pipelines.load(skeleton(description))


def _shipped(name: str, method: str) -> str | None:
    """The shipped recipe of a model, one of the method if there is any, else PRDP's."""
    from ..training.recipe import Recipe

    found = []
    for recipe in bundled.recipes():
        section = Recipe.load(recipe)
        if section.model.path == name and not recipe.startswith("paper/"):
            learner = section.method.name
            found.append((learner != method, learner != "prdp", recipe))
    return min(found)[-1] if found else None


def _of_recipe(name: str) -> dict[str, dict[str, Any]]:
    from ..training.recipe import Recipe

    given = Recipe.load(name).model_dump(mode="json", exclude_unset=True)
    values = {}
    for section, keys in KEYS.items():
        part = given.get(section, {})
        values[section] = {key: part[key] for key in part if not keys or key in keys}
    return values


def _of_pipeline(pipeline: type, model: Any) -> dict[str, dict[str, Any]]:
    """Defaults of a pipeline's call, and the size that the model was made for."""
    defaults = {}
    for name, parameter in inspect.signature(pipeline.__call__).parameters.items():
        defaults[name] = parameter.default
    sampling: dict[str, Any] = {"num_inference_steps": defaults["num_inference_steps"]}
    # Some pipelines call classifier-free guidance so.
    guidance = defaults.get("guidance_scale") or defaults.get("true_cfg_scale")
    if guidance:
        sampling["guidance_scale"] = float(guidance)
    sampling["height"], sampling["width"] = model.default_size
    steps = {"num_inference_steps": sampling["num_inference_steps"]}
    values: dict[str, dict[str, Any]] = {"sampling": sampling, "evaluate": steps}

    trained = sum(p.numel() for part in model.trainable.values() for p in part.parameters())
    if trained >= LARGE:
        for section, options in SAVING.items():
            values[section] = {**values.get(section, {}), **options}
    return values
