"""Reports of runs and galleries: which scores, names and commands go on the page."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..galleries.comparison import compare
from ..galleries.table import SCORES, ScoresTable
from ..reward_heads.code import text_names_code
from ..run_folder import RunFolder
from ..training.journal import read_lines
from ..training.recipe import Recipe


def report_run(
    run: Path, out: Path | None = None, summary: Mapping[str, Any] | None = None
) -> Path:
    """Write the report of a finished run, ``report.html`` in its folder unless ``out`` is given.

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
    provenance: dict[str, Any] = {"recipe": recipe.to_yaml()}
    if summary:
        provenance["summary"] = dict(summary)
    return build_report(
        before=before,
        after=after,
        out=out or folder.report,
        title=f"{recipe.model.path}, fine-tuned by {recipe.method.name.upper()}",
        comparison=compare(before, after),
        optimised=[str(name) for name in recipe.rewards],
        held_out=[str(name) for name in recipe.eval_rewards],
        lowered=[str(name) for name, spec in recipe.rewards.items() if _weight(spec) < 0],
        metrics=lines,
        alarm=alarm_of(lines, recipe.run.steps),
        provenance=provenance,
        command=lambda row: command_for(row, adapter=str(folder.export)),
    )


def report_galleries(sources: list[Path], out: Path) -> Path:
    """Write the report of one scored gallery, or of two, the second against the first.

    Raises:
        UserError: another number of galleries, or one that is missing or has no scores.
    """
    from .page import build_report

    if not 1 <= len(sources) <= 2:
        raise UserError(
            f"report: want one or two galleries, or run directories, got {len(sources)}"
        )
    tables = [_scores_of(source) for source in sources]
    before = tables[0] if len(tables) == 2 else None
    names = [source.name for source in sources]
    # Two galleries of one name, as runs/a/before and runs/b/before, go by their paths.
    if len(set(names)) < len(names):
        names = [str(source) for source in sources]
    return build_report(
        before=before,
        after=tables[-1],
        out=out,
        title=" → ".join(names),
        comparison=None if before is None else compare(before, tables[-1]),
        optimised=[],
        held_out=[],
        command=command_for,
        names=(names[0], names[-1]),
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


def command_for(row: Mapping[str, Any], **other: str) -> str | None:
    """The command that makes a picture again, from its row; None where the row does not say enough.

    ``other`` replaces what the row says: a run's own export, wherever the run lies by now.
    """
    made = row.get("made")
    if not isinstance(made, Mapping) or "model" not in made or not {"prompt", "seed"} <= row.keys():
        return None
    # A guide of Python's, whose rewards the row names without their options.
    if "rewards" in made:
        return None
    # A reader would paste it and run code of the gallery's author.
    if "reward" in made and text_names_code(str(made["reward"])):
        return None
    settings = {key: value for key, value in {**made, **other}.items() if key != "model"}
    words = ["align-gen", "sample", made["model"], "--prompt", row["prompt"], "--seed", row["seed"]]
    # The keys of "made" are the command line's own options.
    for key, value in sorted(settings.items()):
        words += [f"--{key}", value]
    return shlex.join(map(str, [*words, "--out", "again"]))


def _weight(spec: Any) -> float:
    """Weight of a reward from its entry in a recipe: a number, or options that may hold one."""
    weight = spec.get("weight", 1.0) if isinstance(spec, Mapping) else spec
    return 1.0 if weight is None else float(weight)


def _scores_of(source: Path) -> ScoresTable:
    """The scores of a gallery, or of a scores file."""
    if not source.exists():
        raise UserError(f"{source}: no such folder or file; want a scored gallery or a run")
    if not source.is_dir():
        return ScoresTable.load(source)
    if not (source / SCORES).is_file():
        raise UserError(
            f"{source}: no scores in it; make them with: align-gen score {source} --reward NAME"
        )
    # Whatever the file says: a folder that was moved or shared shows its own pictures.
    return ScoresTable.load(source / SCORES).at(source)
