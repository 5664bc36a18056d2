"""The record of a run: metrics, measurements, checkpoints, and the best export on the way."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..distributed import from_first
from ..errors import UserError, writing
from ..galleries.parquet_files import SCORES
from ..galleries.table import ScoresTable
from ..progress import ProgressCallback
from ..run_folder import RunFolder
from . import checkpoint
from .claim import write_recipe
from .divergence import blamed_rightly, require_finite
from .early_stopping import EarlyStopping
from .evaluation import BEFORE, evaluate, measurement, show_pictures
from .export import export
from .journal import Journal, read_lines
from .pieces import files_below, is_whole, require_pieces
from .signals import Stopped, StopSignals

if TYPE_CHECKING:
    from .setup import Session

log = logging.getLogger("align_gen")


class Recorder:
    """Restores a run's last checkpoint, and writes from there on.

    Attributes:
        before: what was measured before training; set by ``measure_before``.
        journal: metrics.jsonl.
    """

    before: ScoresTable
    stopping: EarlyStopping

    def __init__(
        self,
        session: "Session",
        folder: RunFolder,
        progress: ProgressCallback,
        signals: StopSignals,
    ):
        self.session = session
        self.folder = folder
        self.progress = progress
        self.signals = signals
        self.state = session.state
        self.writes = session.accelerator.is_main_process
        steps = session.recipe.run.steps
        self.restored = checkpoint.restore(self.state, folder.path, steps)
        kept = self.restored.pop("metrics", None)
        taken = max((line["step"] for line in read_lines(folder.metrics)), default=0)
        if taken and not self.restored:
            log.warning("%s: has no checkpoint; takes its %d steps again", folder, taken)
        self.journal = Journal(folder.metrics, self.state.step, writes=self.writes, kept=kept)
        self.saved_step = self.state.step if self.restored else None
        self._require_pieces()

    @property
    def should_stop(self) -> bool:
        """Whether the held-out rewards have fallen for too long."""
        return self.stopping.stop

    def _require_pieces(self) -> None:
        """Look for what the run has written and cannot make again; all processes raise alike."""
        fault = None
        if self.writes:
            try:
                require_pieces(self.folder, self._steps_before(), self.restored)
            except UserError as error:
                fault = str(error)
        if message := from_first(fault, self.session.accelerator):
            raise UserError(message)

    def _steps_before(self) -> list[int]:
        """The steps on the way until here that were measured."""
        return [step for step in self.journal.measured_steps() if 0 < step < self.state.step]

    def measure_before(self) -> None:
        """Draw and score what the untouched model makes."""
        self.before = self._evaluate(BEFORE, self.folder.before)
        # Pictures on the way may have lost their scores alone; those can be made again.
        ways = [self.folder.samples(f"step-{step:06d}") for step in self._steps_before()]
        unscored = [each for each in ways if is_whole(each) and not (each / SCORES).is_file()]
        for gallery in from_first(unscored, self.session.accelerator):
            self._evaluate(gallery.name, gallery)
        self.stopping = EarlyStopping.of(self.session.recipe, self.before, self.restored)
        self._note_measurement(0, self.before, {})

    def measure(self, name: str) -> ScoresTable:
        """Draw and score what the model makes now; the best so far is exported.

        Raises:
            Diverged: the model is broken: there is nothing to draw.
        """
        require_finite(self.state, self.folder.path)
        table = self._evaluate(name, self.folder.samples(name))
        step = self.state.step
        self._note_measurement(step, table, self.stopping.update(step, table))
        if self.session.recipe.evaluate.every and self.stopping.best_step == step:
            export(self.state, self.folder.best)
        return table

    def measure_if_due(self) -> None:
        """Measure every ``evaluate.every`` steps; the start and the end are measured anyway."""
        step = self.state.step
        every = self.session.recipe.evaluate.every
        if every and 0 < step < self.session.recipe.run.steps and step % every == 0:
            self.measure(f"step-{step:06d}")

    def add(self, metrics: dict[str, Any]) -> None:
        """Write down the metrics of a step."""
        self._note(metrics)
        self.progress("train", self.state.step, self.session.recipe.run.steps, metrics)

    def save_if_due(self) -> None:
        """Write a checkpoint every ``run.save_every`` steps, and at the end."""
        run = self.session.recipe.run
        if self.state.step % run.save_every == 0 or self.state.step == run.steps:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, unless this step has one."""
        if self.saved_step == self.state.step:
            return
        more = self.stopping.progress() | {"best_files": files_below(self.folder.best)}
        checkpoint.save(self.state, self.folder.path, more, self.journal.lines)
        self.saved_step = self.state.step
        self._keep_claim()

    def _keep_claim(self) -> None:
        """Write the recipe again where it was deleted: without it, the run would be nobody's."""
        if self.writes and not self.folder.exists():
            with writing(self.folder.recipe):
                write_recipe(self.folder, self.session.recipe)

    def pause(self) -> None:
        """Between two steps: stop where a signal came, and measure where it is time to."""
        self.stop_if_asked()
        self.measure_if_due()

    def stop_if_asked(self) -> None:
        """Save and raise Stopped where a signal came to any of the processes."""
        signum = self.signals.signum
        if self.state.anywhere(signum is not None):
            self.save()
            steps = self.session.recipe.run.steps
            raise Stopped(
                f"stopped after step {self.state.step} of {steps}, which is saved", signum
            )

    def finish(self) -> None:
        """Say where the best measurement was, if not at the end, and close the trackers."""
        recipe = self.session.recipe
        best = self.stopping.best_step
        if recipe.evaluate.every and recipe.eval_rewards and best != self.state.step:
            kept = f", kept in {self.folder.best}" if self.folder.best.is_dir() else ""
            where = f"at step {best}{kept}" if best else "before training"
            log.warning(
                "the held-out rewards were best %s; %s has the end", where, self.folder.export
            )
        self._keep_claim()
        self.session.accelerator.end_training()

    def _evaluate(self, phase: str, folder: Any) -> ScoresTable:
        with blamed_rightly(self.state, self.folder.path, self.state.step):
            return evaluate(self.session, folder, phase, self.progress, self.signals)

    def _note(self, numbers: dict[str, Any]) -> None:
        self.journal.add(numbers)
        shown = {key: value for key, value in numbers.items() if key != "step"}
        self.session.accelerator.log(shown, step=self.state.step)

    def _note_measurement(self, step: int, table: ScoresTable, more: Mapping[str, float]) -> None:
        """Write down a measurement once, also where a resumed run makes it again."""
        if self.writes and not self.journal.measured(step):
            self._note({"step": step, **measurement(table, self.session.all_rewards), **more})
            show_pictures(self.state, table)
