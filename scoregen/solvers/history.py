"""The frame of multistep methods: what they remember, how they start, where they fall back."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

from torch import Tensor

from ..models import Prediction, ScoreModel
from ..noise import Noise
from ..processes import SDE, Level
from ..sampling import Solver
from .exponential import combine, ddim

__all__ = ["History", "Multistep", "Plan"]

# (carry, weights) of x_s = carry x + sum_j weights_j out_j
Plan = tuple[float, tuple[float, ...]]


class History(NamedTuple):
    """What a multistep method remembers: levels and outputs there, the newest first.

    >>> History().levels
    ()
    """

    levels: tuple[Level, ...] = ()
    outs: tuple[Tensor, ...] = ()


class Multistep(Solver):
    """One evaluation a move, combined with those of the moves before.

    The first move is a single-step method of one order less (its error is made once), so that the
    method keeps its order; `EulerStart` trades that for fewer evaluations. A move from lam = -inf
    or +inf is DDIM's and leaves no history.

    >>> from scoregen.solvers import ExponentialAB
    >>> ExponentialAB(4).points, ExponentialAB(4).start_nfe
    (4, 3)
    """

    direction = "both"

    @property
    def weak_order(self) -> int | None:
        return self.order

    @property
    @abstractmethod
    def points(self) -> int:
        """Most evaluations that a move combines."""

    @property
    def start_nfe(self) -> int:
        """Evaluations of the first move."""
        return max(1, self.points - 1)

    @abstractmethod
    def output(self, p: Prediction) -> Tensor:
        """The form of the prediction that is interpolated."""

    @abstractmethod
    def plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        """(carry, weights) of x_s = carry x + sum_j weights_j out_j, with outs at `levels`."""

    def stage_plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        """`plan` inside the first move; the same unless a subclass's plan does more."""
        return self.plan(sde, t, s, levels)

    def between(self, sde: SDE, t: Level, s: Level, fraction: float) -> Level:
        """The level a fraction of the way in the method's own coordinate."""
        return sde.level_at(t.lam + fraction * (s.lam - t.lam))

    def end(self, p: Prediction, t: Level, s: Level) -> Tensor | None:
        """The state at s where no polynomial serves: x0 at sigma = 0, DDIM from infinite lam."""
        if s.sigma == 0:
            return p.x0
        return ddim(p, s) if math.isinf(t.lam) or math.isinf(s.lam) else None

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p = model(x, t)
        end = self.end(p, t, s)
        if end is not None:
            return end, None
        if state is None and self.start_nfe > 1:
            return self.begin(model, x, t, s, self.output(p))
        levels, outs = state or History()
        levels = (t, *levels[: self.points - 1])
        outs = (self.output(p), *outs[: self.points - 1])
        carry, weights = self.plan(model.sde, t, s, levels)
        return combine(carry, x, weights, outs), History(levels, outs)

    def begin(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, out: Tensor
    ) -> tuple[Tensor, History]:
        """The first move: exponential Runge-Kutta with nodes 0, 1/2 or 0, 1/3, 2/3."""
        levels: tuple[Level, ...] = (t,)
        outs: tuple[Tensor, ...] = (out,)
        stages = self.start_nfe
        for stage in range(1, stages):
            m = self.between(model.sde, t, s, stage / stages)
            carry, weights = self.stage_plan(model.sde, t, m, levels)
            y = combine(carry, x, weights, outs)
            levels, outs = (t, m), (out, self.output(model(y, m)))
        carry, weights = self.stage_plan(model.sde, t, s, levels)
        return combine(carry, x, weights, outs), History(levels, outs)
