"""The folder of a trained head: ``head.safetensors`` and ``head.json``.

``head.json`` names the base model: by a path relative to the folder, as a bundled model, or as one
of the hub's.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .scorer import Scorer

# Of the folder; raise when an older reader would misread it.
FORMAT = 1
WEIGHTS = "head.safetensors"
ABOUT = "head.json"
BUNDLED = Path(__file__).parent.parent.parent / "assets" / "models"
# The widest layer that a file, which is not trusted, may ask for.
MOST = 2**16
_KEYS: dict[str, Any] = {
    "media": str,
    "dimensions": list,
    "width": int,
    "hidden": int,
    "mean": list,
    "std": list,
    "resize": str,
    "base": str,
    "base_sha256": str,
    "pretrained": str | None,
}


def save_head(folder: Path, scorer: Scorer, about: Mapping[str, Any]) -> None:
    """Write both files; ``about`` brings base, pretrained, base_sha256, resize, mean and std."""
    from safetensors.torch import save_file

    state = {name: value.cpu().contiguous() for name, value in scorer.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    shape = {"format": FORMAT, "media": scorer.media, "dimensions": list(scorer.dimensions)}
    shape |= {"width": scorer.width, "hidden": scorer.hidden}
    (folder / ABOUT).write_text(json.dumps(shape | dict(about), indent=1) + "\n")


def read_about(folder: Path) -> dict[str, Any]:
    """Read head.json and check it; a ValueError names the folder and the key."""
    file = folder / ABOUT
    if not file.is_file():
        if (folder / "open_clip_config.json").is_file():
            raise ValueError(
                f"path {folder}: an open_clip model, as train-reward's LoRA mode writes it; "
                f"want clip:path={folder}"
            )
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
    _require_values(file, about)
    return about


def _require_values(file: Path, about: Mapping[str, Any]) -> None:
    """Check the values of head.json, whose types are right."""
    names, mean, std = about["dimensions"], about["mean"], about["std"]
    are_names = all(isinstance(name, str) for name in names)
    if not (are_names and names and len(mean) == len(std) == len(names)):
        raise ValueError(f"{file}: want as many names of dimensions as mean and std have numbers")

    finite = all(isinstance(v, int | float) and math.isfinite(v) for v in (*mean, *std))
    if not finite or min(std) <= 0:
        raise ValueError(f"{file}: mean, std: want finite numbers, std above 0")

    if about["resize"] not in ("squash", "shortest"):
        raise ValueError(f"{file}: resize is {about['resize']!r}, want squash or shortest")
    width, hidden = about["width"], about["hidden"]
    if not (0 < width <= MOST and 0 <= hidden <= MOST):
        raise ValueError(f"{file}: width, hidden: want sizes of layers, got {width}, {hidden}")


def find_base(folder: Path, base: str) -> str:
    """The base model of a head: beside it, bundled, or by the name itself."""
    for candidate in (folder / base, BUNDLED / base):
        if (candidate / "open_clip_config.json").is_file():
            return str(candidate)
    return base
