"""What ships with the package, by name: models, prompt lists, recipes."""

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS = HERE / "assets" / "models"
PROMPTS = HERE / "assets" / "prompts"
RECIPES = HERE / "recipes"
PICTURES = HERE / "assets" / "pictures"  # a gallery of a few real ones


def names(folder: Path, pattern: str = "*") -> list[str]:
    """What can be named in a folder of ours."""
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob(pattern))


def models() -> list[str]:
    """Bundled models."""
    return names(MODELS)


def prompts() -> list[str]:
    """Bundled prompt lists."""
    return names(PROMPTS, "*.jsonl")


def recipes() -> list[str]:
    """Bundled recipes."""
    return names(RECIPES, "**/*.yaml")


def model_path(name: str) -> str:
    """A bundled model's folder, or the name itself: a path or a hub name."""
    return str(MODELS / name) if name in models() else name


def reward_spec(spec: dict[Any, Any]) -> dict[Any, Any]:
    """A reward specification with bundled models named by ``path`` resolved."""
    resolved = {}
    for key, value in spec.items():
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            value = value | {"path": model_path(value["path"])}
        resolved[key] = value
    return resolved
