"""The steps of a training: what is drawn, updated, saved and counted in each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data import Batch, Source
from ..data.order import stream
from ..models import ScoreModel
from ..objectives import Objective
from .batches import ConditionDropout, warn_of_scale
from .checkpoint import save
from .resume import Run
from .settings import TrainSettings
from .signals import Signals

__all__ = ["TrainStep", "TrainingError"]

RESUME = "resume.safetensors"


class TrainingError(RuntimeError):
    """The gradient was not finite too many times in a row.

    >>> raise TrainingError("10 steps in a row gave no finite gradient")
    Traceback (most recent call last):
        ...
    scoregen.training.loop.TrainingError: 10 steps in a row gave no finite gradient
    """


@dataclass(frozen=True)
class TrainStep:
    """What one step of training did.

    Attributes:
        step: updates made or skipped so far.
        loss: mean over the batch of the objective's loss per sample.
        grad_norm: norm of the gradient of the loss per coordinate, before clipping.
        lr: the learning rate of the step.
        skipped: steps so far whose gradient was not finite.
        ema: the average after this step, a model of its own, ready to sample from and to keep.
            It is copied when first read, which must be before the next step.

    >>> TrainStep(1, 0.5, 1.0, 1e-3, 0).loss
    0.5
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    skipped: int
    average: Callable[[int], Any] | None = None

    @cached_property
    def ema(self) -> Any:
        if self.average is None:
            raise ValueError("this step was not made by fit, so there is no average")
        return self.average(self.step)


class Loss(nn.Module):
    """Model and objective as one module, so that a distributed wrapper sees one forward pass."""

    def __init__(self, model: ScoreModel, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x0: Tensor, generator: torch.Generator, condition: dict[str, Any]) -> Tensor:
        return self.objective(self.model, x0, generator=generator, **condition)


def _key(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed that is a pure function of (seed, step, rank)."""
    return int(stream(seed, (1 << 63) + (rank << 40) + step).integers(1 << 63))


@contextmanager
def private_draws(key: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generator: give it one of its own, and put it back."""
    places = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        places.append(torch.cuda.default_generators[index])
    before = [generator.get_state() for generator in places]
    for generator in places:
        generator.manual_seed(key)
    try:
        yield
    finally:
        for generator, state in zip(places, before, strict=True):
            generator.set_state(state)


class Loop:
    """The steps of one training."""

    def __init__(
        self,
        run: Run,
        data: Source,
        place: torch.device,
        settings: TrainSettings,
        dropout: ConditionDropout,
        folder: Path | None,
        identity: dict[str, Any],
        accelerator: Any,
    ):
        self.run, self.data, self.place, self.settings = run, data, place, settings
        self.dropout, self.folder, self.identity = dropout, folder, identity
        self.accelerator = accelerator
        self.rank = 0 if accelerator is None else accelerator.process_index
        share = settings.batch // (1 if accelerator is None else accelerator.num_processes)
        self.rows = slice(self.rank * share, (self.rank + 1) * share)
        self.loss: nn.Module = Loss(run.model, run.objective)
        self.optimizer = run.optimizer
        if accelerator is not None:
            self.loss, self.optimizer = accelerator.prepare(self.loss, run.optimizer)
        self.coordinates = max(1, math.prod(data.event))
        self.parameters = list(run.model.parameters())
        self.saved = run.done["step"]
        self.whole = True

    def steps(self, progress: bool) -> Iterator[TrainStep]:
        run, settings = self.run, self.settings
        modes = [(m, m.training) for m in run.model.modules()]
        run.model.train()
        bar = tqdm(
            total=settings.steps,
            initial=self.saved,
            desc="training",
            # None: only where the bar can be redrawn, not into a pipe or a file
            disable=None if progress and self.rank == 0 else True,
        )
        batches = self.data.serve(settings.batch, settings.seed, self.saved, self.rows, self.place)
        if self.saved == 0 and self.data.mean_square() is None:
            batches = self._weighed(batches)
        with Signals(self._save_rest) as signals:
            try:
                while run.done["step"] < settings.steps:
                    step = self._step(next(batches), signals)
                    if run.done["failed"] >= settings.patience:
                        raise TrainingError(
                            f"{run.done['failed']} steps in a row, up to step {step.step}, gave no "
                            "finite gradient and were skipped; lower lr, or look for extreme "
                            "values in the data"
                        )
                    if step.step % settings.save_every == 0 or step.step == settings.steps:
                        with signals.unbroken():
                            self._save()
                    bar.update()
                    if step.step % 20 == 0:
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
        settings, done = self.settings, self.run.done
        key = _key(settings.seed, done["step"], self.rank)
        rate = settings.learning_rate(done["step"])
        for group in self.run.optimizer.param_groups:
            group["lr"] = rate
        generator = torch.Generator(self.place).manual_seed(key)
        condition = self.dropout(
            batch.condition,
            key=_key(settings.seed, done["step"], 0),
            batch=settings.batch,
            rows=self.rows,
        )
        with private_draws(key ^ 2, self.place):
            mean = self.loss(batch.x, generator, condition).mean()
            if self.accelerator is None:
                (mean / self.coordinates).backward()
            else:
                self.accelerator.backward(mean / self.coordinates)
        loss = mean.detach()
        parameters = [p for p in self.parameters if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, settings.grad_clip))
        if self.accelerator is not None:
            loss = self.accelerator.reduce(loss, "mean")
        with signals.unbroken():
            self.whole = False
            if math.isfinite(norm):
                self.optimizer.step()
                self.run.ema.update_parameters(self.run.model)
                done["failed"] = 0
            else:
                done["skipped"] += 1
                done["failed"] += 1
            self.optimizer.zero_grad()
            done["step"] += 1
            self.whole = True
        return TrainStep(done["step"], float(loss), norm, rate, done["skipped"], self._average)

    def _average(self, step: int) -> Any:
        if self.run.done["step"] != step:
            raise ValueError(
                f"the average after step {step} is gone, since the training is at step "
                f"{self.run.done['step']}: read step.ema inside the loop to keep it"
            )
        return self.run.ema.snapshot()

    def _save_rest(self) -> None:
        """Save what was not saved yet, unless an update was broken off half way."""
        if self.whole and self.saved < self.run.done["step"]:
            self._save()

    def _save(self) -> None:
        """The checkpoint of the average, then the resume file; each is replaced at once."""
        if self.folder is not None and self.rank == 0:
            self._checkpoint(self.folder)
            self.run.write(self.folder / RESUME, self.identity)
        self.saved = self.run.done["step"]

    def _finish(self) -> None:
        """Make sure of the checkpoint; every process returns when it is there."""
        if self.folder is not None and self.rank == 0 and not (self.folder / "model").exists():
            self._checkpoint(self.folder)
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def _checkpoint(self, folder: Path) -> None:
        average = self.run.ema.module
        if not isinstance(average, ScoreModel):
            raise TypeError(f"the average must be a score model, got {type(average).__name__}")
        processes = 1 if self.accelerator is None else self.accelerator.num_processes
        training = {**self.settings.fixed(), "data": self.data.name, "processes": processes}
        save(
            average,
            folder / "model",
            steps=self.run.done["step"],
            weights="ema",
            data_range=self.data.range,
            bins=self.data.bins,
            event=self.data.event,
            units=self.data.units,
            extra={"training": training, "skipped": self.run.done["skipped"]},
            overwrite=True,
        )
