"""The steps of a training: what is made, looked at, saved and counted in each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..data import Batch, Source
from ..models import ScoreModel
from .batches import ConditionDropout, warn_of_scale
from .checkpoint import save
from .engine import Engine, key_of
from .log import Log
from .posthoc import PostHoc, PowerEMA, collect, store
from .resume import Run
from .settings import TrainSettings
from .signals import Signals
from .step import Ledger, TrainingError, TrainStep
from .watch import Look, row_of

__all__ = ["TrainStep", "TrainingError"]

RESUME = "resume.safetensors"
# steps between two fetches from a device, and between two lines of the log
FETCH = 20


@dataclass(frozen=True, eq=False)
class Kept:
    """What a training leaves on disk beside its checkpoint.

    Args:
        folder: `out`.
        identity: what a continuation must share.
        posthoc: which averages are stored as snapshots, if any.
        look: at held-out data and samples, if any.
    """

    folder: Path
    identity: dict[str, Any]
    posthoc: PostHoc | None = None
    look: Look | None = None


class Loop:
    """The steps of one training.

    Args:
        run: its state.
        data: the samples.
        settings: its numbers.
        dropout: of the conditions.
        engine: what computes a step.
        kept: what is written, or None.
    """

    def __init__(
        self,
        run: Run,
        data: Source,
        settings: TrainSettings,
        dropout: ConditionDropout,
        engine: Engine,
        kept: Kept | None,
    ):
        self.run, self.data, self.settings = run, data, settings
        self.dropout, self.engine, self.kept = dropout, engine, kept
        self.writes = engine.rank == 0 and kept is not None
        self.first = self.saved = run.done["step"]
        self.whole = True
        self.ledger = Ledger(run.done, settings.patience)
        if kept is not None and self.writes and not self.saved:
            _clear(kept.folder)
        accelerator = engine.accelerator
        self.log = Log(
            kept.folder if kept is not None and self.writes else None,
            self.saved,
            None if accelerator is None else accelerator.log,
        )

    def steps(self, progress: bool) -> Iterator[TrainStep]:
        run, settings, engine = self.run, self.settings, self.engine
        modes = [(m, m.training) for m in run.model.modules()]
        run.model.train()
        bar = tqdm(
            total=settings.steps,
            initial=self.saved,
            desc="training",
            # None: only where the bar can be redrawn, not into a pipe or a file
            disable=None if progress and engine.rank == 0 else True,
        )
        batches = self.data.serve(
            settings.batch, settings.seed, self.saved, engine.rows, engine.place
        )
        if self.saved == 0 and self.data.mean_square() is None:
            batches = self._weighed(batches)
        # what the host has at once is fetched at once
        fetch = 1 if engine.place.type == "cpu" else FETCH
        with Signals(self._save_rest) as signals:
            try:
                while run.done["step"] < settings.steps:
                    step = self._step(next(batches), signals)
                    if step.step % fetch == 0 or step.step == settings.steps:
                        self._settle()
                        if self.ledger.given_up:
                            raise TrainingError(self.ledger.given_up)
                    with signals.unbroken():
                        self._keep(step.step)
                    bar.update()
                    if step.step % FETCH == 0 and not bar.disable:
                        bar.set_postfix(loss=f"{step.loss:.4g}", refresh=False)
                    yield step
                with signals.unbroken():
                    self._finish()
            finally:
                bar.close()
                for module, training in modes:
                    module.training = training
                with signals.unbroken():
                    self._save_rest()

    def _weighed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, after a look at the scale of the first one."""
        first = next(batches)
        warn_of_scale(self.run.model, float(first.x.float().square().mean()))
        yield first
        yield from batches

    def _step(self, batch: Batch, signals: Signals) -> TrainStep:
        settings, done, engine = self.settings, self.run.done, self.engine
        condition = self.dropout(
            batch.condition,
            key=key_of(settings.seed, done["step"], 0),
            batch=settings.batch,
            rows=engine.rows,
        )
        measured = engine.gradient(Batch(batch.x, condition), done["step"])
        rate = settings.learning_rate(done["step"])
        with signals.unbroken():
            self.whole = False
            engine.update(measured, rate)
            done["step"] += 1
            step = TrainStep(done["step"], rate, measured, self._settle, self._average)
            self.ledger.add(step)
            self.whole = True
        return step

    def _settle(self) -> None:
        """Fetch what the last steps measured."""
        self.log.steps(self.ledger.settle())

    def _average(self, step: int) -> Any:
        if self.run.done["step"] != step:
            raise ValueError(
                f"the average after step {step} is gone, since the training is at step "
                f"{self.run.done['step']}: read step.ema inside the loop to keep it"
            )
        return self.run.ema.snapshot()

    def _keep(self, step: int) -> None:
        """Whatever is written after this step."""
        steps, kept = self.settings.steps, self.kept
        if step % FETCH == 0:
            self._settle()
            self.log.flush()
        if kept is not None and kept.posthoc is not None and kept.posthoc.due(step, steps):
            self._store(kept.folder, step, kept.posthoc)
        if kept is not None and kept.look is not None and kept.look.due(step, steps):
            self._look(kept.look, step)
        if step % self.settings.save_every == 0 or step == steps:
            self._save()

    def _store(self, folder: Path, step: int, posthoc: PostHoc) -> None:
        averages = [e for e in self.run.posthoc if isinstance(e, PowerEMA)]
        if self.writes or self.engine.divided:
            tensors = collect(averages)
            if self.writes:
                store(folder, step, posthoc.sigma_rel, tensors)

    def _look(self, look: Look, step: int) -> None:
        average = self._checked()
        if not self.writes or average is None:
            return
        self._settle()
        self.log.flush()
        found = look.loss(average)
        if found is not None:
            self.log.row(row_of(step, found), ("validation",))
            if found.loss < look.best():
                self._checkpoint(average, "best", validation=found.loss)
        look.draw(average, step)
        look.picture()

    def _save_rest(self) -> None:
        """Save what was not saved yet, unless an update was broken off half way.

        Weights that are divided among processes are put together by all of them at once, and
        signals come to each at another step: such a training saves every `save_every` steps alone.
        """
        if self.whole and self.saved < self.run.done["step"] and not self.engine.divided:
            self._save()

    def _save(self) -> None:
        """The checkpoint of the average, then the resume file; each is replaced at once."""
        self._settle()
        average = self._checked()
        if self.kept is not None and average is not None:
            tensors = self.run.collect(self.engine.optimizer)
            if self.writes:
                self.log.flush()
                self._checkpoint(average, "model")
                self.run.write(self.kept.folder / RESUME, self.kept.identity, tensors)
        self.saved = self.run.done["step"]

    def _finish(self) -> None:
        """Make sure of the checkpoint; every process returns when it is there."""
        # the same question on every process, which a look at the first one's files is not
        if self.kept is not None and self.first == self.settings.steps:
            average = self._checked()
            there = (self.kept.folder / "model").exists()
            if self.writes and average is not None and not there:
                self._checkpoint(average, "model")
        if self.engine.accelerator is not None:
            self.engine.accelerator.wait_for_everyone()

    def _checked(self) -> ScoreModel | None:
        """The average, whole, on the processes that have a use for it."""
        if not self.writes and not self.engine.divided:
            return None
        ema = self.run.ema
        average = ema.snapshot() if self.engine.divided else ema.module
        if not isinstance(average, ScoreModel):
            raise TypeError(f"the average must be a score model, got {type(average).__name__}")
        return average

    def _checkpoint(self, average: ScoreModel, name: str, **extra: float) -> None:
        if self.kept is None:
            return
        training = {**self.settings.fixed(), "data": self.data.name, "processes": self.engine.world}
        save(
            average,
            self.kept.folder / name,
            steps=self.run.done["step"],
            weights="ema",
            data_range=self.data.range,
            bins=self.data.bins,
            event=self.data.event,
            units=self.data.units,
            extra={"training": training, "skipped": self.run.done["skipped"], **extra},
            overwrite=True,
        )


def _clear(folder: Path) -> None:
    """Remove what an earlier training left, which the new one would mix with its own."""
    if (folder / "best" / "card.json").is_file():
        shutil.rmtree(folder / "best")
    for path in (*folder.glob("posthoc/*.safetensors"), *folder.glob("samples/*.png")):
        path.unlink()
