"""Score a gallery, into a table in memory or into a file.

Pictures are decoded ahead of the reward models, batched by shape, and saved in chunks, so that an
interrupted run loses at most one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.distributed import from_all
from align_gen.errors import UserError
from align_gen.galleries.chunks import (
    Tables,
    begin,
    chunks_in,
    clean,
    finished,
    folder_of,
    held,
)
from align_gen.galleries.columns import check_names
from align_gen.galleries.earlier import Earlier
from align_gen.galleries.formats import UnreadablePicture
from align_gen.galleries.gallery import Gallery, with_prompt
from align_gen.galleries.items import Item
from align_gen.galleries.parquet_files import SCORES
from align_gen.galleries.scores_file import require_parquet
from align_gen.galleries.shards import DATASET
from align_gen.galleries.sources import Source, open_source
from align_gen.galleries.summary import Summary
from align_gen.galleries.table import ScoresTable, save_parts
from align_gen.galleries.workers import scored_chunks
from align_gen.opening import open_rewards
from align_gen.precision import exact_float32
from align_gen.progress import ProgressCallback

if TYPE_CHECKING:
    from accelerate import Accelerator

    from align_gen.reward_heads import RewardSet


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
    trust: bool = False,
    progress: ProgressCallback | None = None,
    accelerator: Accelerator | None = None,
) -> Summary | None:
    """Score into a file, in memory that does not grow with the number of pictures.

    Each chunk is saved beside ``out`` as soon as it is scored. What an earlier call saved, finished
    or killed, is not scored again where picture, prompt, heads and versions are the same and this
    user's own align-gen wrote it. Columns of other heads stay in the file, for the pictures that
    are the same. The processes of an ``accelerator`` share the chunks. Arguments and errors are
    those of ``score``, and:

    Args:
        out: ends in .parquet or has no suffix; a file that is there must be one of scores.
        trust: take scores from files that this user's own align-gen did not write.

    Returns:
        What the file holds; None from all processes but the first.

    Raises:
        UserError: something else is at ``out``, or another process writes it.
    """
    require_parquet(out)
    opened, all_rewards = _open(source, rewards)
    tables = Tables(all_rewards, opened.folder)
    rank = 0 if accelerator is None else accelerator.process_index
    ranks = 1 if accelerator is None else accelerator.num_processes
    wait = (lambda: None) if accelerator is None else accelerator.wait_for_everyone
    parts = folder_of(out)

    with ExitStack() as stack:
        # By the first process alone, from here to the end.
        if rank == 0:
            stack.enter_context(held(out, opened.folder))
            require_parquet(out)
        wait()
        # Read again: another command may have replaced the gallery before it was held.
        opened, _ = _open(source, all_rewards)

        # All processes read what there was before the first one moves it.
        earlier = Earlier.of(out, chunks_in(parts), tables, trust)
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
            known=earlier.known,
            rank=rank,
            ranks=ranks,
        )
        saved: dict[int, int] = {}
        known = 0
        for number, chunk in chunks:
            tables.of(chunk).save(parts / f"{number:06d}.parquet")
            saved[number] = len(chunk)
            known += sum(each.error is None and each.key in earlier.known for each in chunk)
        everywhere = from_all((saved, known), accelerator)
        if rank != 0:
            return None

        # The first process joins them, once they are known to be all.
        all_saved = {number: rows for part, _ in everywhere for number, rows in part.items()}
        files = finished(out, parts, all_saved, opened.total)
        summary = _join(files, out, tables, _fitting(earlier, opened), opened.skipped)
        clean(parts)
    return replace(summary, known=sum(count for _, count in everywhere))


def _join(
    files: Sequence[Path],
    out: Path,
    tables: Tables,
    earlier: Earlier,
    skipped: Mapping[str, int],
) -> Summary:
    """Write the file of all chunks, with the columns that are kept of earlier calls.

    The chunks are read three times: no more than one is ever in memory.
    """

    def saved() -> Iterator[ScoresTable]:
        return map(tables.load, files) if files else iter([tables.of([])])

    summary = Summary.of(saved(), earlier, skipped)
    gone = [name for name, count in summary.kept.items() if count == 0]
    kept = earlier.without(gone)
    save_parts(lambda: map(kept.added_to, saved()), out)
    notes = [f"column {name!r} was of other pictures; it is not kept" for name in gone]
    return replace(
        summary,
        kept={name: count for name, count in summary.kept.items() if count},
        notes=[*earlier.notes, *notes],
    )


def _fitting(earlier: Earlier, opened: Source) -> Earlier:
    """What may be kept: no column whose name is one of the gallery's by now."""
    clashing = [name for name in earlier.origins if name in opened.columns]
    notes = [f"column {name!r} is one of the gallery's by now; it is not kept" for name in clashing]
    return replace(earlier.without(clashing), notes=[*earlier.notes, *notes])


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
    opened = _with_prompts(opened, all_rewards)
    check_names([dict.fromkeys(opened.columns)], all_rewards.heads)
    return opened, all_rewards


def _with_prompts(source: Source, rewards: RewardSet) -> Source:
    """The source whose rows have a prompt, be it in another column, where a head reads one.

    Raises:
        UserError: a picture of a gallery has none; of other sources, once the picture is reached.
    """
    readers = [name for name, head in rewards.heads.items() if getattr(head, "reads_prompt", False)]

    def items() -> Iterator[Item]:
        for item in source:
            row = with_prompt(item.row)
            if readers and not isinstance(item.content, UnreadablePicture):
                _require_prompt(row, source.name, readers[0])
            yield Item(row, item.content)

    adapted = replace(source, items=items)
    if source.folder is not None and readers:
        # A gallery's rows are at hand: all of them are looked at before anything is scored.
        for _ in adapted:
            pass
    return adapted


def _require_prompt(row: Mapping[str, Any], source: str, head: str) -> None:
    if not str(row.get("prompt", "")).strip():
        columns = ", ".join(sorted(row))
        raise UserError(
            f"{source}: {row['file_name']} has no prompt, which reward {head!r} reads; "
            f"want a column prompt, text or caption; there are: {columns}"
        )


def _require_readable(table: ScoresTable, folder: Path | None) -> None:
    failed = [index for index, reason in enumerate(table.errors) if reason is not None]
    if not failed:
        return
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    name = table.rows[failed[0]]["file_name"]
    where = name if folder is None else folder / str(name)
    raise UserError(f"{where}: {table.errors[failed[0]]}{more}; want every picture readable")
