"""`align-gen demo`: the whole loop on a bundled model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..distributed import processes
from ..errors import UserError, printable
from .arguments import Json
from .resuming import resumable
from .tables import Column, print_table

EXAMPLE = "align-gen demo --seed 1 --out runs/demo-1"
COLUMNS = (
    Column("reward", width=10),
    Column("before", ".4f", 8),
    Column("after", ".4f", 8),
    Column("change in standard deviations", "s"),
    Column("p", ".4f", 6),
)


def demo(
    model: Annotated[str, typer.Option(help="The bundled model to align.")] = "emoji-sd",
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    placebo: Annotated[
        bool,
        typer.Option("--placebo", help="Shuffle rewards within each prompt: what rises is noise."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Run directory; an unfinished one is resumed.")] = Path(
        "runs/demo"
    ),
    as_json: Json = False,
) -> None:
    """Sample, fine-tune, sample again, score, compare and report, in minutes on a CPU."""
    # Its summary compares whole galleries, and a laptop's few cores gain nothing from processes.
    if processes()[1] > 1:
        raise UserError("demo: one process; align-gen finetune emoji-sd-prdp runs on several")

    from ..demo import RECIPES
    from ..demo import demo as run_demo
    from ..progress import ProgressBar

    if model not in RECIPES:
        raise UserError(f"--model {model!r}: no demo of it; have {sorted(RECIPES)}")
    with resumable(out), ProgressBar() as progress:
        summary = run_demo(model, out=out, seed=seed, placebo=placebo, progress=progress)
    if as_json:
        print(json.dumps(summary))
        return
    print_table(COLUMNS, [_row(name, summary[name]) for name in ("reward", "heldout", "alignment")])
    counts = f"{summary['images']} pictures of {summary['prompts']} held-out prompts"
    print(f"{counts}, {summary['seconds']:.0f} s")
    print(printable(summary["verdict"]))
    print(f"open {printable(out / 'report.html')}")


def _row(name: str, figures: Mapping[str, Any]) -> tuple[Any, ...]:
    # In standard deviations of the pictures before, as rewards have no common unit.
    low = figures["ci_low"] / figures["std"]
    high = figures["ci_high"] / figures["std"]
    interval = f"[{low:+.2f}, {high:+.2f}]"
    return name, figures["before"], figures["after"], interval, figures["p"]
