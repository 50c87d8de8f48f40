"""The probability-flow ODE dx/dt = alpha' x0 + sigma' eps = f x - g^2 score / 2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .._checks import check_count, check_number
from .._ode import StepsError, integrate
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver
from .coordinate import coordinate

__all__ = ["EULER", "HEUN", "MIDPOINT", "RK4", "Dopri5", "ProbabilityFlow", "Tableau"]


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: nodes c, matrix a (rows below the diagonal), weights b.

    >>> HEUN.order
    2
    """

    name: str
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int


EULER = Tableau("Euler", (0.0,), ((),), (1.0,), 1)
MIDPOINT = Tableau("midpoint", (0.0, 0.5), ((), (0.5,)), (0.0, 1.0), 2)
HEUN = Tableau("Heun", (0.0, 1.0), ((), (1.0,)), (0.5, 0.5), 2)
RK4 = Tableau(
    "RK4",
    (0.0, 0.5, 0.5, 1.0),
    ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    4,
)


@dataclass(frozen=True)
class ProbabilityFlow(Solver):
    """An explicit Runge-Kutta method on the probability-flow ODE (Song 2021, 2011.13456, eq. 13).

    A move to below t_min, where networks are not evaluated, returns x0; on rectified flow t_min is
    0 and every move is a full step. A chain's rates jump at its knots, where a method in time loses
    its order: on a chain the same tableau is applied to dw / d theta = cos(theta) eps -
    sin(theta) x0 in the angle theta = atan(sigma / alpha), with w = x / sqrt(alpha^2 + sigma^2).

    Args:
        tableau: EULER, MIDPOINT, HEUN, RK4, or your own.

    >>> ProbabilityFlow(RK4).nfe
    4
    """

    tableau: Tableau = EULER
    direction = "both"

    def __post_init__(self) -> None:
        check_tableau(self.tableau)

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def weak_order(self) -> int:
        return self.tableau.order

    @property
    def nfe(self) -> int:
        return len(self.tableau.b)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        sde = model.sde
        if s.t < sde.t_min * (1 - 1e-9):
            return model(x, t).x0, None
        on = coordinate(sde)
        u, h = on.place(t), on.place(s) - on.place(t)
        slopes: list[Tensor] = []

        def moved(m: Level, weights: tuple[float, ...]) -> Tensor:
            carry, scale = on.carry(t, m), on.scale(m)
            y = x if carry == 1 else carry * x
            for weight, slope in zip(weights, slopes, strict=True):
                if weight:
                    y = y.add(slope, alpha=h * weight * scale)
            return y

        for c, row in zip(self.tableau.c, self.tableau.a, strict=True):
            m = t if c == 0 else s if c == 1 else on.level(sde, u + c * h)
            slopes.append(on.slope(model(moved(m, row), m)))
        return moved(s, self.tableau.b), None


def check_tableau(tableau: object) -> None:
    """An explicit method: c_i = sum_j a_ij over earlier stages, c_1 = 0, and sum_i b_i = 1."""
    if not isinstance(tableau, Tableau):
        raise TypeError(f"tableau must be a Tableau such as HEUN, got {tableau!r}")
    check_count("tableau.order", tableau.order)
    stages = len(tableau.b)
    if not len(tableau.c) == len(tableau.a) == stages or stages == 0:
        raise ValueError(f"c, a and b of {tableau.name} must have one entry for each stage")
    if tuple(map(len, tableau.a)) != tuple(range(stages)):
        raise ValueError(f"row i of a of {tableau.name} must hold i entries: explicit methods only")
    for entry in (*tableau.c, *tableau.b, *(v for row in tableau.a for v in row)):
        check_number(f"entries of {tableau.name}", entry, open_low=True)
    sums = [*map(math.fsum, tableau.a), math.fsum(tableau.b)]
    for found, wanted in zip(sums, (*tableau.c, 1.0), strict=True):
        if not math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-9):
            raise ValueError(
                f"rows of a of {tableau.name} must sum to c, and b to 1: got {found:g} for "
                f"{wanted:g}"
            )


@dataclass(frozen=True)
class Dopri5(Solver):
    """Dormand-Prince 4(5) on the probability-flow ODE, by torchdiffeq; error control per sample.

    The step is shared by the batch and small enough for its worst row, so every sample meets the
    tolerance, but its last digits depend on its batch mates. A move to below t_min integrates to
    t_min and returns x0 there. On a chain it integrates in the angle, as `ProbabilityFlow` does.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance.
        max_steps: most internal steps before giving up.

    >>> Dopri5(rtol=1e-3).atol
    1e-05
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000
    direction = "both"
    nfe = None

    def __post_init__(self) -> None:
        check_number("rtol", self.rtol, 0.0, open_low=True)
        check_number("atol", self.atol, 0.0, open_low=True)
        check_count("max_steps", self.max_steps)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:

        sde = model.sde
        short = s.t < sde.t_min * (1 - 1e-9)
        last = sde.level(sde.t_min) if short else s
        on = coordinate(sde)
        a, b = on.place(t), on.place(last)

        def slope(u: float, y: Tensor) -> Tensor:
            m = t if u == a else last if u == b else on.level(sde, u)
            scale = on.scale(m)
            return on.slope(model.predict(y if scale == 1 else scale * y, m))

        if len(x) and last.t != t.t:
            try:
                y = integrate(
                    slope,
                    x / on.scale(t),
                    a,
                    b,
                    rtol=self.rtol,
                    atol=self.atol,
                    max_steps=self.max_steps,
                )
            except StepsError as error:
                raise RuntimeError(
                    f"Dopri5 could not meet rtol = {self.rtol:g}, atol = {self.atol:g} between "
                    f"t = {t.t:g} and {last.t:g} ({error}); loosen them, raise max_steps = "
                    f"{self.max_steps}, or check that the model is finite"
                ) from error
            x = on.scale(last) * y
        return (model(x, last).x0 if short else x), None
