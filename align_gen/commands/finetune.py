"""`align-gen finetune`: a recipe from its model to its report."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable
from .arguments import Json, Kernel
from .resuming import resumable

EXAMPLE = "align-gen finetune sd15-prdp --set run.steps=50 --out runs/mine"


def finetune(
    recipe: Annotated[str, typer.Argument(help="A bundled recipe's name or a YAML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: section.key=value.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; an unfinished one is resumed.")
    ] = None,
    attention: Annotated[Kernel | None, typer.Option(help="Sets model.attention.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, and its cost, then stop.")
    ] = False,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Run the code that the recipe names: rewards as file.py:name or module:name.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a checkpoint towards rewards, measuring before, during and after."""
    from ..training.recipe import Recipe

    overrides = list(set_ or [])
    if attention is not None:
        overrides.append(f"model.attention={attention.value}")
    resolved = Recipe.load(recipe, overrides, allow_code=allow_code)
    if dry_run:
        from ..training.dry_run import describe

        plan = describe(resolved)
        print(json.dumps(plan.json()) if as_json else plan)
        return

    # The engine, only now: a mistake in the recipe needs none of it.
    from accelerate import PartialState

    from ..galleries.comparison import compare
    from ..progress import ProgressBar
    from ..report.runs import report_run, verdict_line
    from ..training.engine import finetune as run_finetune
    from .compare import print_comparison

    folder = Path(out or resolved.run.out or "runs/latest")
    with resumable(folder), ProgressBar() as progress:
        run = run_finetune(resolved, folder, progress=progress)
    # Of several processes one writes the page and prints.
    if not PartialState().is_main_process:
        return
    page = report_run(run.folder)
    result = compare(run.before, run.after)
    if as_json:
        print(json.dumps(result.to_json()))
        return
    if run.steps_taken == 0:
        print(f"{printable(run.folder)}: this run was finished already; nothing was run")
    print_comparison(result)
    print(printable(verdict_line(run, result)))
    print(f"open {printable(page)}")
