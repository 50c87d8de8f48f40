"""What a training is set to: one frozen object, shared by `fit`, its loop and its resume file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .._checks import check_count, check_kind, check_number
from ..data.order import check_seed

__all__ = ["TrainSettings"]

# these may differ between a training and its continuation: they change no number
_FREE = ("accumulate", "patience", "save_every")


@dataclass(frozen=True)
class TrainSettings:
    """The numbers of a training; the arguments of `fit` of the same names.

    Args:
        steps: updates in all.
        batch: samples per update, over all processes together.
        lr: largest learning rate of AdamW.
        seed: of everything random.
        warmup: steps of rising rate.
        weight_decay: of AdamW.
        grad_clip: largest norm of the gradient of the loss per coordinate; inf for none.
        ema_decay: decay of the average in the long run.
        dropout: name of a condition -> share of its entries replaced by its null value.
        patience: steps in a row without a finite gradient before giving up.
        save_every: steps between two saves.
        accumulate: backward passes per update, each of an equal part of the batch.

    Raises:
        ValueError, TypeError: for a number outside its range.

    >>> TrainSettings(steps=10, batch=4).grad_clip
    1.0
    """

    steps: int
    batch: int = 128
    lr: float = 2e-3
    seed: int = 0
    warmup: int = 0
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    dropout: Mapping[str, float] = field(default_factory=dict)
    patience: int = 10
    save_every: int = 1000
    accumulate: int = 1

    def __post_init__(self) -> None:
        check_kind("dropout", self.dropout, Mapping, '{"label": 0.1}')
        # Python's own numbers, whatever library they come from: the resume file holds them as JSON
        checked: dict[str, Any] = {
            **{
                name: check_count(name, getattr(self, name))
                for name in ("steps", "batch", "patience", "save_every", "accumulate")
            },
            "seed": check_seed(self.seed),
            "warmup": check_count("warmup", self.warmup, 0),
            "lr": check_number("lr", self.lr, 0.0, open_low=True),
            "weight_decay": check_number("weight_decay", self.weight_decay, 0.0),
            "grad_clip": check_number(
                "grad_clip", self.grad_clip, 0.0, open_low=True, infinite=True
            ),
            "ema_decay": check_number("ema_decay", self.ema_decay, 0.0, 1.0, open_high=True),
            "dropout": {
                name: check_number(f"dropout[{name!r}]", share, 0.0, 1.0)
                for name, share in self.dropout.items()
            },
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def learning_rate(self, step: int) -> float:
        """The rate of step k, counted from 0: see `learning_rate`."""
        return learning_rate(step, self.steps, self.lr, self.warmup)

    def fixed(self) -> dict[str, Any]:
        """The settings that a continuation must share, in JSON's types."""
        every = {k: v for k, v in asdict(self).items() if k not in _FREE}
        return every | {"grad_clip": None if math.isinf(self.grad_clip) else self.grad_clip}


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
