"""LoRA files of others: which layers, and of which rank, is read off their tensors.

What a file says of itself beside them would be taken for a regular expression, which may take for
ever, and for options that no export of ours has.
"""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .headers import ABOUT, LENGTH, read_header, tensor_shapes

SETTINGS = "lora_adapter_metadata"
# Names as torch makes them; anything else would be a pattern to peft.
PLAIN = re.compile(r"[\w.\-]+")
DOWN = ".lora_A.weight"


def write_plain(file: Path, out: Path) -> None:
    """Write a copy of a LoRA's file whose settings are those of its tensors.

    Scales (alpha) are kept; they are in no tensor. A file without settings is linked to.

    Raises:
        ValueError: it is no safetensors file, or has names that no module can have.
    """
    header, start = read_header(file)
    shapes = tensor_shapes(header)
    for name in shapes:
        if not PLAIN.fullmatch(name):
            raise ValueError(f"{file}: tensor {name[:80]!r}: want letters, digits and dots alone")
    about = header.get(ABOUT, {})
    if SETTINGS not in about:
        out.symlink_to(file.resolve())
        return

    settings = plain_settings(_read_settings(file, about[SETTINGS]), shapes)
    others = {key: value for key, value in about.items() if key != SETTINGS}
    kept = {**others, SETTINGS: json.dumps(settings)} if settings else others
    content = json.dumps({**header, ABOUT: kept}).encode()
    # Tensors begin at a multiple of eight bytes; their own places count from there.
    content += b" " * (-len(content) % 8)
    with file.open("rb") as source, out.open("wb") as target:
        target.write(LENGTH.pack(len(content)) + content)
        source.seek(start)
        shutil.copyfileobj(source, target)


def plain_settings(settings: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """peft's settings of each network in a file, from its tensors' names and shapes.

    Args:
        settings: the file's own, "network.setting", or "setting" where it has one network.
        shapes: of the tensors, "network.module.lora_A.weight" …
    """
    plain: dict[str, Any] = {}
    networks = {key.rpartition(".")[0] for key in settings if key.rpartition(".")[2] == "r"}
    for network in sorted(networks):
        prefix = f"{network}." if network else ""
        ranks = {
            name.removeprefix(prefix).removesuffix(DOWN): shape[0]
            for name, shape in shapes.items()
            if name.startswith(prefix) and name.endswith(DOWN) and shape
        }
        if ranks:
            told = {key: settings.get(prefix + key) for key in ("lora_alpha", "alpha_pattern")}
            told["use_rslora"] = settings.get(f"{prefix}use_rslora") is True
            plain |= {prefix + key: value for key, value in _settings(ranks, told).items()}
    return plain


def _settings(ranks: Mapping[str, int], told: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one network: ranks by module, and what its file tells of scales."""
    rank = Counter(ranks.values()).most_common(1)[0][0]
    scales = told["alpha_pattern"] if isinstance(told["alpha_pattern"], Mapping) else {}
    return {
        "r": rank,
        "lora_alpha": told["lora_alpha"] if _is_number(told["lora_alpha"]) else rank,
        "target_modules": sorted(ranks),
        # By whole names: peft reads each of these as a pattern.
        "rank_pattern": {
            f"^{re.escape(name)}": other for name, other in ranks.items() if other != rank
        },
        "alpha_pattern": {
            re.escape(name): scale
            for name, scale in scales.items()
            if PLAIN.fullmatch(name) and _is_number(scale)
        },
        "use_rslora": told["use_rslora"],
    }


def _read_settings(file: Path, text: Any) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: {SETTINGS}: want a JSON object")
    return settings


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e9 and math.isfinite(value)
