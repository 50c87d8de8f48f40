"""What one step of a training did, fetched from the device when it is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

__all__ = ["TrainStep", "TrainingError"]


class TrainingError(RuntimeError):
    """The gradient was not finite too many times in a row.

    >>> raise TrainingError("10 steps in a row gave no finite gradient")
    Traceback (most recent call last):
        ...
    scoregen.training.step.TrainingError: 10 steps in a row gave no finite gradient
    """


class TrainStep:
    """What one step of training did.

    Loss and norm stay on the device until they are read: reading them in every step makes the host
    wait for a GPU in every step.

    Args:
        step: updates made or skipped so far.
        lr: the learning rate of the step.
        measured: loss and norm of the gradient, shape (2,), on the device.
        settle: finds out what was skipped up to now, this step included.
        average: the average after a step.

    Attributes:
        step: updates made or skipped so far.
        lr: the learning rate of the step.

    >>> TrainStep(1, 1e-3, torch.tensor([0.5, 2.0])).loss
    0.5
    """

    def __init__(
        self,
        step: int,
        lr: float,
        measured: Tensor,
        settle: Callable[[], None] | None = None,
        average: Callable[[int], Any] | None = None,
    ):
        self.step, self.lr, self.measured = step, lr, measured
        self._settle, self._average = settle, average
        self._skipped: int | None = None

    def __repr__(self) -> str:
        return f"TrainStep({self.step}, loss={self.loss:.4g}, lr={self.lr:.4g})"

    @cached_property
    def _values(self) -> list[float]:
        values: list[float] = self.measured.tolist()
        return values

    @property
    def loss(self) -> float:
        """Mean over the batch of the objective's loss per sample."""
        return self._values[0]

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient of the loss per coordinate, before clipping."""
        return self._values[1]

    @property
    def skipped(self) -> int:
        """Steps so far whose gradient was not finite."""
        if self._skipped is None and self._settle is not None:
            self._settle()
        if self._skipped is None:
            raise ValueError("this step was not made by fit, so nothing counts what was skipped")
        return self._skipped

    @cached_property
    def ema(self) -> Any:
        """The average after this step, a model of its own, ready to sample from and to keep.

        It is copied when first read, which must be before the next step.
        """
        if self._average is None:
            raise ValueError("this step was not made by fit, so there is no average")
        return self._average(self.step)


class Ledger:
    """Steps whose numbers are still on the device, and the counters that follow from them.

    Args:
        done: the counters `skipped` and `failed` of a training, kept up to date here.
        patience: steps in a row without a finite gradient before giving up.

    >>> done = {"skipped": 0, "failed": 0}
    >>> ledger = Ledger(done, patience=3)
    >>> ledger.add(TrainStep(1, 0.1, torch.tensor([0.5, float("nan")])))
    >>> [step.skipped for step in ledger.settle()], done
    ([1], {'skipped': 1, 'failed': 1})
    """

    def __init__(self, done: dict[str, int], patience: int):
        self.done, self.patience = done, patience
        self.open: list[TrainStep] = []
        self.given_up = ""  # why, once it must be

    def add(self, step: TrainStep) -> None:
        """A step that was just made."""
        self.open.append(step)

    def settle(self) -> list[TrainStep]:
        """Fetch what is still on the device, in one transfer, and count.

        Returns:
            The steps since the last call, whose numbers are known now.
        """
        steps, self.open = self.open, []
        if not steps:
            return []
        fetched = torch.stack([step.measured for step in steps]).tolist()
        for step, values in zip(steps, fetched, strict=True):
            step.__dict__["_values"] = values
            self._count(step)
        return steps

    def _count(self, step: TrainStep) -> None:
        good = math.isfinite(step.grad_norm)
        self.done["skipped"] += not good
        self.done["failed"] = 0 if good else self.done["failed"] + 1
        step._skipped = self.done["skipped"]
        if self.done["failed"] >= self.patience and not self.given_up:
            self.given_up = (
                f"{self.done['failed']} steps in a row, up to step {step.step}, gave no finite "
                "gradient and were skipped; lower lr, or look for extreme values in the data"
            )
