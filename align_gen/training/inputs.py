"""What decides a run besides its recipe: the content of the files it names, and reward code.

Their sums are kept in the run's ``inputs.json``. A run goes on only with what it began with: with
another reward, "before" and "after" would be measured by different rules.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import bundled
from ..errors import UserError
from ..files import whole_file
from ..galleries.columns import plain
from ..galleries.parquet_files import SCORES
from ..reward_heads import RewardSet
from ..run_folder import RunFolder
from .saved import digest

if TYPE_CHECKING:
    from .data import Data
    from .recipe import Recipe

log = logging.getLogger("align_gen")
FORMAT = 1
KINDS = ("files", "rewards")
FILES = ("prompts.train", "prompts.eval", "data.pairs", "data.media", "model.adapter")
REFERENCE = "combine.calibrate"
SEPARATOR = " / "  # of a reward's label and the place in its provenance
SUM = "sha256"  # the end of the keys of a reward's provenance that are sums
Sums = dict[str, str]


def inputs_of(recipe: "Recipe", data: "Data", rewards: RewardSet) -> dict[str, Sums]:
    """The sums of a recipe's files by its keys, and of its rewards' code and weights by theirs."""
    files: Sums = {}
    for key in (*FILES, REFERENCE):
        section, name = key.split(".")
        source = getattr(getattr(recipe, section), name)
        found = None if source is None else _sum_of(source, only_scores=key == REFERENCE)
        if found is not None:
            files[key] = found
    # Of pairs, the pictures too, which may lie elsewhere.
    content = getattr(data, "content", None)
    if content is not None:
        files["data.pairs"] = content
    code = {
        f"{label}{SEPARATOR}{path}": value
        for label, head in rewards.heads.items()
        for path, value in _sums_in(plain(head.provenance()))
    }
    return {"files": files, "rewards": code}


def require_same_inputs(folder: RunFolder, recipe: "Recipe", inputs: Mapping[str, Sums]) -> None:
    """Check that files and code are what this run began with.

    What one of the two sides knows nothing of is not compared.

    Raises:
        UserError: names what has changed, and since which step.
    """
    if not folder.inputs.is_file():
        if folder.saved_steps():
            log.warning(
                "%s: has no %s; whether prompts, data and rewards are what it began with "
                "is not known",
                folder,
                folder.inputs.name,
            )
        return
    known = _read(folder.inputs)
    step = max(folder.saved_steps(), default=0)
    for key, value in inputs["files"].items():
        if known["files"].get(key, value) != value:
            section, name = key.split(".")
            source = getattr(getattr(recipe, section), name)
            raise UserError(_changed(folder, f"{key}: {source}", step))
    for key, value in inputs["rewards"].items():
        if known["rewards"].get(key, value) != value:
            label = key.split(SEPARATOR)[0]
            raise UserError(_changed(folder, f"reward {_name_of(recipe, label)}", step))


def write_inputs(folder: RunFolder, inputs: Mapping[str, Sums]) -> None:
    """Write the sums of a run."""
    with whole_file(folder.inputs) as file:
        file.write(json.dumps({"format": FORMAT, **inputs}, indent=1, sort_keys=True).encode())


def _changed(folder: RunFolder, what: str, step: int) -> str:
    return f"{folder}: {what} changed since step {step}; want it as it was, or a new --out"


def _name_of(recipe: "Recipe", label: str) -> str:
    """A reward by the name in its options, as file.py:attribute, else by its label."""
    options = {**recipe.rewards, **recipe.eval_rewards}.get(label)
    return str(options.get("name", label)) if isinstance(options, Mapping) else label


def _read(file: Path) -> dict[str, Sums]:
    """The sums that a run began with.

    Raises:
        UserError: the file holds none.
    """
    try:
        content = json.loads(file.read_bytes())
        return {key: {str(k): str(v) for k, v in content[key].items()} for key in KINDS}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file}: cannot be read ({type(error).__name__}); want it as the run wrote it, "
            "or removed, to go on without"
        ) from error


def _sum_of(source: str, *, only_scores: bool) -> str | None:
    """The sum of a file's content, or of all files in a folder; None of what lies elsewhere."""
    path = Path(source)
    if source in bundled.prompts():
        path = bundled.PROMPTS / f"{source}.jsonl"
    if only_scores and path.is_dir():
        path = path / SCORES
    if path.is_file():
        return digest(path)
    if not path.is_dir():
        return None
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        # Scores of a gallery teach nothing, and may be added at any time.
        hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not hidden and file.name != SCORES:
            total.update(f"{digest(file)}  {name}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def _sums_in(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every sum in a provenance, by its dotted path: of rewards of rewards, too."""
    pairs: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        pairs = iter(value.items())
    elif isinstance(value, list | tuple):
        pairs = iter(enumerate(value))
    for key, item in pairs:
        here = f"{path}.{key}" if path else str(key)
        if isinstance(item, str) and str(key).endswith(SUM):
            yield here, item
        else:
            yield from _sums_in(item, here)
