"""Adams' method in the angle atan(sigma / alpha), where the probability flow is never stiff."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from .._checks import check_flag
from ..models import Prediction
from ..processes import SDE, Level
from .coordinate import ANGLE, angle, size
from .corrected import Corrected
from .exponential import check_order, moment_weights
from .history import Plan

__all__ = ["AngularAB"]

GROWTH, LOUD = 3.0, 2.0


@dataclass(frozen=True)
class AngularAB(Corrected):
    """Adams-Bashforth in the angle, its last move made again by Adams-Moulton: one evaluation.

    With theta = atan(sigma / alpha) and w = x / sqrt(alpha^2 + sigma^2) the probability flow of
    every process is dw / d theta = cos(theta) eps - sin(theta) x0, of the size of the data at both
    ends (the "v" of Salimans and Ho 2022, 2202.00512; trigonometric paths, Albergo and
    Vanden-Eijnden 2022, 2209.15571). The right side is a polynomial in theta through its last
    `order` values; when its value at s is known, which the next move needs anyway, the same move is
    made again with it as one more node, as in UniPC (Zhao et al. 2023, 2302.04867).

    Where steps grow fast, extrapolation multiplies the error of the network: an error e of eps is
    one of e / cos(theta) of the right side. A move whose weights w_j have sum |w_j| / cos(theta_j)
    above 2, and above 3 times that of Euler's move, drops its oldest values until they have not. As
    steps shrink no move does, so that the order stays.

    Args:
        order: values that predict, 1 to 4. Corrected, the error falls with one order more, 4 at
            most.
        smooth_end: at sigma = 0 the flow of a smooth density has eps = 0; True takes that as one
            more node of a last move to sigma = 0 and follows the flow to its end, where x0 would
            stop at the posterior mean. Leave it off for data on a thin set.
        bounded: whether moves drop values as above. False keeps all of them: on coarse grids up to
            eight times more accurate for exact scores, and ruinous for a network that predicts eps.

    >>> AngularAB(2).order, AngularAB(2).nfe
    (2, 1)
    """

    order: int = 4
    smooth_end: bool = False
    bounded: bool = True

    def __post_init__(self) -> None:
        check_order("order", self.order, 4)
        check_flag("smooth_end", self.smooth_end)
        check_flag("bounded", self.bounded)

    def output(self, p: Prediction) -> Tensor:
        return ANGLE.slope(p)

    def end(self, p: Prediction, t: Level, s: Level) -> Tensor | None:
        smooth = self.smooth_end and s.sigma == 0 and not math.isinf(t.lam)
        return None if smooth else super().end(p, t, s)

    def stage_plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        return angle_plan(t, s, levels, self.bounded)

    def between(self, sde: SDE, t: Level, s: Level, fraction: float) -> Level:
        return ANGLE.level(sde, angle(t) + fraction * (angle(s) - angle(t)))


def angle_weights(t: Level, s: Level, levels: tuple[Level, ...]) -> tuple[float, ...]:
    """Those of the polynomial through `levels`, and through 0 at sigma = 0 if s lies there."""
    here = angle(t)
    nodes = [angle(level) - here for level in levels]
    if s.sigma == 0:
        nodes.append(-here)
    return moment_weights(0.0, angle(s) - here, tuple(nodes))[: len(levels)]


def loudness(weights: tuple[float, ...], levels: tuple[Level, ...]) -> float:
    """sum |w_j| / cos(theta_j): how far unit errors of eps may move w."""
    return sum(abs(w) * size(n) / n.alpha for w, n in zip(weights, levels, strict=True))


@lru_cache(maxsize=65536)
def angle_plan(t: Level, s: Level, levels: tuple[Level, ...], bounded: bool) -> Plan:
    """(carry, weights); if bounded, without the last nodes while the weights are too large.

    The corrector's node at s comes behind the others and stays.
    """
    most = max(GROWTH * abs(angle(s) - angle(t)) * size(t) / t.alpha, LOUD)
    limit = most if bounded else math.inf
    past, ahead = (levels[:-1], levels[-1:]) if levels[-1] == s else (levels, ())
    weights = angle_weights(t, s, levels)
    while len(past) > 1 and loudness(weights, (*past, *ahead)) > limit:
        past = past[:-1]
        weights = angle_weights(t, s, (*past, *ahead))
    kept = (*past, *ahead)
    shares = dict(zip(kept, weights, strict=True))
    return size(s) / size(t), tuple(size(s) * shares.get(level, 0.0) for level in levels)
