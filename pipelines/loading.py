"""How a pipeline's files are found and read, and libraries kept silent meanwhile."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any


def import_xformers() -> None:
    """Import it, where it is installed, before diffusers does.

    A build for another torch keeps the error of its import, the error its frame, and a frame its
    callers' with all that they hold: the weights of a model that is being loaded would never be
    freed. In a thread of its own nobody called.
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
    """Without the libraries' own progress bars, which have no switch a call; left as they were."""
    import diffusers.utils.logging
    import transformers.utils.logging

    silenced = [
        log
        for log in (diffusers.utils.logging, transformers.utils.logging)
        if log.is_progress_bar_enabled()
    ]
    advice = logging.getLogger("diffusers.models.modeling_utils")
    for log in silenced:
        log.disable_progress_bar()
    advice.addFilter(_says_something)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            yield
    finally:
        advice.removeFilter(_says_something)
        for log in silenced:
            log.enable_progress_bar()


def _says_something(record: logging.LogRecord) -> bool:
    """AnimateDiff's network warns of an empty list of modules each time it is built."""
    return "should be kept in float32: []" not in record.getMessage()


def read_model_index(
    source: str | Path, revision: str | None = None, names: Sequence[str] = ()
) -> dict[str, Any]:
    """The model_index.json of a pipeline folder or hub repository.

    Args:
        names: what else could have been named; only for the message.

    Raises:
        ValueError: there is none; says what is wanted.
    """
    folder = Path(source)
    if str(source) and folder.is_dir():
        file = folder / "model_index.json"
        if not file.is_file():
            raise ValueError(f"{folder}: no diffusers pipeline (model_index.json is missing)")
    elif folder.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise ValueError(
            f"{source}: no such pipeline; want a folder with model_index.json, a hub name owner/model, "
            f"or one of {sorted(names)}"
        )
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            file = Path(hf_hub_download(str(source), "model_index.json", revision=revision))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(
                f"{source}: no such folder, and the hub did not give it: {error.__class__.__name__}"
            ) from error
    try:
        index = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(index, dict):
        raise ValueError(f"{file}: want a JSON object")
    return index
