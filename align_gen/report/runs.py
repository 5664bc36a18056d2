"""Reports of runs and galleries: which scores, names and commands go on the page."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..galleries.comparison import Comparison, compare
from ..galleries.folders import load_followed
from ..galleries.parquet_files import SCORES
from ..galleries.table import ScoresTable
from ..galleries.verdicts import independent
from ..portable import portable_data, portable_name, portable_names, portable_yaml
from ..reward_heads.base import label
from ..run_folder import RunFolder
from ..training.journal import read_lines
from ..training.recipe import Recipe
from .again import adapter_of, command_for
from .words import run_summary

if TYPE_CHECKING:
    from ..training.engine import Run

PAIRED_ON = ("prompt", "seed")


@dataclass(frozen=True)
class Roles:
    """What a run did with its columns.

    Attributes:
        optimised: the columns of the recipe's rewards.
        held_out: those of its eval_rewards, but for any that is an optimised one by another name.
        lowered: those of the optimised whose weight is negative.
    """

    optimised: list[str]
    held_out: list[str]
    lowered: list[str]

    @classmethod
    def of(cls, recipe: Recipe, scores: ScoresTable) -> "Roles":
        """The roles of a recipe, whose final gallery has these scores."""
        optimised = {label(key): spec for key, spec in recipe.rewards.items()}
        held_out = [label(key) for key in recipe.eval_rewards]
        return cls(
            optimised=list(optimised),
            held_out=independent(scores, held_out, list(optimised)),
            lowered=[name for name, spec in optimised.items() if _weight(spec) < 0],
        )

    def renamed(self, names: Mapping[str, str]) -> "Roles":
        """The same roles of columns that have other names."""
        sides = (self.optimised, self.held_out, self.lowered)
        return Roles(*([names.get(name, name) for name in side] for side in sides))


def verdict_line(run: "Run", comparison: Comparison) -> str:
    """The verdict of a finished run in one line, in the words of its page."""
    roles = Roles.of(run.recipe, run.after)
    alarm = alarm_of(run.metrics, run.recipe.run.steps)
    said = run_summary(comparison, roles.optimised, roles.held_out, roles.lowered, alarm)
    return f"{said.verdict}: {said.reason}"


def report_run(
    run: Path,
    out: Path | None = None,
    summary: Mapping[str, Any] | None = None,
    on: Sequence[str] = PAIRED_ON,
) -> Path:
    """Write the report of a finished run, ``report.html`` in its folder unless ``out`` is given.

    The page is made to be passed on: it names no folder of this machine.

    Args:
        run: its folder.
        out: the page to write.
        summary: figures to show in the foot.
        on: the columns by which pictures pair.

    Raises:
        UserError: the run has not finished.
    """
    from .page import build_report

    folder = RunFolder(run)
    # A run that was stopped has no final gallery: there would be nothing to compare.
    for file in (folder.recipe, folder.before / SCORES, folder.final / SCORES):
        if not file.is_file():
            raise UserError(f"{run}: no finished run ({file.relative_to(run)} is missing)")
    # Shown and not run, so that code in it does no harm.
    recipe = Recipe.load(folder.recipe, beside=False, allow_code=True)
    before = _scores_of(folder.before)
    after = _scores_of(folder.final)
    lines = read_lines(folder.metrics)
    provenance: dict[str, Any] = {"recipe": portable_yaml(recipe.to_yaml())}
    if summary:
        provenance["summary"] = portable_data(summary)

    # A reward of one's own has its file's path in its name.
    names = portable_names({**after.heads, **before.heads})
    roles = Roles.of(recipe, after).renamed(names)
    before = _renamed(before, names)
    after = _renamed(after, names)
    adapter = adapter_of(folder.export)
    return build_report(
        before=before,
        after=after,
        out=out or folder.report,
        title=f"{portable_name(recipe.model.path)}, fine-tuned by {recipe.method.name.upper()}",
        comparison=compare(before, after, on=on),
        optimised=roles.optimised,
        held_out=roles.held_out,
        lowered=roles.lowered,
        metrics=[_renamed_keys(line, names) for line in lines],
        alarm=alarm_of(lines, recipe.run.steps),
        provenance=provenance,
        command=lambda row: command_for(row, adapter=adapter),
        paired_on=on,
    )


def report_galleries(sources: list[Path], out: Path, on: Sequence[str] = PAIRED_ON) -> Path:
    """Write the report of one scored gallery, or of two, the second against the first.

    Args:
        sources: galleries or scores files.
        out: the page to write.
        on: the columns by which pictures pair.

    Raises:
        UserError: another number of galleries, or one that is missing or has no scores.
    """
    from .page import build_report

    if not 1 <= len(sources) <= 2:
        raise UserError(
            f"report: want one or two galleries, or run directories, got {len(sources)}"
        )
    # Columns that are named by a path are called by their last names: the page is passed on.
    tables = [_scores_of(source) for source in sources]
    columns = portable_names(dict.fromkeys(name for table in tables for name in table.heads))
    tables = [_renamed(table, columns) for table in tables]
    before = tables[0] if len(tables) == 2 else None
    names = _names_of(sources)
    return build_report(
        before=before,
        after=tables[-1],
        out=out,
        title=" → ".join(names),
        comparison=None if before is None else compare(before, tables[-1], on=on),
        optimised=[],
        held_out=[],
        command=command_for,
        names=(names[0], names[-1]),
        paired_on=on,
    )


def alarm_of(lines: Sequence[Mapping[str, Any]], steps: int) -> str | None:
    """The warning of a run that ended with a held-out reward below its start; None otherwise.

    Args:
        lines: the run's metrics; "eval/fallen" counts the held-out rewards that had fallen.
        steps: of the recipe.
    """
    fallen = {line["step"]: line["eval/fallen"] > 0 for line in lines if "eval/fallen" in line}
    if not fallen or not list(fallen.values())[-1]:
        return None
    low = ", ".join(str(step) for step, is_low in fallen.items() if is_low)
    last = max(line["step"] for line in lines)
    ended = f" The run was stopped at step {last} of {steps}." if last < steps else ""
    return f"More than a quarter of a standard deviation below their start at step {low}.{ended}"


def _weight(spec: Any) -> float:
    """Weight of a reward from its entry in a recipe: a number, or options that may hold one."""
    weight = spec.get("weight", 1.0) if isinstance(spec, Mapping) else spec
    return 1.0 if weight is None else float(weight)


def _scores_of(source: Path) -> ScoresTable:
    """The scores of a gallery, or of a scores file."""
    if not source.exists():
        raise UserError(f"{source}: no such folder or file; want a scored gallery or a run")
    if not source.is_dir():
        return load_followed(source)
    if not (source / SCORES).is_file():
        raise UserError(
            f"{source}: no scores in it; make them with: align-gen score {source} --reward NAME"
        )
    # Whatever the file says: a folder that was moved or shared shows its own pictures.
    return ScoresTable.load(source / SCORES).at(source)


def _names_of(sources: Sequence[Path]) -> list[str]:
    """What a page calls galleries: their names, or where these are equal, where they part ways."""
    names = [source.name for source in sources]
    paths = [source.resolve() for source in sources]
    if len(set(names)) == len(names) or len(set(paths)) < len(paths):
        return names
    # runs/a/before and runs/b/before are a/before and b/before.
    shared = os.path.commonpath(paths)
    return [str(path.relative_to(shared)) for path in paths]


def _renamed(table: ScoresTable, names: Mapping[str, str]) -> ScoresTable:
    """A table whose heads have other names, and whose provenance names no folder."""
    return replace(
        table,
        heads={names[name]: scores for name, scores in table.heads.items()},
        provenance={
            names.get(name, name): portable_data(origin)
            for name, origin in table.provenance.items()
        },
    )


def _renamed_keys(line: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A line of metrics whose columns have other names: reward/NAME, eval/NAME/mean."""
    renamed = {}
    for key, value in line.items():
        for name, short in names.items():
            key = key.replace(f"/{name}", f"/{short}") if name != short else key
        renamed[key] = value
    return renamed
