"""What a pipeline's small files say, checked before anything is built of it.

The files are someone else's: a wrong number in them would end in an error that names neither file
nor key, or in a network that takes hours to build.
"""

import importlib
import json
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .headers import read_header, tensor_shapes

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
KINDS = (
    "Scheduler",
    "Tokenizer",
    "TokenizerFast",
    "Processor",
    "ProcessorFast",
    "FeatureExtractor",
    "Pipeline",
)
# Components by the start of their name.
NETWORKS = ("unet", "transformer", "vae", "text_encoder", "image_encoder", "controlnet")
# Keys that count layers, and those of that look that do not.
LAYERS = re.compile(r"(^|_)(layers?|depths?|blocks?|experts)(_|$)")
NO_COUNT = re.compile(r"(channels|types?|dims?|sizes?)$|window")
MOST_LAYERS = 1_000  # of one kind; the deepest networks that were published have fewer than 100
MOST_STEPS = 1_000_000  # that a scheduler was trained with; usual are 1,000
MOST_TOKENS = 100_000  # of a text encoder that does not say how many it takes
DEEPEST = 100  # nesting of a JSON file; tokenizers read no deeper than 128


def require_sound(folder: Path, index: Mapping[str, Any]) -> None:
    """Check a pipeline folder, whose model_index.json is ``index``.

    Raises:
        ValueError: in one line, with the file, the key and what is accepted.
    """
    rows = {name: row for name, row in index.items() if isinstance(row, list)}
    for name, row in rows.items():
        _require_component(folder / INDEX, name, row)
    configs = {file: read_json(file) for name in rows for file in _small_files(folder / name)}
    for file, config in configs.items():
        check = CHECKS.get(file.name)
        if check is None:
            continue
        if not isinstance(config, dict):
            raise ValueError(f"{file}: want a JSON object")
        check(file, config)

    # CLIP's tokenizers cut texts at a length of their own, which the encoder must have room for.
    for name in rows:
        tokenizer = folder / name / "tokenizer_config.json"
        encoder = folder / name.replace("tokenizer", "text_encoder") / "config.json"
        if tokenizer in configs and "CLIP" in str(rows[name][1]):
            _require_length(tokenizer, configs[tokenizer], configs.get(encoder, {}))


def read_json(file: Path) -> Any:
    """A JSON file's value.

    Raises:
        ValueError: it is no JSON, or nested deeper than any library reads.
    """
    try:
        value = json.loads(file.read_bytes())
        nested = _deeper_than(value, DEEPEST)
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:120]
        raise ValueError(f"{file}: not JSON ({said})") from error
    if nested:
        raise ValueError(f"{file}: nested more than {DEEPEST} deep")
    return value


def component_class(library: str, name: str) -> Any:
    """A component's class, which files name; it is a network, or one of ``KINDS``.

    Raises:
        ValueError: it is anything else.
    """
    from torch import nn

    if library not in LIBRARIES:
        raise ValueError(f"component class {library}.{name}: want one of {LIBRARIES}")
    kind: Any = getattr(importlib.import_module(library), name, None)
    is_class = isinstance(kind, type)
    if not is_class or not (name.endswith(KINDS) or issubclass(kind, nn.Module)):
        raise ValueError(
            f"component class {library}.{name}: "
            "want a network, a scheduler, a tokenizer or a processor"
        )
    return kind


# --- the index ------------------------------------------------------------------------------------


def _require_component(file: Path, name: str, row: list[Any]) -> None:
    """Check a row of the index: a library and a class, or twice null."""
    from torch import nn

    if row == [None, None]:
        return
    are_texts = len(row) == 2 and all(isinstance(each, str) for each in row)
    if not are_texts or not re.fullmatch(r"\w+", name):
        raise _wrong(file, name, "[library, class], or [null, null]", row)
    # Of another library: a safety checker, which diffusers looks for among its own pipelines.
    if row[0] not in LIBRARIES:
        return
    kind: Any = getattr(importlib.import_module(row[0]), row[1], None)
    if not isinstance(kind, type):
        raise _wrong(file, name, f"a class of {row[0]}", row)
    if name.startswith(NETWORKS) and not issubclass(kind, nn.Module):
        raise _wrong(file, name, "the class of a network", row)


def _small_files(part: Path) -> Iterable[Path]:
    """A component's JSON files, but for those that only say which file has which weights."""
    files = sorted(part.glob("*.json"))
    return [file for file in files if not file.name.endswith(".index.json")]


# --- components -----------------------------------------------------------------------------------


def _check_network(file: Path, config: Mapping[str, Any]) -> None:
    """Check a network's number of layers against its weights, and the numbers of a VAE."""
    _require_class_name(file, config)
    tensors = sum(len(tensor_shapes(read_header(each)[0])) for each in _weights(file.parent))
    most = min(tensors or MOST_LAYERS, MOST_LAYERS)
    for key, value in _counts(config):
        if value > most:
            known = f"its weights have {tensors} tensors" if tensors else "no network has so many"
            raise _wrong(file, key, f"at most {most} ({known})", value)

    for key in ("scaling_factor", "shift_factor"):
        scale = config.get(key)
        # Latents are divided by the one; the other is added to them.
        least = 1e-6 if key == "scaling_factor" else -1e6
        if scale is not None and not (_is_number(scale) and least < scale < 1e6):
            raise _wrong(file, key, f"a number above {least:g}", scale)
    for key in ("latents_mean", "latents_std"):
        values = config.get(key)
        is_list = isinstance(values, list) and all(map(_is_number, values))
        if values is not None and (not is_list or (key == "latents_std" and min(values) <= 0)):
            raise _wrong(file, key, "a list of numbers, deviations above 0", values)


def _check_scheduler(file: Path, config: Mapping[str, Any]) -> None:
    _require_class_name(file, config)
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
        raise _wrong(file, "num_train_timesteps", f"a whole number from 1 to {MOST_STEPS}", steps)
    betas = config.get("trained_betas")
    if betas is not None:
        are_betas = isinstance(betas, list) and all(
            _is_number(beta) and 0 <= beta <= 1 for beta in betas
        )
        if not are_betas or len(betas) != steps:
            raise _wrong(file, "trained_betas", f"{steps} numbers from 0 to 1, or null", betas)
    for key in ("beta_start", "beta_end"):
        value = config.get(key, 0.5)
        if not _is_number(value) or not 0 <= value <= 1:
            raise _wrong(file, key, "a number from 0 to 1", value)
    for key in ("shift", "snr_shift_scale", "clip_sample_range"):
        scale = config.get(key)
        if scale is not None and not (_is_number(scale) and scale > 0):
            raise _wrong(file, key, "a number above 0", scale)


def _check_tokenizer(file: Path, config: Mapping[str, Any]) -> None:
    length = config.get("model_max_length")
    if length is not None and not (_is_number(length) and length >= 1):
        raise _wrong(file, "model_max_length", "a number from 1", length)


def _require_length(file: Path, config: Mapping[str, Any], encoder: Any) -> None:
    """Check the length at which CLIP's tokenizer cuts texts against its encoder's positions."""
    length = config.get("model_max_length")
    positions = encoder.get("max_position_embeddings") if isinstance(encoder, dict) else None
    most = positions if type(positions) is int else MOST_TOKENS
    if type(length) is not int or not 3 <= length <= most:
        raise _wrong(file, "model_max_length", f"a whole number from 3 to {most}", length)


CHECKS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    "config.json": _check_network,
    "scheduler_config.json": _check_scheduler,
    "tokenizer_config.json": _check_tokenizer,
}


# --- values ---------------------------------------------------------------------------------------


def _require_class_name(file: Path, config: Mapping[str, Any]) -> None:
    name = config.get("_class_name", "")
    if not isinstance(name, str):
        raise _wrong(file, "_class_name", "text", name)


def _weights(part: Path) -> list[Path]:
    return sorted(part.glob("*.safetensors"))


def _counts(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, int]]:
    """Numbers of layers in a configuration, by dotted key; those of a list one by one."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value, f"{prefix}{key}.")
        elif LAYERS.search(key) and not NO_COUNT.search(key):
            numbers = value if isinstance(value, list) else [value]
            yield from ((prefix + key, each) for each in numbers if _is_number(each))


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested beyond a depth."""
    level = [value]
    for _ in range(depth):
        inside = [each.values() if isinstance(each, dict) else each for each in level]
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (isinstance(value, int) or math.isfinite(value))


def _wrong(file: Path, key: str, want: str, got: Any) -> ValueError:
    return ValueError(f"{file}: {key}: want {want}, got {reprlib.repr(got)}")
