"""`align-gen score`: pictures or videos by rewards."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError, printable
from .arguments import Json, default_device, parse_rewards
from .tables import Column, print_table

if TYPE_CHECKING:
    from ..reward_heads import RewardSet

EXAMPLE = "align-gen score galleries/base --reward jpeg_size --reward clip:path=emoji-clip"
FAILURES = 20  # unreadable pictures that are named
OTHER_FORMATS = (".csv", ".json", ".jsonl", ".tsv", ".txt", ".xlsx")
COLUMNS = (Column("reward", width=16), Column("mean", ".5f", 9))


def score(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of pictures or videos; .tar shards, .parquet, or a URL of these; "
            "datasets:NAME[:SPLIT]."
        ),
    ],
    reward: Annotated[
        list[str], typer.Option(help="[LABEL=]NAME[:key=value,…]; may be given several times.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Parquet file of scores; scores.parquet in the gallery without it."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="hpdv2: the folder holds its four styles; print its table beside published ones."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Of the suite: the folder of its STYLE.json files, if not beside the pictures."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 64,
    combine: Annotated[
        str,
        typer.Option(
            help="How rewards become one: sum, mean, median, min, mean_minus_std, soft_min."
        ),
    ] = "sum",
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="A scored gallery whose scale each reward is put on before they combine."
        ),
    ] = None,
    trust_scores: Annotated[
        bool,
        typer.Option(
            "--trust-scores", help="Take known scores also from a file that was not written here."
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 when a picture cannot be read.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score pictures with rewards.

    A corrupt picture is a null row with the reason. What is known is not scored again, and columns
    of other rewards stay in the file.
    """
    if suite not in (None, "hpdv2"):
        raise UserError(f"--suite {suite!r}: have ['hpdv2']")
    if suite is not None:
        _score_hpdv2(Path(source), prompts, parse_rewards(reward), batch_size, as_json)
        return
    # Before the libraries are imported, which takes seconds: mistakes answer at once.
    target = _target(source, out)
    specs = parse_rewards(reward)

    from ..distributed import start_accelerator
    from ..errors import user_mistakes
    from ..galleries.scoring import score_file
    from ..progress import ProgressBar

    # What a user named may be missing or wrong: a library's error about it is the user's to mend.
    with user_mistakes():
        rewards = _open(specs, combine, calibrate)
    accelerator = start_accelerator()
    with ProgressBar() as progress:
        shown = progress if accelerator.is_main_process else None
        result = score_file(
            source,
            rewards,
            target,
            batch_size=batch_size,
            trust=trust_scores,
            progress=shown,
            accelerator=accelerator,
        )
    # Of several processes, the main one alone has the result.
    if result is None:
        return
    scored = result.pictures - len(result.failed)
    if as_json:
        print(json.dumps(_as_json(result, target)))
    else:
        print_table(COLUMNS, list(result.means.items()))
        print(f"{scored} of {result.pictures} pictures scored -> {printable(target)}")
    # On stderr, so that --json stays one line of JSON on stdout.
    for line in result.lines():
        print(f"align-gen: {printable(line)}", file=sys.stderr)
    for name, reason in result.failed[:FAILURES]:
        print(f"align-gen: {printable(name)}: {printable(reason)}", file=sys.stderr)
    more = len(result.failed) - FAILURES
    if more > 0:
        rest = f"and {more} more; column 'error' of {printable(target)} has them all"
        print(f"align-gen: {rest}", file=sys.stderr)
    if result.failed and strict:
        raise typer.Exit(1)


def _target(source: str, out: Path | None) -> Path:
    """The file that takes the scores; UserError where there is no place for one."""
    from ..galleries.parquet_files import SCORES
    from ..galleries.scores_file import require_parquet

    if out is not None and out.suffix in OTHER_FORMATS:
        raise UserError(f"--out {out}: scores are written as Parquet; want a .parquet file")
    folder = Path(source)
    if out is None and not folder.is_dir():
        # A name without a suffix, a scheme or a colon can only have meant a folder.
        missing = not folder.exists() and not folder.suffix and ":" not in source
        wrong = (
            "no such folder" if missing else "is no folder to keep the scores in; want --out FILE"
        )
        raise UserError(f"{source}: {wrong}")
    target = out or folder / SCORES
    require_parquet(target)
    return target


def _open(
    specs: Mapping[str, Mapping[str, Any]], combine: str, calibrate: str | None
) -> "RewardSet":
    from ..opening import open_rewards
    from ..training.calibration import Combine, combination
    from ..training.yaml_text import validate

    rewards = open_rewards(specs, default_device())
    section = validate(Combine, {"rule": combine, "calibrate": calibrate}, "--combine")
    rewards.combination = combination(section, rewards)
    return rewards


def _as_json(result: Any, target: Path) -> dict[str, Any]:
    """The result as plain data; JSON has no word for NaN, the mean of nothing, so it is null."""
    means = {name: None if math.isnan(value) else value for name, value in result.means.items()}
    failed = dict(result.failed)
    counts = {"pictures": result.pictures, "known": result.known, "kept": result.kept}
    return {"means": means, **counts, "failed": failed, "out": str(target)}


def _score_hpdv2(
    root: Path,
    prompts: Path | None,
    specs: Mapping[str, Mapping[str, Any]],
    batch_size: int,
    as_json: bool,
) -> None:
    """Score a benchmark's pictures and print its table."""
    from ..errors import user_mistakes
    from ..galleries.hpdv2 import run_hpdv2
    from ..opening import open_rewards
    from ..progress import ProgressBar

    with user_mistakes():
        rewards = open_rewards(specs, default_device())
    with ProgressBar() as progress:
        table = run_hpdv2(root, prompts, rewards, batch_size=batch_size, progress=progress)
    print(json.dumps(table.to_json()) if as_json else "\n".join(table.to_text()))
