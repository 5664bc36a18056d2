"""Reports of run directories and galleries: what to show, handed to the page that shows it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..galleries.comparison import compare
from ..galleries.table import ScoresTable
from ..training.journal import read_lines
from ..training.recipe import Recipe


def report_run(
    run: Path, out: Path | None = None, summary: Mapping[str, Any] | None = None
) -> Path:
    """The report of a finished run directory, ``run/report.html`` unless said otherwise."""
    from .page import build_report

    before = run / "before" / "scores.parquet"
    after = run / "samples" / "final" / "scores.parquet"
    for file in (run / "recipe.yaml", before, after):
        if not file.is_file():
            raise UserError(f"{run}: no finished run ({file.relative_to(run)} is missing)")
    recipe = Recipe.load(run / "recipe.yaml")
    tables = _scores_of(before.parent), _scores_of(after.parent)
    lines = read_lines(run / "metrics.jsonl")
    provenance = {"recipe": recipe.to_yaml(), **({"summary": dict(summary)} if summary else {})}
    return build_report(
        before=tables[0],
        after=tables[1],
        out=out or run / "report.html",
        title=f"{recipe.model.path}, fine-tuned by {recipe.method.name.upper()}",
        comparison=compare(*tables),
        optimised=[str(name) for name in recipe.rewards],
        held_out=[str(name) for name in recipe.eval_rewards],
        lowered=[str(name) for name, said in recipe.rewards.items() if _weight(said) < 0],
        metrics=lines,
        alarm=alarm_of(lines, recipe.run.steps),
        provenance=provenance,
        command=lambda row: command_for(row, adapter=str(run / "export")),
    )


def _weight(said: Any) -> float:
    """Of a reward as a recipe has it: a number, or options that may hold one."""
    weight = said.get("weight", 1.0) if isinstance(said, Mapping) else said
    return 1.0 if weight is None else float(weight)


def alarm_of(lines: Sequence[Mapping[str, Any]], steps: int) -> str | None:
    """What the guard saw, where the run ended with a held-out reward below its start; None where it
    recovered.
    """
    fallen = {line["step"]: line["eval/fallen"] > 0 for line in lines if "eval/fallen" in line}
    if not fallen or not list(fallen.values())[-1]:
        return None
    told = ", ".join(str(step) for step, low in fallen.items() if low)
    last = max(line["step"] for line in lines)
    ended = f" The run was stopped at step {last} of {steps}." if last < steps else ""
    return f"More than a quarter of a standard deviation below their start at step {told}.{ended}"


def report_galleries(sources: list[Path], out: Path) -> Path:
    """The report of one scored gallery, or of two, before and after."""
    from .page import build_report

    if not 1 <= len(sources) <= 2:
        raise UserError(
            f"report: want one or two galleries, or run directories, got {len(sources)}"
        )
    tables = [_scores_of(source) for source in sources]
    before = tables[0] if len(tables) == 2 else None
    return build_report(
        before=before,
        after=tables[-1],
        out=out,
        title=" → ".join(source.name for source in sources),
        comparison=None if before is None else compare(before, tables[-1]),
        optimised=[],
        held_out=[],
        command=command_for,
    )


def command_for(row: Mapping[str, Any], **other: str) -> str | None:
    """The command that makes a picture again, from its row; None where the row does not say how it
    was made.

    ``other`` replaces what the row says: a run's own export, wherever the run lies by now.
    """
    made = row.get("made")
    if not isinstance(made, Mapping) or "model" not in made or not {"prompt", "seed"} <= row.keys():
        return None
    settings = {key: value for key, value in {**made, **other}.items() if key != "model"}
    words = ["align-gen", "sample", made["model"], "--prompt", row["prompt"], "--seed", row["seed"]]
    for key, value in sorted(settings.items()):
        words += [f"--{key}", value]
    return shlex.join(map(str, [*words, "--out", "again"]))


def _scores_of(source: Path) -> ScoresTable:
    file = source / "scores.parquet" if source.is_dir() else source
    if not file.is_file():
        raise UserError(
            f"{source}: no scores; make them with: align-gen score {source} --reward NAME --out {file}"
        )
    table = ScoresTable.load(file)
    if source.is_dir():
        table.folder = str(source)  # whatever the file says: a shared folder shows its own pictures
    return table
