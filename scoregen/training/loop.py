"""The steps of a training: what is drawn, updated, saved and counted in each."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.dataset import Data, stream
from ..models import ScoreModel, ScoreNetwork
from ..objectives import Objective
from .checkpoint import save
from .resume import Run

__all__ = ["TrainStep", "TrainingError", "learning_rate"]

RESUME = "resume.safetensors"


class TrainingError(RuntimeError):
    """The gradient was not finite too many times in a row.

    >>> raise TrainingError("10 steps in a row gave no finite gradient")
    Traceback (most recent call last):
        ...
    scoregen.training.loop.TrainingError: 10 steps in a row gave no finite gradient
    """


class TrainStep(NamedTuple):
    """What one step of training did.

    `loss` is the mean over the batch of the objective's loss per sample, `grad_norm` the norm of
    the gradient before clipping, of the loss per coordinate; `skipped` counts the steps so far
    whose gradient was not finite; `ema` is the average, ready to sample from.

    >>> TrainStep(1, 0.5, 1.0, 1e-3, 0, None).loss
    0.5
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    skipped: int
    ema: Any


def learning_rate(step: int, steps: int, lr: float, warmup: int) -> float:
    """Linear warm-up, then a half cosine to zero.

        lr min(1, (k + 1) / warmup) (1 + cos(pi k / steps)) / 2

    Args:
        step: k, from 0.
        steps: of the whole training.
        lr: the largest rate, reached if the warm-up were instant.
        warmup: steps of the linear rise; 0 for none.

    >>> [round(learning_rate(k, 100, 1.0, 10), 3) for k in (0, 9, 50, 99)]
    [0.1, 0.98, 0.5, 0.0]
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return lr * rise * (1 + math.cos(math.pi * step / steps)) / 2


class Loss(nn.Module):
    """Model and objective as one module, so that a distributed wrapper sees one forward pass."""

    def __init__(self, model: ScoreModel, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, x0: Tensor, generator: torch.Generator, condition: dict[str, Tensor]
    ) -> Tensor:
        return self.objective(self.model, x0, generator=generator, **condition)


def _key(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed that is a pure function of (seed, step, rank)."""
    return int(stream(seed, (1 << 63) + (rank << 40) + step).integers(1 << 63))


@contextmanager
def _private_draws(key: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generator: give it one of its own, and put it back."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(torch.Generator().manual_seed(key).get_state())
        if devices:
            own = torch.Generator(device).manual_seed(key)
            torch.cuda.set_rng_state(own.get_state(), device)
        yield


@contextmanager
def _unbroken() -> Iterator[None]:
    """Let Ctrl-C wait until the update is whole: half an update could not be resumed from."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pending.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pending:
        raise KeyboardInterrupt


def network_classes(model: nn.Module) -> int:
    """The number of classes of the network inside a model; 0 if it takes no labels."""
    nets = [m.net for m in model.modules() if isinstance(m, ScoreNetwork)]
    config = [getattr(net, "config", {}).get("classes", getattr(net, "classes", 0)) for net in nets]
    return int(config[0]) if config else 0


class Loop:
    """The steps of one training."""

    def __init__(
        self,
        run: Run,
        data: Data,
        loss: nn.Module,
        place: torch.device,
        settings: dict[str, Any],
        folder: Path | None,
        save_every: int,
        patience: int,
        accelerator: Any,
    ):
        self.run, self.data, self.place = run, data, place
        self.settings, self.folder, self.save_every = settings, folder, save_every
        self.patience, self.accelerator = patience, accelerator
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.loss, self.optimizer = loss, run.optimizer
        if accelerator is not None:
            self.loss, self.optimizer = accelerator.prepare(loss, run.optimizer)
        self.classes = network_classes(run.model)
        self.coordinates = max(1, math.prod(data.event))
        self.whole = True

    def steps(self, progress: bool) -> Iterator[TrainStep]:
        run, settings = self.run, self.settings
        total, saved, failed = settings["steps"], run.done["step"], 0
        modes = [(m, m.training) for m in run.model.modules()]
        run.model.train()
        bar = tqdm(
            total=total,
            initial=saved,
            desc="training",
            disable=not (progress and self.rank == 0),
        )
        batches = self.data.batches(settings["batch"], settings["seed"], saved)
        try:
            while run.done["step"] < total:
                before = run.done["skipped"]
                step = self._step(*next(batches))
                failed = failed + 1 if step.skipped > before else 0
                if failed >= self.patience:
                    raise TrainingError(
                        f"{failed} steps in a row, up to step {step.step}, gave no finite gradient "
                        "and were skipped; lower lr, or look for extreme values in the data"
                    )
                if step.step % self.save_every == 0:
                    self._save()
                    saved = step.step
                bar.update()
                if step.step % 20 == 0:
                    bar.set_postfix(loss=f"{step.loss:.4g}", refresh=False)
                yield step
            if saved < total:
                self._save()
                saved = total
            self._finish()
        finally:
            bar.close()
            for module, training in modes:
                module.training = training
            if self.whole and saved < run.done["step"]:
                self._save()

    def _step(self, x0: Tensor, label: Tensor | None) -> TrainStep:
        settings, done = self.settings, self.run.done
        share = settings["batch"] // settings["processes"]
        rows = slice(self.rank * share, (self.rank + 1) * share)
        x0 = x0[rows].to(self.place)
        key = _key(settings["seed"], done["step"], self.rank)
        rate = learning_rate(done["step"], settings["steps"], settings["lr"], settings["warmup"])
        for group in self.run.optimizer.param_groups:
            group["lr"] = rate
        generator = torch.Generator(self.place).manual_seed(key)
        condition = self._condition(None if label is None else label[rows], key)
        with _private_draws(key ^ 2, self.place):
            mean = self.loss(x0, generator, condition).mean()
            if self.accelerator is None:
                (mean / self.coordinates).backward()
            else:
                self.accelerator.backward(mean / self.coordinates)
        loss = mean.detach()
        clip = float(settings["grad_clip"])
        parameters = [p for p in self.run.model.parameters() if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, clip))
        if self.accelerator is not None:
            loss = self.accelerator.reduce(loss, "mean")
        with _unbroken():
            self.whole = False
            if math.isfinite(norm):
                self.optimizer.step()
                self.run.ema.update_parameters(self.run.model)
            else:
                done["skipped"] += 1
            self.optimizer.zero_grad()
            done["step"] += 1
            self.whole = True
        return TrainStep(
            done["step"], float(loss), norm, rate, done["skipped"], self.run.ema.module
        )

    def _condition(self, label: Tensor | None, key: int) -> dict[str, Tensor]:
        """The labels of a batch, some replaced by the null class; nothing without classes."""
        if label is None or not self.classes:
            return {}
        # a stream of its own: the times and the noise are the same with and without dropout
        own = torch.Generator().manual_seed(key ^ 1)
        hidden = torch.rand(len(label), generator=own) < self.settings["label_dropout"]
        label = label.to(self.place)
        return {"label": label.masked_fill(hidden.to(self.place), self.classes)}

    def _save(self) -> None:
        if self.folder is not None and self.rank == 0:
            self.run.write(self.folder / RESUME, self.settings)

    def _finish(self) -> None:
        """The checkpoint, of the averaged weights; every process returns when it is there."""
        model = self.run.ema.module
        if self.folder is not None and self.rank == 0 and isinstance(model, ScoreNetwork):
            kept = {k: v for k, v in self.settings.items() if k != "model"}
            save(
                model,
                self.folder / "model",
                steps=self.run.done["step"],
                weights="ema",
                data_range=self.data.range,
                bins=self.data.bins,
                event=self.data.event,
                extra={"training": kept, "skipped": self.run.done["skipped"]},
                overwrite=True,
            )
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
