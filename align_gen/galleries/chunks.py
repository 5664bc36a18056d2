"""The chunks of a scoring: tables made of them, and the folder beside the file that keeps them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.errors import RunFailure, UserError, writing_to
from align_gen.files import clear_below, move, remove, remove_empty, require_folder
from align_gen.galleries.columns import COMBINED, CONTENT, UNCERTAINTY, plain
from align_gen.galleries.layout import CHUNK
from align_gen.galleries.parquet_files import SCORES_KIND, kind_of
from align_gen.galleries.scored import ScoredPicture
from align_gen.galleries.table import ScoresTable
from align_gen.galleries.versions import versions
from align_gen.locks import beside, locked

if TYPE_CHECKING:
    from align_gen.reward_heads import RewardSet

NEW = re.compile(r"\d{6,}\.parquet")  # names of this call's chunks


class Tables:
    """Makes the tables of one scoring. What all of them share is computed once."""

    def __init__(self, rewards: RewardSet, folder: Path | None):
        self.heads = list(rewards.heads)
        self.provenance = {name: plain(head.provenance()) for name, head in rewards.heads.items()}
        self.combination = rewards.rule.provenance()
        self.rule = rewards.rule
        self.is_plain_sum = _is_plain_sum(rewards)
        self.versions = versions()
        self.folder = None if folder is None else str(folder)

    def of(self, chunk: Sequence[ScoredPicture]) -> ScoresTable:
        """The table of a chunk, a row per picture."""
        # A picture that could not be read has no values: nulls in every column.
        values = [each.values or {} for each in chunk]
        extra: dict[str, list[Any]] = {COMBINED: [each.get(COMBINED) for each in values]}
        if any(UNCERTAINTY in each for each in values):
            extra[UNCERTAINTY] = [each.get(UNCERTAINTY) for each in values]
        extra[CONTENT] = [each.content for each in chunk]
        return ScoresTable(
            [dict(each.row) for each in chunk],
            {name: [each.get(name) for each in values] for name in self.heads},
            [each.error for each in chunk],
            self.provenance,
            self.versions,
            self.folder,
            extra,
            self.combination,
        )

    def load(self, file: Path) -> ScoresTable:
        """A saved chunk, with the gallery's folder as the caller named it."""
        table = ScoresTable.load(file)
        return table if self.folder is None else table.at(self.folder)


def _is_plain_sum(rewards: RewardSet) -> bool:
    """Whether a combined reward is no more than the sum of the heads' scores, without deviation."""
    from align_gen.reward_heads.base import RewardHead
    from align_gen.reward_heads.combine import Combination

    sure = all(
        type(head).score_and_std is RewardHead.score_and_std for head in rewards.heads.values()
    )
    return sure and rewards.rule == Combination(dict.fromkeys(rewards.heads, 1.0))


# --- locks ----------------------------------------------------------------------------------------


@contextmanager
def held(out: Path, folder: Path | None, *, wait: bool = False) -> Iterator[None]:
    """Hold a scores file for writing, and the gallery too where the file lies in it.

    Args:
        out: the file.
        folder: the gallery that is scored.
        wait: for another process that writes, instead of raising.

    Raises:
        UserError: another process writes, or there is no place for a lock.
    """
    file = out.parent.resolve() / out.name
    gallery = None if folder is None else folder.resolve()
    with ExitStack() as stack:
        # The gallery first, as whoever replaces it does; where its lock cannot be made, the folder
        # cannot be replaced by this user either.
        if gallery is not None and gallery.name and file.is_relative_to(gallery):
            with suppress(OSError):
                stack.enter_context(locked(beside(gallery), folder, wait=wait))
        with writing_to(out):
            stack.enter_context(locked(beside(file), out, wait=wait))
        yield


# --- the folder -----------------------------------------------------------------------------------


def folder_of(out: Path) -> Path:
    """The folder of chunks: hidden, on the same disk, and taken for a picture by no gallery."""
    return out.with_name(f".{out.name}.parts")


def chunks_in(parts: Path) -> list[Path]:
    """The chunks in a folder, those of earlier calls among them.

    Raises:
        UserError: the folder is a link, or what has a chunk's name is none of ours.
    """
    require_folder(parts)
    found = sorted(path for path in _entries(parts) if CHUNK.fullmatch(path.name))
    for path in found:
        if path.is_symlink() or not path.is_file() or kind_of(path) != SCORES_KIND:
            raise UserError(f"{path}: is no chunk of scores by align-gen; want it moved away")
    return found


def begin(out: Path, parts: Path) -> None:
    """Make the folder of chunks, and rename an earlier call's, which are not taken for this one's.

    The next call knows both.
    """
    with writing_to(out):
        parts.mkdir(parents=True, exist_ok=True)
        clear_below(parts)
        chunks = chunks_in(parts)
        earlier = [int(path.name.split("-")[1]) for path in chunks if "-" in path.name]
        number = max(earlier, default=0) + 1
        for path in chunks:
            if NEW.fullmatch(path.name):
                move(path, parts / f"known-{number}-{path.name}")


def finished(out: Path, parts: Path, saved: Mapping[int, int], total: int | None) -> list[Path]:
    """This call's chunks in order, once they are known to have a row of every picture.

    Args:
        out: the file that they will be.
        parts: their folder.
        saved: the rows of each chunk by its number, as all processes saved them.
        total: the number of pictures, where it is known.

    Raises:
        RunFailure: a chunk or a row is missing.
    """
    files = [path for path in chunks_in(parts) if NEW.fullmatch(path.name)]
    numbers = [int(path.stem) for path in files]
    rows = sum(saved.values())
    whole = numbers == sorted(saved) == list(range(len(saved)))
    if not whole or (total is not None and rows != total):
        wanted = "every picture" if total is None else total
        raise RunFailure(
            f"{out}: chunks of {rows} pictures were saved and {len(files)} of {len(saved)} files "
            f"are there, want {wanted}; the same command goes on"
        )
    return files


def clean(parts: Path) -> None:
    """Remove the chunks, and their folder unless there is something else in it."""
    clear_below(parts)
    for path in chunks_in(parts):
        remove(path)
    remove_empty([parts])


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
