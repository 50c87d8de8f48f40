"""SA-Solver: stochastic Adams methods, predictor and corrector, one evaluation a move."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .._checks import check_count, check_number
from ..models import ScoreModel
from ..models.prediction import mix
from ..noise import Noise
from ..processes import Level
from ..sampling import Direction, Solver
from .exponential import check_order, combine, moment_weights
from .sde_dpm import kernel, lifted

__all__ = ["SASolver", "TauInterval"]


@dataclass(frozen=True)
class TauInterval:
    """Noise tau where sigma / alpha lies in [low, high], none elsewhere.

    The piecewise constant choice of Xue et al. (2023, 2309.05019).

    Args:
        tau: noise inside the band.
        low: lowest sigma / alpha.
        high: highest sigma / alpha.

    >>> TauInterval()(Level(1.0, 1.0, 1.0, 0.0)), TauInterval()(Level(80.0, 1.0, 80.0, -4.38))
    (1.0, 0.0)
    """

    tau: float = 1.0
    low: float = 0.05
    high: float = 1.0

    def __post_init__(self) -> None:
        check_number("tau", self.tau, 0.0)
        check_number("low", self.low, 0.0)
        check_number("high", self.high, self.low, infinite=True)

    def __call__(self, t: Level) -> float:
        inside = self.low * t.alpha <= t.sigma <= self.high * t.alpha
        return self.tau if inside else 0.0


class SAState(NamedTuple):
    """What SASolver remembers: earlier predictions, and the move that led here.

    >>> SAState((), (), None, 1.0).levels
    ()
    """

    levels: tuple[Level, ...]
    outs: tuple[Tensor, ...]
    base: Tensor | None  # carry x + spread z of the last move
    rate: float  # 1 + tau^2 of the last move


@dataclass(frozen=True)
class SASolver(Solver):
    """SA-Solver (Xue et al. 2023, 2309.05019): Adams-Bashforth, then Adams-Moulton, on the SDE.

    The reverse SDE of noise tau (eta = tau^2) is integrated with x0 a polynomial in lam through the
    last `predictor_order` predictions. Where the move arrives the model is evaluated once, and the
    move is made again from where it began, with the same noise and a polynomial through that
    prediction and the last `corrector_order` ones; the prediction serves the next move too, so a
    move costs one evaluation. A last point that is never evaluated is left uncorrected.

    Args:
        tau: noise, or a rule that gives it from the level a move starts at: `TauInterval()`.
        predictor_order: 1 to 4 predictions.
        corrector_order: 0 for none, else 1 to 4 earlier predictions beside the new one.

    >>> SASolver().weak_order, SASolver(tau=0.0, predictor_order=3, corrector_order=3).order
    (2, 3)
    """

    tau: float | Callable[[Level], float] = 1.0
    predictor_order: int = 2
    corrector_order: int = 2

    def __post_init__(self) -> None:
        if not callable(self.tau):
            check_number("tau", self.tau, 0.0)
        check_order("predictor_order", self.predictor_order, 4)
        if check_count("corrector_order", self.corrector_order, 0) != 0:
            check_order("corrector_order", self.corrector_order, 4)

    @property
    def direction(self) -> Direction:
        return "both" if self.tau == 0 else "down"

    @property
    def _start(self) -> int:
        # the first move is Euler's; a corrector raises it by one, and all others too
        if not self.corrector_order:
            return min(self.predictor_order, 2)
        return min(self.predictor_order + 1, self.corrector_order + 1, 3)

    @property
    def order(self) -> int | None:
        return self._start if self.tau == 0 else None

    @property
    def weak_order(self) -> int:
        return self._start if self.tau == 0 else min(self._start, 2)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        out = model(x, t).x0
        if s.sigma == 0:
            return out, None
        old = state or SAState((), (), None, 1.0)
        if old.base is not None and self.corrector_order:
            # the last move again from where it began, the prediction here among its nodes
            kept = self.corrector_order
            nodes, values = (t, *old.levels[:kept]), (out, *old.outs[:kept])
            x = _moved(old.base, old.rate, old.levels[0], t, nodes, values)
        tau = self.tau(t) if callable(self.tau) else self.tau
        eta, h = tau**2, s.lam - t.lam
        carry, pull, spread = kernel(t, s, lifted(h, eta))
        if math.isinf(t.lam):
            x = mix(carry, x, pull, out)
            return (x.add(noise(x, t, s), alpha=spread) if spread else x), None
        keep = max(self.predictor_order, self.corrector_order) - 1
        levels, outs = (t, *old.levels[:keep]), (out, *old.outs[:keep])
        base = carry * x
        if spread:
            base = base.add_(noise(x, t, s), alpha=spread)
        used = self.predictor_order
        x = _moved(base, 1 + eta, t, s, levels[:used], outs[:used])
        return x, SAState(levels, outs, base, 1 + eta)


def _moved(
    base: Tensor,
    rate: float,
    t: Level,
    s: Level,
    levels: tuple[Level, ...],
    outs: tuple[Tensor, ...],
) -> Tensor:
    """base + rate alpha_s int exp(rate (u - h)) x0 du, x0 a polynomial through outs at levels."""
    weights = moment_weights(rate, s.lam - t.lam, tuple(level.lam - t.lam for level in levels))
    return combine(1.0, base, [rate * s.alpha * w for w in weights], outs)
