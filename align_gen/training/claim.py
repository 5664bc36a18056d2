"""A run's folder belongs to one recipe."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import UserError
from ..files import is_leftover, whole_file
from ..run_folder import RunFolder
from .journal import read_lines
from .recipe import Recipe
from .yaml_text import yaml_diff

if TYPE_CHECKING:
    from accelerate import Accelerator

# Keys that bound memory, or say what is written down, and change nothing that is learned.
FREE = (
    "run.out",
    "run.save_every",
    "run.tracker",
    "optim.micro_batch",
    "evaluate.every",
    "evaluate.batch_size",
    "memory.checkpointing",
    "memory.free_text_encoders",
    "memory.offload_rewards",
    "memory.offload_reference",
)


def require_same_recipe(folder: RunFolder, recipe: Recipe) -> None:
    """Check that a folder is new or empty, or holds a run of this recipe.

    A run may go on with more steps, and with other values of the keys in ``FREE``.

    Raises:
        UserError: it holds something else; says what differs.
    """
    try:
        exists = folder.exists()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    if exists:
        _require_resumable(folder, recipe)
    elif folder.path.exists():
        is_folder = folder.path.is_dir()
        if not is_folder or not all(map(is_leftover, folder.path.iterdir())):
            raise UserError(f"{folder}: want a new or empty folder, or one of the same recipe")


def claim(folder: RunFolder, recipe: Recipe, accelerator: "Accelerator") -> None:
    """Write the recipe into its folder; of a run that ended and goes on, put its end aside.

    Raises:
        UserError: the folder cannot be written.
    """
    if accelerator.is_main_process:
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            _put_end_aside(folder, recipe)
            with whole_file(folder.recipe) as file:
                file.write(recipe.to_yaml().encode())
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    accelerator.wait_for_everyone()


def _require_resumable(folder: RunFolder, recipe: Recipe) -> None:
    """UserError where the folder's recipe differs in more than a run may."""
    theirs = _completed(folder.recipe)
    mine = _decisive(recipe.to_yaml())
    if mine != _decisive(theirs):
        difference = yaml_diff(mine, _decisive(theirs))
        raise UserError(
            f"{folder}: holds the run of another recipe; it differs in: {difference}; "
            "want another --out, where model.adapter may name this run's export to go on from it"
        )
    last = max((line["step"] for line in read_lines(folder.metrics)), default=0)
    if recipe.run.steps < last:
        raise UserError(
            f"{folder}: run.steps: this run is at step {last}; want as many or more, "
            f"got {recipe.run.steps}"
        )


def _put_end_aside(folder: RunFolder, recipe: Recipe) -> None:
    """Make the gallery of a shorter run's end one of the way, so that the new end is drawn."""
    if not folder.exists() or not folder.final.is_dir():
        return
    steps = _steps(_completed(folder.recipe))
    if recipe.run.steps > steps:
        last = max((line["step"] for line in read_lines(folder.metrics)), default=steps)
        here = folder.samples(f"step-{last:06d}")
        if here.exists():
            shutil.rmtree(folder.final)
        else:
            os.replace(folder.final, here)


def _completed(file: Path) -> str:
    """A run's recipe with what has been added to recipes since at its default.

    As it is, where it cannot be read.
    """
    try:
        # Compared and not run, so that code in it does no harm.
        return Recipe.load(file, beside=False, allow_code=True).to_yaml()
    except UserError:
        return file.read_text()


def _decisive(text: str) -> str:
    """A recipe without what a run may change on its way."""
    data = _plain(text)
    for key in (*FREE, "run.steps"):
        section, name = key.split(".")
        part = data.get(section)
        if isinstance(part, dict):
            part.pop(name, None)
    # What cannot be read as a recipe can only be compared as it is.
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True) if data else text


def _steps(text: str) -> int:
    """How many steps a recipe asks for; 0 where it cannot be read."""
    run = _plain(text).get("run")
    steps = run.get("steps") if isinstance(run, dict) else None
    return steps if isinstance(steps, int) else 0


def _plain(text: str) -> dict[str, Any]:
    """A recipe's plain data; empty where it cannot be read."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}
