"""What a run has written, and may have lost since: galleries on the way, and the best export."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import remove
from ..galleries.gallery import METADATA, Gallery, require_gallery
from ..run_folder import RunFolder

log = logging.getLogger("align_gen")


def is_whole(gallery: Path) -> bool:
    """Whether a gallery has its rows and all pictures that they name, with scores or without."""
    if not (gallery / METADATA).is_file():
        return False
    try:
        there = Gallery.load(gallery)
    except UserError:
        return False
    return all(there.path(index).is_file() for index in range(len(there)))


def remove_torn(gallery: Path) -> None:
    """Remove what is left of a gallery of ours, so that it can be drawn anew.

    Raises:
        UserError: something else lies in it.
    """
    if gallery.is_dir():
        require_gallery(gallery)
        remove(gallery)


def files_below(folder: Path) -> list[str]:
    """The names of all files of an export, in order."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in found)


def require_pieces(folder: RunFolder, measured: Iterable[int], progress: Mapping[str, Any]) -> None:
    """Check galleries and the best export of earlier steps, whose weights are gone.

    A folder that was removed as a whole was removed on purpose: the run goes on without it.

    Args:
        measured: earlier steps that have a measurement.
        progress: of the checkpoint that the run goes on from; {} without one.

    Raises:
        UserError: a folder is there and lacks a file.
    """
    for step in measured:
        gallery = folder.samples(f"step-{step:06d}")
        if not gallery.exists():
            log.warning("%s: is gone, and with it the weights that drew it", gallery)
        elif not is_whole(gallery):
            _refuse(gallery, "a picture or its rows")
    if 0 < progress.get("best_step", 0) < progress["step"]:
        lost = sorted({*progress.get("best_files", ())} - {*files_below(folder.best)})
        if not folder.best.exists():
            log.warning("%s: is gone, and with it the weights of its step", folder.best)
        elif lost:
            _refuse(folder.best, lost[0])


def _refuse(folder: Path, what: str) -> None:
    raise UserError(
        f"{folder}: has lost {what}, and the weights that made it are gone; want it back, "
        "or the whole folder removed, to go on without it"
    )
