"""Stochastic exponential integrators in eps and x0: Euler-Maruyama, Heun, SEEDS-2.

In y = x / alpha and r = sigma / alpha the reverse SDE of noise eta (0 the probability-flow ODE, 1
the standard one) is dy = (1 + eta) eps dr + sqrt(eta) dW, with a Brownian motion W in the clock
r^2: the noise of every move is known exactly, and only eps has to be guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._checks import check_choice, check_number
from ..models import ScoreModel
from ..models.prediction import mix
from ..noise import Noise
from ..processes import Level
from ..sampling import EtaSolver
from .exponential import Form
from .sde_dpm import kernel, lifted

__all__ = ["SEEDS2", "ExponentialEuler", "StochasticHeun"]


def drift(t: Level, s: Level, eta: float) -> tuple[float, float, float]:
    """(carry, push, spread) of x_s = carry x + push eps + spread z, for an eps that stays.

    carry = alpha_s / alpha_t, push = alpha_s (1 + eta)(r_s - r_t) and
    spread = alpha_s sqrt(eta (r_t^2 - r_s^2)).
    """
    h = s.lam - t.lam
    push = -(1 + eta) * s.sigma * math.expm1(h)
    return s.alpha / t.alpha, push, s.sigma * math.sqrt(lifted(math.expm1(2 * h), eta))


def from_noise(
    x: Tensor, x0: Tensor, t: Level, s: Level, eta: float, noise: Noise
) -> tuple[Tensor, None]:
    """The move from alpha = 0, where r is infinite: with x0 instead of eps."""
    carry, pull, spread = kernel(t, s, lifted(s.lam - t.lam, eta))
    x = mix(carry, x, pull, x0)
    return (x.add(noise(x, t, s), alpha=spread) if spread else x), None


@dataclass(frozen=True)
class ExponentialEuler(EtaSolver):
    """Exponential Euler-Maruyama: eps frozen over the move, all else exact.

    x_s = alpha_s [x / alpha_t + (1 + eta)(r_s - r_t) eps + sqrt(eta (r_t^2 - r_s^2)) z] with
    r = sigma / alpha: the lambda-family of Zhang and Chen (2022, 2204.13902; their lambda is
    sqrt(eta)), SDE-DPM-Solver-1 (Lu et al. 2022, 2211.01095) at eta = 1 and DDIM at eta = 0.

    Args:
        eta: noise of the reverse SDE, 0 for none and 1 for the standard one.

    >>> ExponentialEuler().weak_order
    1
    """

    eta: float = 1.0
    weak_order = 1

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 0.0)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p = model(x, t)
        if s.sigma == 0:
            return p.x0, None
        if t.alpha == 0:
            return from_noise(x, p.x0, t, s, self.eta, noise)
        carry, push, spread = drift(t, s, self.eta)
        x = p.combine(carry * t.alpha, carry * t.sigma + push)
        return (x.add(noise(x, t, s), alpha=spread) if spread else x), None


@dataclass(frozen=True)
class StochasticHeun(EtaSolver):
    """Heun's method on the reverse SDE: the mean of eps at both ends, one draw for both stages.

    An `ExponentialEuler` move to s, then the same move with the mean of eps before and after it.
    Of weak order 2 because the noise is additive in x / alpha (Kloeden and Platen 1992, 15.1);
    eta = 0 is Heun's step of Karras et al. (2022, 2206.00364). Song et al. (2021, 2011.13456) give
    the SDE.

    Args:
        eta: noise of the reverse SDE, 0 for none and 1 for the standard one.

    >>> StochasticHeun().nfe, StochasticHeun().weak_order
    (2, 2)
    """

    eta: float = 1.0
    nfe = 2
    weak_order = 2

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 0.0)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p = model(x, t)
        if s.sigma == 0:
            return p.x0, None
        if t.alpha == 0:
            return from_noise(x, p.x0, t, s, self.eta, noise)
        carry, push, spread = drift(t, s, self.eta)
        base = carry * x
        if spread:
            base = base.add_(noise(x, t, s), alpha=spread)
        ahead = model(base.add(p.eps, alpha=push), s).eps
        return base.add(p.eps + ahead, alpha=push / 2), None


@dataclass(frozen=True)
class SEEDS2(EtaSolver):
    """SEEDS-2, the stochastic exponential midpoint rule (Gonzalez et al. 2023, 2305.14267).

    A move to the middle in lam with the prediction at t, then the whole move with the prediction in
    the middle; the noise of the whole move is that of the first half carried on exactly, plus that
    of the second half.

    Args:
        eta: noise of the reverse SDE, 0 for none and 1 for the standard one.
        form: the prediction held over a move: "x0", or the paper's "eps" for VP.

    >>> SEEDS2().nfe, SEEDS2().weak_order
    (2, 2)
    """

    eta: float = 1.0
    form: Form = "x0"
    nfe = 2
    weak_order = 2

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 0.0)
        check_choice("form", self.form, ("x0", "eps"))

    def _plan(self, t: Level, s: Level) -> tuple[float, float, float]:
        if self.form == "x0":
            return kernel(t, s, lifted(s.lam - t.lam, self.eta))
        return drift(t, s, self.eta)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p = model(x, t)
        if s.sigma == 0:
            return p.x0, None
        if t.alpha == 0:
            return from_noise(x, p.x0, t, s, self.eta, noise)
        m = model.sde.level_at((t.lam + s.lam) / 2)
        inner, inward, wide = self._plan(t, m)
        onward, _, rest = self._plan(m, s)
        carry, pull, _ = self._plan(t, s)
        y, x = mix(inner, x, inward, getattr(p, self.form)), carry * x
        if wide:
            first, second = noise(x, t, m), noise(x, m, s)
            y = y.add(first, alpha=wide)
            x = x.add(first, alpha=onward * wide).add(second, alpha=rest)
        return x.add(getattr(model(y, m), self.form), alpha=pull), None
