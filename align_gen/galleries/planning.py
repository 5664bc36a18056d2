"""What would be drawn into a gallery, row by row; and whether it is there already."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import bundled
from ..errors import UserError
from ..pipelines.seeding import seed_of
from .gallery import Gallery
from .layout import GUIDE_SCORE, OTHER, difference, require_replaceable
from .prompts import check_row

Row = dict[str, Any]
BLOCK = 2**20  # bytes of a file that are hashed at once
BLOCKS = 16  # of a large file
Prompts = str | Sequence[str | Mapping[str, Any]]


def find_drawn(
    prompts: Prompts,
    *,
    out: str | Path,
    origin: Mapping[str, Any],
    files: Sequence[Path] = (),
    seeds: Sequence[int] = (0,),
    overwrite: bool = False,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    negative: str | None = None,
    **settings: Any,
) -> Gallery | None:
    """The gallery that is there and is just what ``sample`` would draw; None where it must draw.

    Called before the model is loaded, with the arguments that ``sample`` will have.

    Args:
        origin: names all that the pictures are drawn with: the model, and a guide if there is one.
        files: see ``local_files``.

    Raises:
        UserError: as ``sample``.
    """
    size = {"height": height, "width": width, "num_frames": num_frames}
    rows = planned_rows(prompts, seeds, {"made": made_of(origin, settings, size, negative, files)})
    return there_already(out, rows, True, overwrite)


def there_already(out: str | Path, rows: list[Row], known: bool, overwrite: bool) -> Gallery | None:
    """A gallery of just these rows, if it is ``known`` that they say all of their making."""
    folder = Path(out).resolve()
    require_replaceable(folder, overwrite=True)
    if not known or not folder.exists() or not any(folder.iterdir()):
        require_replaceable(folder, overwrite=overwrite)
        return None
    other = difference(folder, rows)
    if not other:
        return Gallery.load(out)
    if not overwrite:
        raise UserError(f"{out}: holds another gallery: {other}; {OTHER}")
    return None


def local_files(names: Iterable[str]) -> list[Path]:
    """The files and folders among names, none of which is a bundled model's."""
    there = [Path(name) for name in names if name and name not in bundled.models()]
    return [path for path in there if path.exists()]


def fingerprint(paths: Iterable[Path]) -> str:
    """A hash of files, and of the files in folders, by their names there and their content.

    Of a large file, blocks all over it: weights that were trained differ everywhere.
    """
    digest = hashlib.sha256()
    for path in paths:
        below = sorted(each for each in path.rglob("*") if each.is_file())
        for file in below if path.is_dir() else [path]:
            size = file.stat().st_size
            name = file.relative_to(path) if path.is_dir() else "file"
            digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
            step = max(BLOCK, (size - BLOCK) // BLOCKS)
            with file.open("rb") as content:
                for start in [*range(0, size - BLOCK, step), max(0, size - BLOCK)]:
                    content.seek(start)
                    digest.update(content.read(BLOCK))
    return digest.hexdigest()[:16]


def made_of(
    origin: Mapping[str, Any],
    settings: Mapping[str, Any],
    size: Mapping[str, Any],
    negative: str | None,
    files: Sequence[Path] = (),
) -> Row:
    """The column "made": how pictures are drawn, by the names of `align-gen sample`'s options.

    Raises:
        UserError: a count or a side below 1.
    """
    counts = {"num_inference_steps": settings["num_inference_steps"], **size}
    counts["batch_size"] = settings.get("batch_size")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"{name}: {count}, want 1 or more")
    made = {
        **origin,
        "steps": settings["num_inference_steps"],
        "guidance": settings["guidance_scale"],
        "eta": settings["eta"],
    }
    if size["height"] and size["width"]:
        made["size"] = f"{size['height']}x{size['width']}"
    if size["num_frames"]:
        made["frames"] = size["num_frames"]
    if negative is not None:
        made["negative"] = negative
    if files:
        made["files"] = fingerprint(files)
    return made


def planned_rows(prompts: Prompts, seeds: Sequence[int], columns: Row) -> list[Row]:
    """A row per prompt and seed; a prompt's own seed comes before ``seeds``.

    Raises:
        UserError: a row that could not be written, or be scored afterwards.
    """
    rows = []
    for number, prompt in enumerate([prompts] if isinstance(prompts, str) else prompts):
        row = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
        check_row({**row, **columns}, f"prompts: row {number}")
        # Another gallery's: they say nothing of the picture that is to be made.
        row.pop(GUIDE_SCORE, None)
        row.pop("file_name", None)
        # Hashed with the prompt: equal numbers of two prompts must not start from equal noise.
        hashed = [seed_of(each, "sample", 0, row["prompt"]) for each in seeds]
        exact = [row["seed"]] if "seed" in row else hashed
        rows += [{**row, "seed": each, **columns} for each in exact]
    return rows
