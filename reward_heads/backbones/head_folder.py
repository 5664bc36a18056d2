"""The folder of a trained head: ``head.safetensors`` and ``head.json``.

``head.json`` names the base model, by a path relative to the folder, as a bundled model or as one of the hub's.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .scorer import Scorer

FORMAT = 1  # of the folder; raised when an older reader would misread it
WEIGHTS, ABOUT = "head.safetensors", "head.json"
BUNDLED = Path(__file__).parent.parent.parent / "assets" / "models"
_KEYS: dict[str, Any] = {
    "media": str, "dimensions": list, "width": int, "hidden": int, "mean": list, "std": list, "resize": str,
    "base": str, "base_sha256": str, "pretrained": str | None,
}  # fmt: skip


def save_head(folder: Path, scorer: Scorer, about: Mapping[str, Any]) -> None:
    """Write both files; ``about`` brings base, pretrained, base_sha256, resize, mean and std."""
    from safetensors.torch import save_file

    save_file(
        {name: value.cpu().contiguous() for name, value in scorer.state_dict().items()},
        folder / WEIGHTS,
    )
    own = {"format": FORMAT, "media": scorer.media, "dimensions": list(scorer.dimensions)}
    own |= {"width": scorer.width, "hidden": scorer.hidden}
    (folder / ABOUT).write_text(json.dumps(own | dict(about), indent=1) + "\n")


def read_about(folder: Path) -> dict[str, Any]:
    """head.json, checked; ValueError names the folder and the key."""
    file = folder / ABOUT
    if (folder / "open_clip_config.json").is_file() and not file.is_file():
        raise ValueError(
            f"path {folder}: an open_clip model, as train-reward's LoRA mode writes it; "
            f"want clip:path={folder}"
        )
    if not file.is_file():
        raise ValueError(
            f"path {folder}: no {ABOUT} in it; want a folder as `align-gen train-reward` writes it"
        )
    try:
        about = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{file}: want a head of format {FORMAT}")
    for key, kind in _KEYS.items():
        if key not in about or not isinstance(about[key], kind) or isinstance(about[key], bool):
            raise ValueError(f"{file}: {key} is {about.get(key)!r}, which is none")
    count = len(about["dimensions"])
    names = all(isinstance(name, str) for name in about["dimensions"])
    numbers = [value for key in ("mean", "std") for value in about[key]]
    if not (names and count and len(about["mean"]) == len(about["std"]) == count):
        raise ValueError(f"{file}: want as many names of dimensions as mean and std have numbers")
    if (
        not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
        or min(about["std"]) <= 0
    ):
        raise ValueError(f"{file}: mean, std: want finite numbers, std above 0")
    if about["resize"] not in ("squash", "shortest"):
        raise ValueError(f"{file}: resize is {about['resize']!r}, want squash or shortest")
    if not (0 < about["width"] <= 2**16 and 0 <= about["hidden"] <= 2**16):
        raise ValueError(
            f"{file}: width, hidden: want sizes of layers, got {about['width']}, {about['hidden']}"
        )
    return about


def find_base(folder: Path, base: str) -> str:
    """The base model of a head: beside it, bundled, or by the name itself."""
    for place in (folder / base, BUNDLED / base):
        if (place / "open_clip_config.json").is_file():
            return str(place)
    return base
