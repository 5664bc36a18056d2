"""Read what a pipeline's folder says of itself, and keep libraries silent while they load it."""

import json
import logging
import reprlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

from . import hub
from .folder_checks import INDEX, read_json


def read_model_index(
    source: str | Path, revision: str | None = None, names: Sequence[str] = ()
) -> dict[str, Any]:
    """The model_index.json of a pipeline folder or hub repository.

    Args:
        names: what else could have been named; only for the message.

    Raises:
        ValueError: there is none; says what is wanted.
    """
    file = _index_file(source, revision, names)
    index = read_json(file)
    if not isinstance(index, dict):
        raise ValueError(f"{file}: want a JSON object")
    name = index.get("_class_name")
    if not isinstance(name, str | None):
        raise ValueError(f"{file}: _class_name: want text, got {reprlib.repr(name)}")
    return index


def is_hub_name(source: str | Path) -> bool:
    """Whether a name can only be a repository on the hub, owner/name: nothing of it is on disk."""
    name = str(source)
    is_path = Path(source).exists() or name.startswith((".", "/", "~"))
    return not is_path and name.count("/") == 1


def _index_file(source: str | Path, revision: str | None, names: Sequence[str]) -> Path:
    folder = Path(source)
    if is_hub_name(source):
        return hub.download(str(source), INDEX, revision)
    if not (str(source) and folder.is_dir()):
        raise ValueError(
            f"{source}: no such pipeline; want a folder with {INDEX}, a hub name owner/model, "
            f"or one of {sorted(names)}"
        )
    if not (folder / INDEX).is_file():
        if _is_clip(folder):
            raise ValueError(
                f"{folder}: a CLIP scores pictures; want a generator: a folder with {INDEX}"
            )
        raise ValueError(f"{folder}: no diffusers pipeline ({INDEX} is missing)")
    return folder / INDEX


def _is_clip(folder: Path) -> bool:
    """Whether a folder holds a CLIP or SigLIP, of open_clip or of transformers."""
    if (folder / "open_clip_config.json").is_file():
        return True
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type", "")
    except (OSError, ValueError, AttributeError):
        return False
    return str(kind).startswith(("clip", "siglip"))


# --- libraries ------------------------------------------------------------------------------------


def import_xformers() -> None:
    """Import xformers, where it is installed, before diffusers does.

    If xformers was built for another torch, its import error keeps a traceback, and the frames in
    that traceback keep the weights being loaded alive. An import in a fresh thread leaves no such
    frames.
    """
    if "xformers.ops" not in sys.modules and find_spec("xformers") is not None:
        thread = Thread(target=_try_import, args=("xformers.ops",))
        thread.start()
        thread.join()


def _try_import(module: str) -> None:
    with suppress(Exception):
        import_module(module)


@contextmanager
def silenced() -> Iterator[None]:
    """Inside, diffusers and transformers show no progress bars and give no advice.

    Their bars have no switch for one call, so those of the process are switched off and on again.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    shown = [log for log in libraries if log.is_progress_bar_enabled()]
    advice = logging.getLogger("diffusers.models.modeling_utils")
    for log in shown:
        log.disable_progress_bar()
    advice.addFilter(_says_something)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            yield
    finally:
        advice.removeFilter(_says_something)
        for log in shown:
            log.enable_progress_bar()


def _says_something(record: logging.LogRecord) -> bool:
    """Whether to print a warning; AnimateDiff's network warns of an empty list when it is built."""
    return "should be kept in float32: []" not in record.getMessage()
