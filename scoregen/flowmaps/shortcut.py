"""The semigroup condition: one jump equals two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import check_number, shown
from ..models import ScoreModel
from ..training.ema import EMA
from .jumps import mapped
from .objective import Draw, JumpObjective, distance

__all__ = ["Shortcut"]


@dataclass(frozen=True)
class Shortcut(JumpObjective):
    """One jump equals two of half the length.

        |W(w, theta_t, theta_s) - sg W(W(w, theta_t, theta_m), theta_m, theta_s)|^2 + diagonal

    with theta_m in the middle (Frans et al. 2024, 2410.12557). Satisfied by every semigroup, right
    or wrong: only the diagonal loss decides which, and it is never left out by default. The source
    makes the two halves by an average of the weights: errors of the map are fed back otherwise, and
    long training diverged without it. `GrowingPairs` are the other half of that cure.

    Args:
        pairs: the law of the pairs.
        diagonal: the denoising loss that is added; None for none.
        average: `EMA(model)`, which makes the two halves and is updated at every call; the map
            itself unless given.
        c: constant of the pseudo-Huber distance; inf for the squared error.

    >>> Shortcut().diagonal is None
    False
    """

    average: EMA | None = None
    c: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        average: Any = self.average
        parts = ("update_parameters", "module")
        # any average with the two parts will do, torch's AveragedModel too
        if average is not None and not all(hasattr(average, part) for part in parts):
            raise TypeError(
                "average must be EMA(model), or another average with update_parameters(model) and "
                f"module, got {shown(average)}"
            )
        check_number("c", self.c, 0.0, open_low=True, infinite=True)

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        if self.average is not None:
            self.average.update_parameters(model)
        return super().__call__(model, x0, generator=generator, **condition)

    def at(self, model: ScoreModel, draw: Draw) -> Tensor:
        w, first, last = draw.w, draw.first, draw.last
        middle = (first + last) / 2
        with torch.no_grad():
            halves: Any = model if self.average is None else self.average.module
            half = mapped(halves, w, first, middle, **draw.condition)
            target = mapped(halves, half, middle, last, **draw.condition)
        return distance(mapped(model, w, first, last, **draw.condition) - target, self.c)
