"""Consistency: jumps to the data from two levels of one path agree."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._checks import check_number
from ..models import ScoreModel, check_model
from ..objectives.denoising import Objective
from .angles import midpoint, noised
from .jumps import mapped
from .objective import Draw, JumpObjective, distance

__all__ = ["Consistency", "ConsistencyDistillation"]


@dataclass(frozen=True)
class Consistency(JumpObjective):
    """The jump to 0 from two levels of one sample's line agrees: consistency training.

        huber(f(w_t, theta_t) - sg f(w_r, theta_r)) / (theta_t - theta_r),   f = W(., ., 0)

    with the same (x0, eps) and theta_r = (1 - gap) theta_t (Song et al. 2023, 2303.01469; Song and
    Dhariwal 2023, 2310.14189; Geng et al. 2024, 2406.14548, shrink the gap while training). At a
    finite gap the expected gradient at the exact map is not zero: it is of order gap squared with a
    squared error, and with c small against gap times the spread of v it does not shrink at all. A
    map trained by it alone is a `ConsistencyModel`.

    Args:
        pairs: the law of the pairs; only theta_t is used.
        diagonal: added; None by default.
        gap: share of theta_t between the two levels.
        c: constant of the pseudo-Huber distance; inf for the squared error.

    >>> Consistency(gap=0.1).diagonal is None
    True
    """

    diagonal: Objective | None = None
    gap: float = 0.1
    c: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("gap", self.gap, 0.0, 1.0, open_low=True)
        check_number("c", self.c, 0.0, open_low=True, infinite=True)

    def at(self, model: ScoreModel, draw: Draw) -> Tensor:
        first, before = draw.first, (1 - self.gap) * draw.first
        zero = torch.zeros_like(first)
        with torch.no_grad():
            target = self.nearer(draw, before)
            if self.gap < 1:  # at gap 1 the nearer level is the data
                target = mapped(model, target, before, zero, **draw.condition)
        error = mapped(model, draw.w, first, zero, **draw.condition) - target
        return distance(error, self.c) / (first - before).to(error)

    def nearer(self, draw: Draw, before: Tensor) -> Tensor:
        """The state at theta_r that belongs to w_t: here on the sample's own line."""
        return noised(draw.x0, draw.eps, before)


@dataclass(frozen=True)
class ConsistencyDistillation(Consistency):
    """Consistency with w_r one midpoint step of a teacher's flow from w_t (2303.01469, Alg. 2).

    Zero pointwise at the exact map of the teacher, up to the midpoint rule's error over a gap.

    Args:
        pairs: the law of the pairs; only theta_t is used.
        diagonal: added; None by default.
        gap: share of theta_t between the two levels.
        c: constant of the pseudo-Huber distance; inf for the squared error.
        teacher: the score model whose flow is distilled.

    >>> from scoregen import Gaussian, VPSDE
    >>> ConsistencyDistillation(teacher=Gaussian(VPSDE(), torch.zeros(2), 0.5)).gap
    0.1
    """

    teacher: ScoreModel = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model(self.teacher, "teacher")

    def nearer(self, draw: Draw, before: Tensor) -> Tensor:
        return midpoint(self.teacher, draw.w, draw.first, before, **draw.condition)
