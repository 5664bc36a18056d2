"""`align-gen report`: one page of HTML about a run or one or two galleries."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..run_folder import RunFolder
from .arguments import Json

EXAMPLE = "align-gen report runs/demo --out report.html"


def report(
    source: Annotated[
        list[Path], typer.Argument(help="A run directory, or one or two scored galleries.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """One HTML page to look at: pairs, scores, curves."""
    # Before the report's own check, whose advice is to score a gallery that exists.
    for path in source:
        if not path.exists():
            raise UserError(f"{path}: no such folder; want a run directory or a scored gallery")

    from ..report.runs import report_galleries, report_run

    is_run = len(source) == 1 and RunFolder(source[0]).exists()
    page = report_run(source[0], out) if is_run else report_galleries(source, out)
    print(json.dumps({"out": str(page)}) if as_json else f"open {page}")
