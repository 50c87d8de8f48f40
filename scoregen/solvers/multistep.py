"""Multistep methods: DPM-Solver(++) and exponential Adams-Bashforth in lam = log(alpha / sigma)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from .._checks import check_choice
from ..models import Prediction, ScoreModel
from ..noise import Noise
from ..processes import SDE, Level
from ..sampling import Wrapped
from .exponential import Form, check_order, output, phi, plan
from .history import History, Multistep, Plan

__all__ = [
    "DPMSolver",
    "DPMSolver3MAsPublished",
    "DPMSolverPP",
    "EulerStart",
    "ExponentialAB",
]


@dataclass(frozen=True)
class ExponentialAB(Multistep):
    """Exponential Adams-Bashforth: x0 or eps is a polynomial in lam through its last values.

    x_s = (sigma_s / sigma_t) x + alpha_s int exp(lam - lam_s) x0(lam) d lam, or the like with eps,
    integrated exactly (Hochbruck and Ostermann 2010; Zhang and Chen 2022, 2204.13902). Order 1 is
    DDIM; order 3 in x0 is DPM-Solver++(3M) with its second difference right.

    Args:
        order: 1 to 4.
        form: which output is interpolated.

    >>> ExponentialAB(4, "eps").start_nfe
    3
    """

    order: int = 3
    form: Form = "x0"

    def __post_init__(self) -> None:
        check_order("order", self.order, 4)
        check_choice("form", self.form, ("x0", "eps"))

    @property
    def points(self) -> int:
        return self.order

    def output(self, p: Prediction) -> Tensor:
        return output(self.form, p)

    def plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        return plan(self.form, t, s, levels, "exact")


@dataclass(frozen=True)
class EulerStart(Wrapped):
    """A multistep method whose first moves use what history there is, as the papers' codes do.

    No evaluation is spent on the start, and the order is at most 2.

    Args:
        solver: the method.

    >>> EulerStart(ExponentialAB(3)).order
    2
    """

    solver: Multistep = ExponentialAB(4, "eps")

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Multistep):
            raise TypeError(f"solver must be a multistep method, got {self.solver!r}")

    @property
    def order(self) -> int | None:
        return None if self.solver.order is None else min(2, self.solver.order)

    @property
    def weak_order(self) -> int | None:
        return None if self.solver.weak_order is None else min(2, self.solver.weak_order)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        return self.solver.step(model, x, t, s, state or History(), noise)


@dataclass(frozen=True)
class _DPM(Multistep):
    """The papers' weights: the half-step short cut at order 2, the moment conditions at order 3."""

    order: int = 2

    @property
    @abstractmethod
    def form(self) -> Form:
        """Which output is interpolated."""

    def __post_init__(self) -> None:
        check_order("order", self.order, 3)

    @property
    def points(self) -> int:
        return self.order

    def output(self, p: Prediction) -> Tensor:
        return output(self.form, p)

    def plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        return plan(self.form, t, s, levels, "bh2" if self.order == 2 else "exact")


@dataclass(frozen=True)
class DPMSolverPP(_DPM):
    """DPM-Solver++(1M, 2M, 3M) (Lu et al. 2022, 2211.01095): multistep in x0.

    x_s = sigma_s / sigma_t x - alpha_s (exp(-h) - 1) D with h = lam_s - lam_t; at order 2
    D = x0 + h / (2 h_before) (x0 - x0_before), the paper's 2M. Order 3 has the weights that
    integrate a parabola exactly; `DPMSolver3MAsPublished` has the ones of the papers' code.

    Args:
        order: 1, 2 or 3.

    >>> DPMSolverPP().order
    2
    """

    form = "x0"


@dataclass(frozen=True)
class DPMSolver(_DPM):
    """DPM-Solver(1M, 2M, 3M) (Lu et al. 2022, 2206.00927): multistep in eps.

    x_s = alpha_s / alpha_t x - sigma_s (exp(h) - 1) D; at order 2
    D = eps + h / (2 h_before) (eps - eps_before). Order 3 is exact for parabolas.

    Args:
        order: 1, 2 or 3.

    >>> DPMSolver(3).start_nfe
    2
    """

    form = "eps"


@dataclass(frozen=True)
class DPMSolver3MAsPublished(Multistep):
    """DPM-Solver(++)(3M) as the papers' code and four other libraries have it: of order 2.

    With first differences d0 = (D_0 - D_1) / r0, d1 = (D_1 - D_2) / r1 it takes (d0 - d1) /
    (r0 + r1) for the second derivative, half of what it is; `DPMSolverPP(3)` and `DPMSolver(3)` are
    right. It starts with DDIM and the two-point method.

    Args:
        form: "x0" for DPM-Solver++, "eps" for DPM-Solver.

    >>> DPMSolver3MAsPublished().order
    2
    """

    form: Form = "x0"
    order = 2
    points = 3
    start_nfe = 1

    def __post_init__(self) -> None:
        check_choice("form", self.form, ("x0", "eps"))

    def output(self, p: Prediction) -> Tensor:
        return output(self.form, p)

    def plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        if len(levels) < 3:
            return plan(self.form, t, s, levels, "bh2")
        return published_3m(self.form, t, s, levels)


@lru_cache(maxsize=65536)
def published_3m(form: Form, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
    """The moment conditions' weights, less half of the second difference."""
    carry, weights = plan(form, t, s, levels, "exact")
    h = s.lam - t.lam
    r0, r1 = (t.lam - levels[1].lam) / h, (levels[1].lam - levels[2].lam) / h
    rate, scale = (1.0, s.alpha) if form == "x0" else (-1.0, -s.sigma)
    bend = scale * h * phi(3, -rate * h) / (r0 + r1)
    missing = (bend / r0, -bend / r0 - bend / r1, bend / r1)
    return carry, tuple(w - m for w, m in zip(weights, missing, strict=True))
