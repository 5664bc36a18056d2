"""Score a gallery, into a table in memory or into a file.

Pictures are decoded ahead of the reward models, batched by shape, and saved in chunks, so that an
interrupted run loses at most one chunk.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.errors import UserError
from align_gen.galleries.chunks import PART, Tables, begin, known_scores
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.shards import DATASET
from align_gen.galleries.sources import Source, open_source
from align_gen.galleries.table import (
    SCORES,
    ScoresTable,
    check_names,
    require_parquet,
    save_parts,
)
from align_gen.galleries.workers import scored_chunks
from align_gen.opening import open_rewards
from align_gen.precision import exact_float32
from align_gen.progress import ProgressCallback

if TYPE_CHECKING:
    from accelerate import Accelerator

    from align_gen.reward_heads import RewardSet


@dataclass
class Summary:
    """What a scores file holds, without its columns.

    Attributes:
        means: of each head; NaN where no picture could be read.
        pictures: how many there are.
        failed: file and reason of those that could not be read.
        skipped: files of the folder that are no pictures, counted by suffix; see
            ``gallery.skipped_files``.
    """

    means: dict[str, float]
    pictures: int
    failed: list[tuple[str, str]]
    skipped: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: Iterable[ScoresTable], skipped: Mapping[str, int] | None = None) -> Summary:
        """Sum up the parts of one gallery."""
        sums: dict[str, float] = {}
        pictures = 0
        failed = []
        for table in tables:
            pictures += len(table.rows)
            for row, reason in zip(table.rows, table.errors, strict=True):
                if reason is not None:
                    failed.append((str(row["file_name"]), reason))
            for name in table.heads:
                sums[name] = sums.get(name, 0.0) + math.fsum(table.known(name))
        # NaN, and not 0, where nothing could be read.
        read = pictures - len(failed)
        means = {name: total / read if read else math.nan for name, total in sums.items()}
        return cls(means, pictures, failed, dict(skipped or {}))

    def skipped_text(self) -> str:
        """The skipped files in words, as "1 .gif, 2 folders"; empty where there are none."""
        plural = {"folder": "folders", "file": "files"}
        named = [
            f"{count} {kind if count == 1 else plural.get(kind, kind)}"
            for kind, count in self.skipped.items()
        ]
        return ", ".join(named)


@exact_float32()
def score(
    source: str | Path | Gallery,
    rewards: RewardSet | Sequence[Any] | Mapping[str, Any],
    *,
    batch_size: int = 64,
    strict: bool = False,
    progress: ProgressCallback | None = None,
) -> ScoresTable:
    """Score every picture of a gallery by every head.

    Rows keep their order; one without a prompt is scored with "". An unreadable picture becomes a
    row of nulls with the reason.

    Args:
        source: a gallery, or anything that ``open_source`` opens.
        rewards: a reward set, or what ``opening.open_rewards`` makes one of: names, callables, a
            mapping to weights or options. Bundled models are named as on the command line.
        batch_size: pictures that a head is given at once.
        strict: whether an unreadable picture is an error, once all are scored.
        progress: called after each batch.

    Raises:
        UserError: no such source or reward, a reward that needs more than pictures and prompts, or,
            with ``strict``, an unreadable picture; the message names the first.
    """
    opened, all_rewards = _open(source, rewards)
    tables = Tables(all_rewards, opened.folder)
    chunks = scored_chunks(opened, all_rewards, batch_size=batch_size, progress=progress)
    parts = [tables.of(chunk) for _, chunk in chunks]
    table = ScoresTable.join(parts) if parts else tables.of([])
    if strict:
        _require_readable(table, opened.folder)
    return table


@exact_float32()
def score_file(
    source: str | Path | Gallery,
    rewards: RewardSet | Sequence[Any] | Mapping[str, Any],
    out: Path,
    *,
    batch_size: int = 64,
    progress: ProgressCallback | None = None,
    accelerator: Accelerator | None = None,
) -> Summary | None:
    """Score into a file, in memory that does not grow with the number of pictures.

    Each chunk is saved beside ``out`` as soon as it is scored. What an earlier call saved, finished
    or killed, is not scored again where picture, prompt and heads are the same. The processes of an
    ``accelerator`` share the chunks. Arguments and errors are those of ``score``; ``out`` ends in
    .parquet or has no suffix.

    Returns:
        What the file holds; None from all processes but the first.
    """
    require_parquet(out)
    opened, all_rewards = _open(source, rewards)
    # A hidden folder beside the file: the same disk, and no gallery takes it for a picture.
    parts = out.with_name(f".{out.name}.parts")
    tables = Tables(all_rewards, opened.folder)
    rank = 0 if accelerator is None else accelerator.process_index
    ranks = 1 if accelerator is None else accelerator.num_processes
    wait = (lambda: None) if accelerator is None else accelerator.wait_for_everyone

    # All processes read what there was before the first one moves it.
    known = known_scores(out, parts, tables)
    wait()
    if rank == 0:
        begin(out, parts)
    wait()

    # Every process saves its own chunks; their names give the order.
    chunks = scored_chunks(
        opened,
        all_rewards,
        batch_size=batch_size,
        progress=progress,
        known=known,
        rank=rank,
        ranks=ranks,
    )
    for number, chunk in chunks:
        tables.of(chunk).save(parts / f"{number:06d}.parquet")
    wait()
    if rank != 0:
        return None

    # The first process joins them.
    files = sorted(parts.glob(PART))

    def saved() -> Iterator[ScoresTable]:
        return map(tables.load, files) if files else iter([tables.of([])])

    # The chunks are read once more for the summary: no more than one is ever in memory.
    save_parts(saved, out)
    summary = Summary.of(saved(), opened.skipped)
    shutil.rmtree(parts, ignore_errors=True)
    return summary


def scores_path(source: str | Path, out: Path | None = None) -> Path:
    """The file that scores of ``source`` go to: ``out``, or scores.parquet in the gallery.

    Raises:
        UserError: ``out`` is named as another format; there is no such source; or the source is no
            folder and ``out`` is left out.
    """
    if out is not None:
        require_parquet(out)
        return out
    name = str(source)
    path = Path(source)
    if path.is_dir():
        return path / SCORES
    # Only a plain path can be missing: URLs, patterns and datasets are opened later.
    local = "://" not in name and "*" not in name and not name.startswith(DATASET)
    if local and not path.exists():
        raise UserError(
            f"{name}: no such folder or file; want a folder of pictures, .tar or .parquet"
        )
    raise UserError(f"{name}: is no folder to keep the scores in; want --out FILE")


# --- opening --------------------------------------------------------------------------------------


def _open(
    source: str | Path | Gallery, rewards: RewardSet | Sequence[Any] | Mapping[str, Any]
) -> tuple[Source, RewardSet]:
    """The source, and a reward set that needs no more than pictures and prompts; or UserError."""
    # Heads whose names clash with a column are refused before anything is scored.
    opened = open_source(source)
    try:
        all_rewards = open_rewards(rewards)
        all_rewards.require(())
    except ValueError as error:
        raise UserError(str(error)) from error
    check_names([dict.fromkeys(opened.columns)], all_rewards.heads)
    return opened, all_rewards


def _require_readable(table: ScoresTable, folder: Path | None) -> None:
    failed = [index for index, reason in enumerate(table.errors) if reason is not None]
    if not failed:
        return
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    name = table.rows[failed[0]]["file_name"]
    where = name if folder is None else folder / str(name)
    raise UserError(f"{where}: {table.errors[failed[0]]}{more}; want every picture readable")
