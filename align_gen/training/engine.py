"""The loop around a method: resume, measure, step, save, export. The loop knows no algorithm."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..galleries.table import ScoresTable
from ..methods.state import TrainState
from ..pipelines.attention import attention_of, describe
from ..precision import exact_float32
from ..progress import ProgressBar, ProgressCallback, silent
from ..run_folder import RunFolder
from .claim import claim, held, require_same_recipe
from .divergence import blamed_rightly, require_finite_step
from .export import export, model_card
from .inputs import Sums, inputs_of
from .recipe import Recipe
from .recorder import Recorder
from .setup import Session, mismatches, open_session, start_accelerator
from .signals import StopSignals

log = logging.getLogger("align_gen")


@dataclass
class Run:
    """A finished run: its folder, and what was measured before and after.

    Attributes:
        metrics: the numbers of every step and measurement, in order.
        denoiser_calls: rows through the trained network, over all of the run.
        steps_taken: training steps of this call; 0 where the run was finished already.
    """

    folder: Path
    recipe: Recipe
    before: ScoresTable
    after: ScoresTable
    metrics: list[dict[str, Any]] = field(default_factory=list)
    denoiser_calls: int = 0
    steps_taken: int = 0

    def __repr__(self) -> str:
        changes = ", ".join(
            f"{head} {self.before.mean(head):.4f} -> {self.after.mean(head):.4f}"
            for head in self.after.heads
            if head in self.before.heads
        )
        return f"Run({str(self.folder)!r}, {self.recipe.run.steps} steps; {changes})"


@exact_float32()
def finetune(
    recipe: Recipe | str,
    out: str | Path | None = None,
    *,
    progress: ProgressCallback | None = None,
    model: Any = None,
) -> Run:
    """Fine-tune a generator towards rewards, measuring before, during and after.

    Writes the folder ``out`` (or ``recipe.run.out``). The same call again resumes where it
    stopped, and returns at once when the run is finished. Started by ``accelerate launch``, the
    processes share the prompts of a step and the pictures of a gallery; what they compute together
    is what one would alone.

    Args:
        progress: called with (phase, done, total, numbers); a bar on stderr without it, nothing
            with ``align_gen.progress.silent``.
        model: a Model or pipeline object to train instead of loading ``recipe.model.path``.

    Raises:
        UserError: a mistake in the recipe, its files or ``out``; nothing is written then.
        Stopped: SIGTERM or Ctrl-C came, and everything done until then is saved.
        Diverged: a loss, a gradient or a weight is not finite; the last finite checkpoint stands.
        RunFailure: a checkpoint could not be written; those before it stand.
    """
    if progress is None:
        with ProgressBar() as bar:
            return finetune(recipe, out, progress=bar, model=model)

    recipe = Recipe.load(recipe) if isinstance(recipe, str) else recipe
    folder = RunFolder(Path(out or recipe.run.out or "runs/latest"))
    accelerator = start_accelerator(recipe, folder.path)
    # Held before anything of it is read: of two that start at once, one is refused.
    with held(folder, accelerator), ExitStack() as stack:
        # Before anything is loaded: the folder of another recipe is refused at once.
        require_same_recipe(folder, recipe)
        session = stack.enter_context(open_session(recipe, accelerator, model))
        # Nothing was written until here: a mistake leaves no folder behind.
        inputs: dict[str, Sums] = {}
        if accelerator.is_main_process:
            inputs = inputs_of(recipe, session.data, session.all_rewards)
        claim(folder, recipe, inputs, accelerator)
        # Only now: a mistake is one line.
        log.info("run directory: %s", folder.path.absolute())
        log.info("attention: %s", describe(attention_of(session.model)))
        for mismatch in mismatches(recipe, session.model):
            log.warning("%s", mismatch)
        if recipe.run.tracker != "none":
            accelerator.init_trackers("align_gen", config={"recipe": recipe.to_yaml()})
        return learn(session, folder, progress if accelerator.is_main_process else silent)


def learn(session: Session, folder: RunFolder, progress: ProgressCallback) -> Run:
    """Go on from the last checkpoint to the end: measure, step, save, measure, export."""
    state = session.state
    steps = session.recipe.run.steps
    with StopSignals() as signals:
        record = Recorder(session, folder, progress, signals)
        # Above 0 in a run that is resumed; the recorder has restored the checkpoint.
        first = state.step
        record.measure_before()
        # Before the end is looked for: a run that was resumed at its last step measures too.
        record.pause()
        while state.step < steps and not record.should_stop:
            with blamed_rightly(state, folder.path, state.step + 1):
                metrics = take_step(session)
            require_finite_step(metrics, state, folder.path)
            record.add(metrics)
            record.save_if_due()
            record.pause()
        record.save()
        after = record.measure("final")

    # Outside of the signals' block: Ctrl-C may interrupt what can be made again at no cost.
    card = model_card(session.recipe, record.before, after)
    export(state, folder.export, card)
    record.finish()
    return Run(
        folder.path,
        session.recipe,
        record.before,
        after,
        record.journal.merged(),
        state.denoiser_calls,
        state.step - first,
    )


def take_step(session: Session) -> dict[str, Any]:
    """The next step of the run, its calls counted and its seconds taken."""
    started = time.monotonic()
    with counted_calls(session.state):
        metrics = session.step()
    seconds = round(time.monotonic() - started, 3)
    return {"step": session.state.step, **metrics, "seconds": seconds}


@contextmanager
def counted_calls(state: TrainState) -> Iterator[None]:
    """Inside, rows that pass through the trained networks are added to ``state.denoiser_calls``."""

    def count(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        state.denoiser_calls += len(inputs[0] if inputs else named["hidden_states"])

    networks = state.model.trainable.values()
    hooks = [each.register_forward_pre_hook(count, with_kwargs=True) for each in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
