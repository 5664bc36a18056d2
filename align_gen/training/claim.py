"""A run's folder belongs to one recipe, and to one process at a time."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..distributed import from_first
from ..errors import UserError
from ..files import is_leftover, move, remove, remove_empty, require_no_links, whole_file
from ..galleries.parquet_files import SCORES
from ..locks import clear_locks, locked
from ..run_folder import RunFolder
from .inputs import Sums, require_same_inputs, write_inputs
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


@contextmanager
def held(folder: RunFolder, accelerator: "Accelerator") -> Iterator[None]:
    """Hold a run's folder; of several processes of one run, the first one holds it for all.

    Folders that are made for the lock and stay empty are removed afterwards.

    Raises:
        UserError: another process holds it, named by its number; or it is no folder for a run. All
            processes raise alike.
    """
    fault = None
    with ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                require_place(folder)
                path = folder.path.absolute()
                with _writable(folder):
                    made = [each for each in (path, *path.parents) if not each.exists()]
                    stack.callback(remove_empty, made)
                    stack.enter_context(locked(folder.lock, folder))
            except UserError as error:
                fault = str(error)
        if message := from_first(fault, accelerator):
            raise UserError(message)
        yield


@contextmanager
def _writable(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error


def require_place(folder: RunFolder) -> None:
    """Check that a folder is new or empty, or holds a run, and no link.

    Raises:
        UserError: says what is there.
    """
    with _writable(folder):
        if not folder.path.exists():
            return
        is_folder = folder.path.is_dir()
        names = [path.name for path in folder.path.iterdir()] if is_folder else ["a file"]
    if folder.exists():
        require_no_links(folder.path)
        return
    if folder.saved_steps() or folder.state.name in names:
        raise UserError(
            f"{folder}: holds a run whose {folder.recipe.name} is gone; want it back, "
            "or another --out"
        )
    foreign = [name for name in names if name != folder.lock.name and not is_leftover(Path(name))]
    if foreign:
        raise UserError(f"{folder}: want a new or empty folder, or one of the same recipe")


def require_same_recipe(folder: RunFolder, recipe: Recipe) -> None:
    """Check that a folder is new or empty, or holds a run of this recipe.

    A run may go on with more steps, and with other values of the keys in ``FREE``.

    Raises:
        UserError: it holds something else; says what differs.
    """
    require_place(folder)
    if folder.exists():
        _require_resumable(folder, recipe)


def claim(
    folder: RunFolder, recipe: Recipe, inputs: Mapping[str, Sums], accelerator: "Accelerator"
) -> None:
    """Write the recipe into its folder; of a run that ended and goes on, put its end aside.

    Args:
        inputs: the sums of what the recipe names; all processes raise alike where they are others.

    Raises:
        UserError: the folder cannot be written, or what the run began with has changed.
    """
    fault = None
    if accelerator.is_main_process:
        try:
            with _writable(folder):
                require_same_inputs(folder, recipe, inputs)
                folder.path.mkdir(parents=True, exist_ok=True)
                # A gallery that is whole is not drawn again, nor its lock taken.
                galleries = folder.galleries()
                clear_locks([*galleries, *(gallery / SCORES for gallery in galleries)])
                _put_end_aside(folder, recipe)
                # The recipe first: with anything else alone, the folder would be nobody's.
                write_recipe(folder, recipe)
                # Of a run from before they were kept, they are those of now.
                if not folder.inputs.is_file():
                    write_inputs(folder, inputs)
        except UserError as error:
            fault = str(error)
    if message := from_first(fault, accelerator):
        raise UserError(message)


def write_recipe(folder: RunFolder, recipe: Recipe) -> None:
    """Write the recipe down, complete."""
    with whole_file(folder.recipe) as file:
        file.write(recipe.to_yaml().encode())


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
    last = max(folder.saved_steps(), default=0)
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
        last = max(folder.saved_steps(), default=steps)
        here = folder.samples(f"step-{last:06d}")
        if here.exists():
            remove(folder.final)
        else:
            move(folder.final, here)


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
