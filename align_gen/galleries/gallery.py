"""A gallery: a folder of pictures or videos, and `metadata.jsonl` with one JSON object per line.

The datasets library reads the same layout (ImageFolder).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.distributed import from_first, rank_slice
from align_gen.errors import UserError, writing, writing_to
from align_gen.files import clear, lines_of, new_file, part_of, publish, surviving
from align_gen.galleries.csv_rows import header_of, read_csv
from align_gen.galleries.formats import MEDIA, VIDEOS
from align_gen.galleries.layout import METADATA, PICTURE, require_gallery, require_replaceable
from align_gen.galleries.media import encoded, read_picture, read_pixels, read_video, write_media
from align_gen.galleries.parquet_files import SCORES
from align_gen.locks import beside, locked

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image
    from torch import Tensor

__all__ = [
    "METADATA", "Gallery", "inside", "parse_row", "read_rows", "require_gallery", "skipped_files",
    "with_prompt", "write_gallery",
]  # fmt: skip

METADATA_CSV = "metadata.csv"  # the datasets library's other layout
PROMPT = "prompt"
CAPTIONS = ("text", "caption")  # columns that are the prompt where there is none


@dataclass(frozen=True)
class Gallery:
    """A folder of pictures and what is known of each.

    Attributes:
        folder: where the pictures are.
        rows: one per picture, with "file_name", usually "prompt" and "seed". Iterating over the
            gallery gives these rows.
    """

    folder: Path
    rows: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: str | Path) -> Gallery:
        """Read the rows, not the pictures. Without metadata.jsonl, the folder's pictures by name.

        Raises:
            UserError: the folder is missing or empty; or a row, named by its line, is no object,
                lacks "file_name", names a file outside the folder, or has a "prompt" that is not
                text.
        """
        folder = surviving(Path(folder))
        return cls(folder, list(read_rows(folder)))

    def __repr__(self) -> str:
        return f"Gallery({str(self.folder)!r}, {len(self.rows)} rows)"

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def path(self, index: int) -> Path:
        """The file of row ``index``."""
        return self.folder / str(self.rows[index]["file_name"])

    def image(self, index: int) -> Tensor:
        """The picture of row ``index``: float32 (3,H,W), RGB, [0,1]. Safe to call in threads.

        Raises:
            UnreadablePicture: missing, broken, of another kind, or too large.
        """
        return read_picture(self.path(index))

    def pil(self, index: int) -> Image:
        """The picture of row ``index`` as a PIL image, RGB; of a video, its first frame.

        Raises:
            UnreadablePicture: as ``image``.
        """
        from PIL import Image

        path = self.path(index)
        pixels = read_pixels(path, path.suffix.lower())
        return Image.fromarray(pixels[0] if pixels.ndim == 4 else pixels)

    def media(self, index: int) -> Tensor:
        """The picture (3,H,W) or video (F,3,H,W) of row ``index``; otherwise as ``image``."""
        path = self.path(index)
        return read_video(path) if path.suffix.lower() in VIDEOS else read_picture(path)


# --- reading --------------------------------------------------------------------------------------


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a gallery, one by one, each checked; raises UserError as ``Gallery.load``.

    They are those of metadata.jsonl, else of a metadata.csv with a column "file_name", else the
    pictures by name.
    """
    folder = surviving(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; want a folder of pictures, with or without {METADATA}"
        )
    metadata = folder / METADATA
    empty = True
    for where, row in _metadata(folder):
        empty = False
        inside(folder, row["file_name"], where)
        yield row
    if empty and not _has_metadata(folder):
        names = (path.name for path in folder.iterdir() if path.suffix.lower() in MEDIA)
        for name in sorted(names):
            empty = False
            yield {"file_name": inside(folder, name, str(folder))}
    if empty:
        raise UserError(
            f"{folder}: no pictures; want {metadata.name} with rows, or {', '.join(MEDIA)} files"
        )


def _metadata(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a folder's metadata, and where each stands."""
    metadata = folder / METADATA
    if metadata.is_file():
        for number, line in lines_of(metadata):
            where = f"{metadata} line {number}"
            yield where, parse_row(line, where)
    elif _has_metadata(folder):
        for where, row in read_csv(folder / METADATA_CSV):
            yield where, _checked(row, where)


def _has_metadata(folder: Path) -> bool:
    """Whether rows of a file say what belongs to the gallery."""
    named = folder / METADATA_CSV
    return (folder / METADATA).is_file() or (named.is_file() and "file_name" in header_of(named))


def skipped_files(folder: Path) -> dict[str, int]:
    """Count by suffix what a folder of pictures holds besides media: {".gif": 1, "folder": 2}.

    Hidden files and those of a gallery do not count. With metadata nothing is skipped: its rows say
    what belongs to the gallery.
    """
    folder = surviving(folder)
    if _has_metadata(folder):
        return {}
    counts: Counter[str] = Counter()
    for path in sorted(folder.iterdir()):
        ours = path.suffix.lower() in MEDIA or path.name == SCORES or PICTURE.fullmatch(path.name)
        if not ours and not path.name.startswith("."):
            counts["folder" if path.is_dir() else path.suffix.lower() or "file"] += 1
    return dict(counts)


def parse_row(line: bytes, where: str) -> dict[str, Any]:
    """Parse a line of metadata whose file name is relative and stays inside the folder.

    A row without a prompt has that of its column "text" or "caption".

    Raises:
        UserError: anything else; the message begins with ``where``.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
        # Half a surrogate pair parses, but could never be written again.
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a line of JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(
            f'{where}: want an object like {{"file_name": "00000.png", "prompt": "…", "seed": 0}}'
        )
    return _checked(row, where)


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row of metadata with a file name that may be read, and a prompt that is text."""
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: file_name is {name!r}, want the name of a picture in the folder")
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(
            f"{where}: file_name {name!r} leaves the folder; want a relative path inside it"
        )
    if not isinstance(row.get(PROMPT, ""), str):
        raise UserError(f"{where}: prompt is {row[PROMPT]!r}, want text")
    return with_prompt(row)


def with_prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose prompt, where it has none, is its column "text" or "caption"."""
    texts = [row[name] for name in CAPTIONS if isinstance(row.get(name), str)]
    return {**row, PROMPT: texts[0]} if PROMPT not in row and texts else dict(row)


def inside(folder: Path, name: str, where: str) -> str:
    """Return ``name`` if the file lies in the folder, links followed; UserError otherwise."""
    try:
        # The disk itself refuses a name that is too long.
        (folder / name).exists()
        escapes = not (folder / name).resolve().is_relative_to(folder.resolve())
    except (ValueError, OSError, RuntimeError) as error:
        # A NUL byte, a name too long, links that go in circles.
        raise UserError(
            f"{where}: file_name {name[:80]!r} is no file name ({str(error)[:80]})"
        ) from error
    if escapes:
        raise UserError(
            f"{where}: file_name {name!r} leaves the folder; want a relative path inside it"
        )
    return name


# --- writing --------------------------------------------------------------------------------------


def write_gallery(
    folder: str | Path,
    media: Tensor | Iterable[Tensor],
    rows: Sequence[Mapping[str, Any]],
    *,
    fps: int = 8,
    overwrite: bool = False,
    wait: bool = False,
    accelerator: Accelerator | None = None,
) -> Gallery:
    """Write pictures as 00000.png …, or videos as 00000.mp4 …, with their rows.

    The folder appears complete or not at all. A gallery that is replaced goes with its
    scores.parquet, and survives until the new one is whole.

    Args:
        folder: of the gallery: new, empty, or with ``overwrite`` one that ``sample`` wrote.
        media: (B,3,H,W) or (B,F,3,H,W) in [0,1], all at once or in batches.
        rows: the metadata of every picture; each gets its "file_name". They are read once the media
            are written.
        fps: frames per second of videos.
        overwrite: replace a gallery, if ``sample`` wrote every row of it.
        wait: for another process that writes the gallery, instead of raising.
        accelerator: of several processes; each brings the media of its ``rank_slice`` of all rows.

    Raises:
        UserError: the folder holds anything else, is being written, or cannot be written.
        ValueError: shapes disagree, or a pixel is not finite or leaves [0,1].
    """
    target = Path(folder).resolve()
    first = accelerator is None or accelerator.is_main_process
    all_here = (lambda: None) if accelerator is None else accelerator.wait_for_everyone
    with ExitStack() as stack:
        made = _prepare(target, overwrite, wait, stack) if first else target
        # From here on, an error of the disk is a failure of the run and not the user's mistake.
        stack.enter_context(writing(target))
        part = from_first(made, accelerator)

        # Each process writes its own share of the files.
        mine = rank_slice(len(rows), accelerator)
        names: list[str] = []
        batches: Iterable[Any] = [media] if hasattr(media, "shape") else media
        for pixels in (pixels for batch in batches for pixels in encoded(batch)):
            names.append(write_media(part, mine.start + len(names), pixels, fps))
        if len(mine) != len(names):
            raise ValueError(f"{len(mine)} rows for {len(names)} pictures")
        all_here()

        # The first process adds the rows and lets the folder appear.
        if first:
            _write_rows(part, rows, Path(names[0]).suffix if names else "")
            # Once more: hours may have passed, and something else been put there.
            require_replaceable(target, overwrite=overwrite)
            publish(part, target)
        all_here()
    return Gallery.load(folder)


def _write_rows(folder: Path, rows: Sequence[Mapping[str, Any]], suffix: str) -> None:
    named = [{**row, "file_name": f"{number:05d}{suffix}"} for number, row in enumerate(rows)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in named]
    with new_file(folder / METADATA) as file:
        file.write("".join(lines).encode())


def _prepare(target: Path, overwrite: bool, wait: bool, stack: ExitStack) -> Path:
    """Hold ``target`` and make an empty folder beside it; both go with the stack.

    Raises:
        UserError: ``target`` may not be written.
    """
    with writing_to(target, "a folder that can"):
        require_replaceable(target, overwrite=overwrite)
        stack.enter_context(locked(beside(target), target, wait=wait))
        # What a killed write left comes back first: it is looked at like any other gallery.
        clear(target)
        require_replaceable(target, overwrite=overwrite)
        return stack.enter_context(part_of(target))
