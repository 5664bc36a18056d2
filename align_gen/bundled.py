"""Models, prompt lists and recipes that ship with the package, by name."""

from pathlib import Path
from typing import Any

from .errors import UserError

HERE = Path(__file__).parent
MODELS = HERE / "assets" / "models"
PROMPTS = HERE / "assets" / "prompts"
RECIPES = HERE / "recipes"
PICTURES = HERE / "assets" / "pictures"  # a gallery of a few real ones


def names(folder: Path, pattern: str = "*") -> list[str]:
    """The names of a bundled folder's files, without their suffix."""
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob(pattern))


def models() -> list[str]:
    """Bundled models."""
    return names(MODELS)


def generators() -> list[str]:
    """Bundled models that draw: pipelines of diffusers."""
    return [name for name in models() if (MODELS / name / "model_index.json").is_file()]


def clips() -> list[str]:
    """Bundled models that score: folders of open_clip."""
    return [name for name in models() if (MODELS / name / "open_clip_config.json").is_file()]


def prompts() -> list[str]:
    """Bundled prompt lists."""
    return names(PROMPTS, "*.jsonl")


def recipes() -> list[str]:
    """Bundled recipes."""
    return names(RECIPES, "**/*.yaml")


def model_path(name: str) -> str:
    """A bundled model's folder, or the name itself: a path or a hub name."""
    return str(MODELS / name) if name in models() else name


def generator_path(name: str) -> str:
    """A bundled generator's folder, or the name itself: a path, a hub name, or a toy.

    Raises:
        UserError: a bundled model that scores, or a bare word that names nothing here.
    """
    if name in clips():
        raise UserError(f"{name}: a CLIP scores pictures and draws none; have {generators()}")
    # Hub names have an owner and toys are called so; what is left can only be a folder.
    is_word = "/" not in name and "\\" not in name and not name.startswith("toy-")
    if is_word and name not in models() and not Path(name).exists():
        raise UserError(
            f"model {name!r}: no such pipeline; have {generators()}, "
            "or want a folder with model_index.json, or a hub name owner/model"
        )
    return model_path(name)


def reward_spec(spec: dict[Any, Any]) -> dict[Any, Any]:
    """A reward specification with bundled models named by ``path`` resolved."""
    resolved = {}
    for key, value in spec.items():
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            value = value | {"path": model_path(value["path"])}
        resolved[key] = value
    return resolved
