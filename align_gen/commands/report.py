"""`align-gen report`: one page of HTML about a run or one or two galleries."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError, printable
from ..run_folder import RunFolder
from .arguments import Json, PairedOn, columns_of

EXAMPLE = "align-gen report runs/demo --out report.html"


def report(
    source: Annotated[
        list[Path], typer.Argument(help="A run directory, or one or two scored galleries.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    on: PairedOn = None,
    as_json: Json = False,
) -> None:
    """One HTML page to look at: pairs, scores, curves."""
    # Before the report's own check, whose advice is to score a gallery that exists.
    for path in source:
        if not path.exists():
            raise UserError(f"{path}: no such folder; want a run directory or a scored gallery")

    from ..report.runs import report_galleries, report_run

    is_run = len(source) == 1 and RunFolder(source[0]).exists()
    columns = columns_of(on)
    if is_run:
        page = report_run(source[0], out, on=columns)
    else:
        page = report_galleries(source, out, on=columns)
    print(json.dumps({"out": str(page)}) if as_json else f"open {printable(page)}")
