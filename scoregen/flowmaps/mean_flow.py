"""The Eulerian condition on the mean velocity of a jump."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_number
from .._rows import against
from ..models import ScoreModel, check_model
from ..objectives.denoising import Objective
from .angles import flow_rate
from .jumps import derivative, velocity_between
from .objective import Draw, JumpObjective, distance

__all__ = ["MeanFlow"]


@dataclass(frozen=True)
class MeanFlow(JumpObjective):
    """The mean velocity u of a jump against the value that its own derivative implies.

        |u(w, theta_t, theta_s) - sg(v + (theta_s - theta_t) (d/dtheta_t u + v . grad u))|^2

    with u = (W - w) / (theta_s - theta_t), and v the velocity of the sample's own line, or of a
    teacher's flow (Geng et al. 2025, 2505.13447). With the sample's v and the squared error its
    expected gradient is zero at the exact map; with a robust distance, or the source's weights,
    which depend on the error, it is not. With a teacher the loss is zero pointwise there, and the
    distance is free. The derivative in theta_t goes through the network's first clock: where that
    clock is steep (HalfLogSNR near the noisy end) a trained network's roughness is in it.

    Args:
        pairs: the law of the pairs.
        diagonal: added; None by default, since pairs with theta_s = theta_t are the diagonal.
        same: share of pairs with theta_s = theta_t.
        teacher: a score model whose flow is followed; the sample's line unless given.
        c: constant of the pseudo-Huber distance; inf for the squared error.

    >>> MeanFlow().same
    0.5
    """

    diagonal: Objective | None = None
    same: float = 0.5
    teacher: ScoreModel | None = None
    c: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None:
            check_model(self.teacher, "teacher")
        object.__setattr__(self, "same", check_number("same", self.same, 0.0, 1.0))
        check_number("c", self.c, 0.0, open_low=True, infinite=True)

    def at(self, model: ScoreModel, draw: Draw) -> Tensor:
        count = round(self.same * len(draw.x0))
        last = torch.cat([draw.first[:count], draw.last[count:]])
        w, v, first = draw.w, draw.v, draw.first
        if self.teacher is not None:
            with torch.no_grad():
                v = flow_rate(self.teacher, w, first, **draw.condition)

        def mean_velocity(w: Tensor, theta: Tensor) -> Tensor:
            return velocity_between(model, w, theta, last, **draw.condition)

        u, change = derivative(mean_velocity, (w, first), (v, torch.ones_like(first)))
        target = v + against((last - first).to(w), w) * change
        return distance(u - target.detach(), self.c)
