"""Adams' method in the angle atan(sigma / alpha), where the probability flow is never stiff."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ..models import Prediction
from ..processes import SDE, Level
from .exponential import check_order, moment_weights
from .history import Multistep

__all__ = ["AngularAB"]


@dataclass(frozen=True)
class AngularAB(Multistep):
    """Adams-Bashforth in the angle, its last move made again by Adams-Moulton: one evaluation.

    With theta = atan(sigma / alpha) and w = x / sqrt(alpha^2 + sigma^2) the probability flow of
    every process is dw / d theta = cos(theta) eps - sin(theta) x0, of the size of the data at both
    ends (the "v" of Salimans and Ho 2022, 2202.00512; trigonometric paths, Albergo and
    Vanden-Eijnden 2022, 2209.15571). The right side is a polynomial in theta through its last `p`
    values; when its value at s is known, which the next move needs anyway, the same move is made
    again with it as one more node, as in UniPC (Zhao et al. 2023, 2302.04867).

    Args:
        p: values that predict, 1 to 4.
        smooth_end: at sigma = 0 the flow of a smooth density has eps = 0; True takes that as one
            more node of a last move to sigma = 0 and follows the flow to its end, where x0 would
            stop at the posterior mean. Leave it off for data on a thin set.

    >>> AngularAB(2).order, AngularAB(2).nfe
    (3, 1)
    """

    p: int = 4
    smooth_end: bool = False

    def __post_init__(self) -> None:
        check_order("p", self.p, 4)

    @property
    def order(self) -> int:
        return min(self.p + 1, 4)  # the start is of third order, its error is made once

    @property
    def points(self) -> int:
        return self.p + 1

    @property
    def start_nfe(self) -> int:
        return 1 if self.p <= 2 else 3  # corrected, the first move of p = 2 is accurate enough

    def output(self, p: Prediction) -> Tensor:
        theta = angle(p.t)
        return p.combine(-math.sin(theta), math.cos(theta))

    def end(self, p: Prediction, t: Level, s: Level) -> Tensor | None:
        smooth = self.smooth_end and s.sigma == 0 and not math.isinf(t.lam)
        return None if smooth else super().end(p, t, s)

    def plan(
        self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]
    ) -> tuple[float, tuple[float, ...]]:
        return corrected_plan(self.p, t, s, levels)

    def stage_plan(
        self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]
    ) -> tuple[float, tuple[float, ...]]:
        return size(s) / size(t), tuple(size(s) * w for w in weights(t, s, levels))

    def between(self, sde: SDE, t: Level, s: Level, fraction: float) -> Level:
        theta = angle(t) + fraction * (angle(s) - angle(t))
        return sde.level_at(-math.log(math.tan(theta)))


def angle(t: Level) -> float:
    return math.atan2(t.sigma, t.alpha)


def size(t: Level) -> float:
    return math.hypot(t.alpha, t.sigma)


def weights(t: Level, s: Level, levels: tuple[Level, ...]) -> tuple[float, ...]:
    """Those of the polynomial through `levels`, and through 0 at sigma = 0 if s lies there."""
    here = angle(t)
    nodes = [angle(level) - here for level in levels]
    if s.sigma == 0:
        nodes.append(-here)
    return moment_weights(0.0, angle(s) - here, tuple(nodes))[: len(levels)]


@lru_cache(maxsize=65536)
def corrected_plan(
    p: int, t: Level, s: Level, levels: tuple[Level, ...]
) -> tuple[float, tuple[float, ...]]:
    """The corrector of the last move and the predictor of this one, as one linear combination."""
    before = levels[1:]
    ahead = weights(t, s, levels[:p])
    total = [*ahead, *[0.0] * (len(levels) - len(ahead))]
    if before:
        predicted = weights(before[0], t, before)
        corrected = weights(before[0], t, (*before, t))
        change = (corrected[-1], *(c - w for c, w in zip(corrected[:-1], predicted, strict=True)))
        total = [w + c for w, c in zip(total, change, strict=True)]
    return size(s) / size(t), tuple(size(s) * w for w in total)
