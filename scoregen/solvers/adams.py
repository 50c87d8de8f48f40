"""Multistep methods with the weights of Adams and Bashforth, in the coordinates of the papers."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .._checks import check_choice, check_number
from ..models import Prediction, ScoreModel
from ..models.prediction import mix
from ..noise import Noise
from ..processes import SDE, Level
from ..sampling import Solver
from .coordinate import coordinate
from .exponential import check_order, combine, ddim, moment_weights
from .history import Multistep, Plan

__all__ = ["DEIS", "IPNDM", "LMS", "PNDM", "GammaAveraging", "VelocityAB"]


@dataclass(frozen=True)
class _AB(Multistep):
    order: int = 3

    def __post_init__(self) -> None:
        check_order("order", self.order, 4)

    @property
    def points(self) -> int:
        return self.order


@dataclass(frozen=True)
class LMS(_AB):
    """Adams-Bashforth on d(x / alpha) / dr = eps against r = sigma / alpha, for any steps.

    eps is a polynomial in r through its last `order` values. Known as lms in k-diffusion (Crowson
    2022), as DEIS-rhoAB (Zhang and Chen 2022, 2204.13902), and as iPNDM_v, iPNDM (same paper) with
    weights for unequal steps. Order 1 is DDIM.

    Args:
        order: 1 to 4.

    >>> LMS(4).order
    4
    """

    def output(self, p: Prediction) -> Tensor:
        return p.eps

    def plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        return ratio_plan(t, s, levels)

    def between(self, sde: SDE, t: Level, s: Level, fraction: float) -> Level:
        a, b = t.sigma / t.alpha, s.sigma / s.alpha
        return sde.level_at(-math.log(a + fraction * (b - a)))


@lru_cache(maxsize=65536)
def ratio_plan(t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
    r = t.sigma / t.alpha
    nodes = tuple(level.sigma / level.alpha - r for level in levels)
    weights = moment_weights(0.0, s.sigma / s.alpha - r, nodes)
    return s.alpha / t.alpha, tuple(s.alpha * w for w in weights)


@dataclass(frozen=True)
class DEIS(_AB):
    """DEIS-tAB: eps is a polynomial in time, the rest is integrated exactly.

    x_s = alpha_s / alpha_t x - alpha_s sum_j eps_j int exp(-lam) l_j(t(lam)) d lam with Lagrange's
    l_j, by Gauss-Legendre quadrature (Zhang and Chen 2022, 2204.13902). On a chain, where lam has a
    kink in time at every knot, eps is a polynomial in the angle atan(sigma / alpha).

    Args:
        order: 1 to 4; 1 is DDIM.

    >>> DEIS(3).order
    3
    """

    def output(self, p: Prediction) -> Tensor:
        return p.eps

    def plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        return time_plan(sde, t, s, levels)


@lru_cache
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the quadrature on [-1, 1]."""
    points, shares = np.polynomial.legendre.leggauss(16)
    return points, shares


@lru_cache(maxsize=65536)
def time_plan(sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
    points, shares = _gauss()
    panels = np.linspace(t.lam, s.lam, 1 + math.ceil(abs(s.lam - t.lam)))
    weights = np.zeros(len(levels))
    on = coordinate(sde)
    nodes = [on.place(level) for level in levels]
    for low, high in pairwise(panels):
        lam = low + (high - low) * (points + 1) / 2
        places = on.at_lam(sde, torch.as_tensor(lam)).numpy()
        # exp(lam_s - lam) keeps the integrand of the size of sigma_s = alpha_s exp(-lam_s)
        measure = -s.sigma * (high - low) / 2 * shares * np.exp(s.lam - lam)
        for j, node in enumerate(nodes):
            basis = np.ones_like(places)
            for other in nodes[:j] + nodes[j + 1 :]:
                basis *= (places - other) / (node - other)
            weights[j] += measure @ basis
    return s.alpha / t.alpha, tuple(weights.tolist())


@dataclass(frozen=True)
class VelocityAB(_AB):
    """Adams-Bashforth on the velocity dx/dt, a polynomial in time through its last values.

    On rectified flow every move to t = 0 is a full one; elsewhere a move to below t_min returns x0.
    On a chain, whose rates jump at its knots, the polynomial is one of the angle, as in
    `ProbabilityFlow`.

    Args:
        order: 1 to 4; 1 is Euler's method in time.

    >>> VelocityAB(2).order
    2
    """

    def output(self, p: Prediction) -> Tensor:
        return coordinate(p.sde).slope(p)

    def plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        return velocity_plan(sde, t, s, levels)

    def between(self, sde: SDE, t: Level, s: Level, fraction: float) -> Level:
        on = coordinate(sde)
        return on.level(sde, on.place(t) + fraction * (on.place(s) - on.place(t)))

    def end(self, p: Prediction, t: Level, s: Level) -> Tensor | None:
        return p.x0 if s.t < p.sde.t_min * (1 - 1e-9) else None


@lru_cache(maxsize=65536)
def velocity_plan(sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
    on = coordinate(sde)
    here, scale = on.place(t), on.scale(s)
    nodes = tuple(on.place(level) - here for level in levels)
    weights = moment_weights(0.0, on.place(s) - here, nodes)
    return on.carry(t, s), tuple(scale * w for w in weights)


BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class _Fixed(Multistep):
    """DDIM's move with a fixed combination of the last eps: the same weights at any step ratio."""

    order = 1
    start_nfe = 1

    @abstractmethod
    def shares(self, count: int) -> tuple[float, ...]:
        """Weights of the last `count` eps, the newest first; they sum to 1."""

    def output(self, p: Prediction) -> Tensor:
        return p.eps

    def plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        carry = s.alpha / t.alpha
        gain = s.sigma - carry * t.sigma
        return carry, tuple(gain * share for share in self.shares(len(levels)))


@dataclass(frozen=True)
class IPNDM(_Fixed):
    """iPNDM: DDIM with eps replaced by Adams and Bashforth's combination for equal steps.

    (3 eps - eps') / 2, (23 eps - 16 eps' + 5 eps'') / 12, (55, -59, 37, -9) / 24, by what history
    there is (Zhang and Chen 2022, 2204.13902). The weights are right for equal steps in sigma /
    alpha; elsewhere the order is 2 where step lengths vary slowly and 1 where they do not. `LMS`
    has the weights for unequal steps.

    Args:
        max_order: most evaluations combined, 1 to 4; so many as there are at the start.

    >>> IPNDM().order
    1
    """

    max_order: int = 4

    def __post_init__(self) -> None:
        check_order("max_order", self.max_order, 4)

    @property
    def points(self) -> int:
        return self.max_order

    def shares(self, count: int) -> tuple[float, ...]:
        return BASHFORTH[count - 1]


@dataclass(frozen=True)
class GammaAveraging(_Fixed):
    """DDIM with eps replaced by gamma eps + (1 - gamma) eps_before (Permenter 2023, 2306.04848).

    gamma = 3/2 is of second order where step lengths vary slowly; the paper's 2 is of first order
    and often better in few steps. First order for any steps.

    Args:
        gamma: at least 1, which is DDIM.

    >>> GammaAveraging(2.0).shares(2)
    (2.0, -1.0)
    """

    gamma: float = 1.5
    points = 2

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, 1.0)

    def shares(self, count: int) -> tuple[float, ...]:
        return (self.gamma, 1 - self.gamma) if count == 2 else (1.0,)


@dataclass(frozen=True)
class PNDM(Solver):
    """PNDM (Liu et al. 2022, 2202.09778): DDIM with Adams-Bashforth-4's eps after its own start.

    Fixed weights, as in `IPNDM`. "runge-kutta": the first three moves combine four evaluations,
    (e1 + 2 e2 + 2 e3 + e4) / 6, at t, twice half-way in time, and at s. "heun" (known as PLMS): the
    first combines (e1 + e2) / 2, the next ones have fewer points.

    Args:
        start: how the first moves are made.

    >>> PNDM().order
    1
    """

    start: Literal["runge-kutta", "heun"] = "runge-kutta"
    direction = "both"
    order = 1
    weak_order = 1

    def __post_init__(self) -> None:
        check_choice("start", self.start, ("runge-kutta", "heun"))

    @property
    def start_nfe(self) -> int:
        """Evaluations of each move of the start: three by Runge-Kutta, one by Heun."""
        return 4 if self.start == "runge-kutta" else 2

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p = model(x, t)
        if s.sigma == 0:
            return p.x0, None
        if math.isinf(t.lam):
            return ddim(p, s), None
        e1 = p.eps
        past = (e1, *(state or ())[:3])
        shares, slopes = BASHFORTH[len(past) - 1], past
        if self.start == "runge-kutta" and len(past) < 4:
            m = model.sde.level((t.t + s.t) / 2)
            e2 = model(_transfer(x, t, m, e1), m).eps
            e3 = model(_transfer(x, t, m, e2), m).eps
            e4 = model(_transfer(x, t, s, e3), s).eps
            shares, slopes = (1 / 6, 1 / 3, 1 / 3, 1 / 6), (e1, e2, e3, e4)
        elif len(past) == 1:
            shares, slopes = (1 / 2, 1 / 2), (e1, model(_transfer(x, t, s, e1), s).eps)
        carry = s.alpha / t.alpha
        gain = s.sigma - carry * t.sigma
        return combine(carry, x, [gain * share for share in shares], slopes), past


def _transfer(x: Tensor, t: Level, s: Level, eps: Tensor) -> Tensor:
    carry = s.alpha / t.alpha
    return mix(carry, x, s.sigma - carry * t.sigma, eps)
