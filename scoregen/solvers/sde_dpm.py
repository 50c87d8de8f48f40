"""Stochastic exponential integrators in x0: SDE-DPM-Solver++, and noise added to any ODE solver.

The reverse SDE dx = [f x - (1 + eta) g^2 score / 2] dt + sqrt(eta) g dw has the same marginals for
every eta >= 0: 0 is the probability-flow ODE, 1 the reverse SDE of Anderson (1982). In
lam = log(alpha / sigma), with h = lam_s - lam_t and u counted from lam_t, its exact solution is

    x_s = (sigma_s / sigma_t) exp(-eta h) x + (1 + eta) alpha_s int_0^h exp((1 + eta)(u - h)) x0 du
          + sigma_s sqrt(1 - exp(-2 eta h)) z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._checks import check_number
from ..models import ScoreModel
from ..models.prediction import mix
from ..noise import Noise
from ..processes import Level
from ..sampling import EtaSolver, Solver, Wrapped
from .ancestral import DDIM
from .exponential import check_order, combine, half_weights, moment_weights

__all__ = ["AncestralODE", "SDEDPMSolverPP", "SDEDPMSolverPP2S"]


def kernel(t: Level, s: Level, damp: float) -> tuple[float, float, float]:
    """(carry, pull, spread) of x_s = carry x + pull x0 + spread z, for an x0 that stays.

    carry = sigma_s / sigma_t exp(-damp), pull = alpha_s (1 - exp(-h - damp)) and
    spread = sigma_s sqrt(1 - exp(-2 damp)); damp = 0 is DDIM, damp = h the DDPM posterior.
    """
    carry = s.sigma / t.sigma * math.exp(-damp)
    pull = -s.alpha * math.expm1(t.lam - s.lam - damp)
    return carry, pull, s.sigma * math.sqrt(-math.expm1(-2 * damp))


def ddim_damp(t: Level, s: Level, eta: float) -> float:
    """The damp of DDIM's eta, whose noise is eta times the standard deviation of the posterior."""
    h = s.lam - t.lam
    if eta in (0, 1):  # also where h is infinite
        return h if eta else 0.0
    return -math.log1p(eta**2 * math.expm1(-2 * h)) / 2


def lifted(h: float, eta: float) -> float:
    """eta h, which is 0 for eta = 0 even where h is infinite."""
    return eta * h if eta else 0.0


def brownian(x: Tensor, t: Level, m: Level, s: Level, noise: Noise) -> tuple[Tensor, Tensor]:
    """The draws of (t, m) and (t, s) on one Brownian path in the clock (sigma / alpha)^2.

    The draws are of the disjoint intervals (t, m) and (m, s), so any source of noise serves.
    """
    if m is s:
        whole = noise(x, t, s)
        return whole, whole
    share = math.expm1(2 * (t.lam - m.lam)) / math.expm1(2 * (t.lam - s.lam))
    first, second = noise(x, t, m), noise(x, m, s)
    return first, mix(math.sqrt(share), first, math.sqrt(1 - share), second)


@dataclass(frozen=True)
class SDEDPMSolverPP(EtaSolver):
    """SDE-DPM-Solver++(1, 2M, 3M) (Lu et al. 2022, 2211.01095): one evaluation a move.

    x0 is a polynomial in lam through the last `max_order` predictions, integrated against
    (1 + eta) exp((1 + eta) lam); 2 is the paper's midpoint form, 3 has the weights that are exact
    for parabolas (the published second difference lacks a factor 2). The first moves use what
    history there is. eta = 0 is DPM-Solver++ with that start, max_order = 1 with eta = 1 the
    posterior sampler of DDPM. Of weak order 2 at most, since fresh noise enters every move.

    Args:
        max_order: most predictions combined, 1, 2 or 3.
        eta: noise of the reverse SDE, 0 for none and 1 for the standard one.

    >>> SDEDPMSolverPP(2).weak_order, SDEDPMSolverPP(2, eta=0.0).order
    (2, 2)
    """

    max_order: int = 2
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_order("max_order", self.max_order, 3)
        check_number("eta", self.eta, 0.0)

    @property
    def weak_order(self) -> int:
        return min(self.max_order, 2)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        out = model(x, t).x0
        if s.sigma == 0:
            return out, None
        h, rate = s.lam - t.lam, 1 + self.eta
        carry, pull, spread = kernel(t, s, lifted(h, self.eta))
        before, kept = state or ((), ()), self.max_order - 1
        levels, outs = (t, *before[0][:kept]), (out, *before[1][:kept])
        if len(outs) == 1 or math.isinf(h):
            x = mix(carry, x, pull, out)
        else:
            nodes = tuple(level.lam - t.lam for level in levels)
            weights: tuple[float, ...]
            if self.max_order == 2:
                weights = half_weights(rate, h, (nodes[0], nodes[1]), "bh2")
            else:
                weights = moment_weights(rate, h, nodes)
            x = combine(carry, x, [rate * s.alpha * w for w in weights], outs)
        if spread:
            x = x.add(noise(x, t, s), alpha=spread)
        return x, None if math.isinf(h) else (levels, outs)


@dataclass(frozen=True)
class SDEDPMSolverPP2S(EtaSolver):
    """Two-stage stochastic DPM-Solver++, known as dpmpp_sde (Lu et al. 2022, 2211.01095).

    Two DDIM(eta) moves from x: to m with x0(x), a fraction r of the way in lam, then to s with
    (1 - 1/2r) x0(x) + 1/2r x0(x_m). Both use one Brownian path, W(t, m) and W(t, m) + W(m, s) in
    the clock (sigma / alpha)^2: with independent draws the weak order is 1.

    Args:
        eta: noise kept, in [0, 1], as in DDIM.
        r: place of the inner point, in (0, 1].

    >>> SDEDPMSolverPP2S().nfe
    2
    """

    eta: float = 1.0
    r: float = 0.5
    nfe = 2

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 0.0, 1.0)
        check_number("r", self.r, 0.0, 1.0, open_low=True)

    weak_order = 2

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        out = model(x, t).x0
        if s.sigma == 0:
            return out, None
        carry, pull, spread = kernel(t, s, ddim_damp(t, s, self.eta))
        if math.isinf(t.lam):  # no point lies between: one DDIM(eta) move
            x = mix(carry, x, pull, out)
            return (x.add(noise(x, t, s), alpha=spread) if spread else x), None
        m = s if self.r == 1 else model.sde.level_at(t.lam + self.r * (s.lam - t.lam))
        inner, inward, wide = kernel(t, m, ddim_damp(t, m, self.eta))
        y = mix(inner, x, inward, out)
        x = carry * x
        if spread:
            first, whole = brownian(x, t, m, s, noise)
            y, x = y.add(first, alpha=wide), x.add(whole, alpha=spread)
        share = 1 / (2 * self.r)
        x = x.add(out, alpha=pull * (1 - share)) if share != 1 else x
        return x.add(model(y, m).x0, alpha=pull * share), None


@dataclass(frozen=True)
class AncestralODE(EtaSolver, Wrapped):
    """An ODE solver made stochastic: it moves past s to a cleaner level, then noise is put back.

    The level is the one where adding DDIM's eta sigma_s sqrt(1 - SNR_t / SNR_s) of noise leads to
    s, so an exact ODE solver would give the exact law: the weak order is the solver's own. With
    `DDIM()` inside it is DDIM(eta) (k-diffusion's euler_ancestral), with a midpoint method in eps
    or x0 its dpm_2_ancestral and dpmpp_2s_ancestral (Crowson et al., software, 2022). Near the end
    of a grid the level may lie below t_min: take a solver that does not evaluate where it arrives.

    Args:
        solver: noise-free and without memory; multistep methods would mix two paths.
        eta: noise kept, in [0, 1], as in DDIM.

    >>> AncestralODE(DDIM()).nfe
    1
    """

    solver: Solver = DDIM()  # noqa: RUF009 (frozen)
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver) or self.solver.order is None:
            raise TypeError(f"solver must be a noise-free Solver such as DDIM(), got {self.solver}")
        check_number("eta", self.eta, 0.0, 1.0)

    @property
    def weak_order(self) -> int | None:
        return self.solver.order

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if s.sigma == 0 or self.eta == 0:
            return self.solver.step(model, x, t, s, state, noise)
        damp = ddim_damp(t, s, self.eta)
        if math.isinf(damp):  # all of the noise is new: from lam = -inf, x0 is all there is
            return mix(s.alpha, model(x, t).x0, s.sigma, noise(x, t, s)), None
        low = model.sde.level_at(s.lam + damp)
        x, left = self.solver.step(model, x, t, low, None, noise)
        if left is not None:
            raise ValueError(
                f"{type(self.solver).__name__} remembers earlier moves, which noise puts off the "
                "path; give AncestralODE a single-step solver"
            )
        return mix(s.alpha / low.alpha, x, kernel(t, s, damp)[2], noise(x, t, s)), None
