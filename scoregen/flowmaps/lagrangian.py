"""The Lagrangian condition: the end of a jump moves as the flow does there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_number
from ..models import ScoreModel, check_model
from .angles import flow_rate, lowest, midpoint
from .jumps import derivative, mapped
from .objective import Draw, JumpObjective, distance

__all__ = ["Lagrangian", "LagrangianSteps"]


@dataclass(frozen=True)
class Lagrangian(JumpObjective):
    """Lagrangian self-distillation: the map's end moves as the flow does there.

        |d/dtheta_s W(w, theta_t, theta_s) - sg v(W(w, theta_t, theta_s), theta_s)|^2 + diagonal

    v is the map's own diagonal, or a teacher's (Boffi et al. 2025, 2505.18825). Zero pointwise at
    the exact map, so a robust distance (c) makes no bias; blind to a map of the data composed
    before it, which the diagonal sees.

    Args:
        pairs: the law of the pairs.
        diagonal: the denoising loss that is added; None for none.
        teacher: a score model whose flow is followed; the map itself unless given.
        c: constant of the pseudo-Huber distance; inf for the squared error.

    >>> Lagrangian().teacher is None
    True
    """

    teacher: ScoreModel | None = None
    c: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None:
            check_model(self.teacher, "teacher")
        check_number("c", self.c, 0.0, open_low=True, infinite=True)

    def at(self, model: ScoreModel, draw: Draw) -> Tensor:
        w, first = draw.w, draw.first
        # the flow's rate is known from the smallest angle of the process on
        last = draw.last.clamp(min=lowest(model.sde))

        def arrive(theta: Tensor) -> Tensor:
            return mapped(model, w, first, theta, **draw.condition)

        arrived, slope = derivative(arrive, (last,), (torch.ones_like(last),))
        with torch.no_grad():
            guide = model if self.teacher is None else self.teacher
            follow = flow_rate(guide, arrived.detach(), last, **draw.condition)
        return distance(slope - follow, self.c)


@dataclass(frozen=True)
class LagrangianSteps(JumpObjective):
    """The Lagrangian condition over a finite gap: a teacher's midpoint step continues the jump.

        huber(W(w, theta_t, theta_s) - sg step(W(w, theta_t, theta_r), theta_r -> theta_s)) / gap,
        theta_r = theta_s + gap (theta_t - theta_s)

    No derivative of the network, and for gap -> 0 the Lagrangian loss (Boffi et al. 2025,
    2505.18825, section 3). Its fixed point is off by the midpoint rule's error over a gap.

    Args:
        pairs: the law of the pairs.
        diagonal: the denoising loss that is added; None for none.
        teacher: a score model whose flow is followed; the map itself unless given.
        gap: share of a jump that the teacher's step takes.
        c: constant of the pseudo-Huber distance; inf for the squared error.

    >>> LagrangianSteps(gap=0.05).gap
    0.05
    """

    teacher: ScoreModel | None = None
    gap: float = 0.1
    c: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None:
            check_model(self.teacher, "teacher")
        check_number("gap", self.gap, 0.0, 1.0, open_low=True)
        check_number("c", self.c, 0.0, open_low=True, infinite=True)

    def at(self, model: ScoreModel, draw: Draw) -> Tensor:
        w, first, last = draw.w, draw.first, draw.last
        between = last + self.gap * (first - last)
        with torch.no_grad():
            guide = model if self.teacher is None else self.teacher
            start = mapped(model, w, first, between, **draw.condition)
            target = midpoint(guide, start, between, last, **draw.condition)
        error = mapped(model, w, first, last, **draw.condition) - target
        return distance(error, self.c) / self.gap
