"""Galleries: a folder of pictures or videos and `metadata.jsonl`, one object a line, as the
datasets library has it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.distributed import rank_slice
from align_gen.errors import UserError, writing, writing_to
from align_gen.files import aside, lines_of, partial, publish, surviving, whole_file

from .media import PICTURES, VIDEOS, encoded, read_picture, read_video, write_media

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

METADATA = "metadata.jsonl"
OWN_FILES = re.compile(
    r"\.?(\d{5,}\.(png|mp4)|metadata\.jsonl|scores\.parquet)(\.part)?"
)  # what write_gallery may replace


@dataclass(frozen=True)
class Gallery:
    """A folder of pictures and what is known of each: `rows[i]` has "file_name", usually "prompt"
    and "seed".
    """

    folder: Path
    rows: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: str | Path) -> Gallery:
        """Read the rows, not the pictures. Without metadata.jsonl, the folder's pictures by name.

        Raises UserError for a missing or empty folder, and, with the line, for a row that is not an
        object, lacks "file_name", names a file outside the folder or has a "prompt" that is not
        text.
        """
        folder = surviving(Path(folder))
        return cls(folder, list(read_rows(folder)))

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, index: int) -> Path:
        """Where the picture of row `index` lies."""
        return self.folder / str(self.rows[index]["file_name"])

    def image(self, index: int) -> Tensor:
        """The picture of row `index`: float32 (3,H,W), RGB, [0,1]; raises UnreadablePicture. Safe
        in threads.
        """
        return read_picture(self.path(index))

    def media(self, index: int) -> Tensor:
        """The picture of row `index`, or its video, (F,3,H,W); likewise."""
        path = self.path(index)
        return read_video(path) if path.suffix.lower() in VIDEOS else read_picture(path)


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a gallery, one by one, each checked; UserError as ``Gallery.load`` has it."""
    folder = surviving(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; want a folder of pictures, with or without {METADATA}"
        )
    metadata = folder / METADATA
    empty = True
    if metadata.is_file():
        for number, line in lines_of(metadata):
            empty = False
            yield _parse(line, folder, f"{metadata} line {number}")
    else:
        kinds = (*PICTURES, *VIDEOS)
        for name in sorted(path.name for path in folder.iterdir() if path.suffix.lower() in kinds):
            empty = False
            yield {"file_name": inside(folder, name, str(folder))}
    if empty:
        raise UserError(
            f"{folder}: no pictures; want {METADATA} with rows, or {', '.join((*PICTURES, *VIDEOS))} files"
        )


def require_gallery(folder: str | Path) -> None:
    """UserError where ``write_gallery`` would refuse the folder: asked before hours of sampling,
    not after.
    """
    target = Path(folder).resolve()
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file; want a folder for the gallery")
    foreign = (
        sorted(p.name for p in target.iterdir() if not OWN_FILES.fullmatch(p.name))
        if target.exists()
        else []
    )
    if foreign:
        raise UserError(
            f"{target}: holds {foreign[0]!r}, which no gallery of ours does; want a new folder"
        )


def write_gallery(
    folder: str | Path,
    media: Tensor | Iterable[Tensor],
    rows: Sequence[Mapping[str, Any]],
    *,
    fps: int = 8,
    crew: Accelerator | None = None,
) -> Gallery:
    """Write pictures (B,3,H,W) in [0,1] as 00000.png …, or videos (B,F,3,H,W) as 00000.mp4 …, whole
    or in batches.

    `rows` are their metadata; each row gets its "file_name". The folder appears complete or not at
    all; an old gallery is replaced, its scores.parquet too, and survives until the new one is
    whole. Of a `crew` of processes each brings the media of its `rank_slice` of all rows. Raises
    UserError when the folder holds anything else or cannot be written, ValueError when shapes
    disagree or a pixel is not finite or leaves [0,1].
    """
    target = Path(folder).resolve()
    first = crew is None or crew.is_main_process
    part = partial(target)
    wait = (lambda: None) if crew is None else crew.wait_for_everyone
    with ExitStack() as stack:
        if first:
            stack.callback(shutil.rmtree, part, ignore_errors=True)
            _prepare(target, part)
        stack.enter_context(writing(target))
        wait()
        mine = rank_slice(len(rows), crew)
        names: list[str] = []
        batches: Iterable[Any] = [media] if hasattr(media, "shape") else media
        for pixels in (pixels for batch in batches for pixels in encoded(batch)):
            names.append(write_media(part, mine.start + len(names), pixels, fps))
        if len(mine) != len(names):
            raise ValueError(f"{len(mine)} rows for {len(names)} pictures")
        wait()
        if first:
            kind = Path(names[0]).suffix if names else ""
            named = [{**row, "file_name": f"{number:05d}{kind}"} for number, row in enumerate(rows)]
            with whole_file(part / METADATA) as file:
                file.write(
                    "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named).encode()
                )
            publish(part, target)
        wait()
    return Gallery.load(folder)


def parse_row(line: bytes, where: str) -> dict[str, Any]:
    """A line of metadata, its file's name relative and inside its folder; UserError with ``where``
    otherwise.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
        json.dumps(
            row, ensure_ascii=False
        ).encode()  # half a surrogate pair parses, but could never be written again
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a line of JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(
            f'{where}: want an object like {{"file_name": "00000.png", "prompt": "…", "seed": 0}}'
        )
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: file_name is {name!r}, want the name of a picture in the folder")
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(
            f"{where}: file_name {name!r} leaves the folder; want a relative path inside it"
        )
    if not isinstance(row.get("prompt", ""), str):
        raise UserError(f"{where}: prompt is {row['prompt']!r}, want text")
    return row


def _parse(line: bytes, folder: Path, where: str) -> dict[str, Any]:
    row = parse_row(line, where)
    inside(folder, row["file_name"], where)
    return row


def inside(folder: Path, name: str, where: str) -> str:
    """`name`, once it is known to lie in the folder, links followed; UserError otherwise."""
    try:
        (folder / name).exists()  # raises where the name is too long for the disk
        escapes = not (folder / name).resolve().is_relative_to(folder.resolve())
    except (
        ValueError,
        OSError,
        RuntimeError,
    ) as error:  # a NUL byte, a name too long, links that go in circles
        raise UserError(
            f"{where}: file_name {name[:80]!r} is no file name ({str(error)[:80]})"
        ) from error
    if escapes:
        raise UserError(
            f"{where}: file_name {name!r} leaves the folder; want a relative path inside it"
        )
    return name


def _prepare(target: Path, part: Path) -> None:
    """Make `part` an empty folder beside `target`; clears what a killed write left. UserError if it
    may not be.
    """
    require_gallery(target)
    with writing_to(target, "a folder that can"):
        if target.exists():
            shutil.rmtree(aside(target), ignore_errors=True)
        elif aside(target).exists():
            os.replace(aside(target), target)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
