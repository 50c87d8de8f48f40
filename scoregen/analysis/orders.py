"""Observed orders of solvers, and the polynomial conditions that no limit can replace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._checks import (
    check_choice,
    check_count,
    check_counts,
    check_kind,
    check_number,
    check_numbers,
)
from ..grids import Grid, Times
from ..grids.spaced import _Log
from ..models import Prediction, ScoreModel
from ..noise import SampleNoise
from ..processes import SDE, Level
from ..sampling import Sampler, Solver
from .law import output_law

__all__ = ["Order", "PolynomialModel", "ZigZag", "last_move_defect", "observed_order"]

_ROUNDING = 1e-12  # errors below this are rounding, and say nothing about an order


@dataclass(frozen=True)
class ZigZag(_Log):
    """Steps in log(alpha / sigma) that alternate in length, ratio : 1 : ratio : 1 : ...

    Multistep methods whose coefficients assume equal steps keep their order on every smooth grid,
    where neighbouring steps grow alike, and lose it here.

    Args:
        steps: number of moves.
        start: first time; t_max unless given.
        stop: last time.
        ratio: length of the odd steps over that of the even ones.

    >>> from scoregen import EDMSDE
    >>> ZigZag(2, start=16.0, stop=1.0)(EDMSDE()).tolist()
    [16.0, 2.0, 1.0]
    """

    ratio: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ratio", self.ratio, 0.0, open_low=True)
        check_number("margin", self.margin, 0.0, 1.0, open_low=True, open_high=True)

    def lams(self, first: float, last: float, moves: int) -> Tensor:
        lengths = torch.ones(moves, dtype=torch.float64)
        lengths[::2] = self.ratio
        reached = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]) / lengths.sum()
        return first + (last - first) * reached


class Order(NamedTuple):
    """Errors over a ladder of steps, and the slopes of log error against log steps.

    Slopes use the errors above rounding only; both are infinite where fewer than two are.

    Attributes:
        steps: the ladder.
        errors: at each rung.
        last: slope of the last pair.
        fit: least-squares slope.

    >>> Order((8, 16), (0.4, 0.1), 2.0, 2.0).last
    2.0
    """

    steps: tuple[int, ...]
    errors: tuple[float, ...]
    last: float
    fit: float

    @classmethod
    def of(cls, steps: Sequence[int], errors: Sequence[float]) -> Order:
        """From the errors at increasing numbers of steps.

        >>> round(Order.of((8, 16, 32), (0.64, 0.16, 0.02)).last, 6)
        3.0
        """
        points = [(n, error) for n, error in zip(steps, errors, strict=True) if error > _ROUNDING]
        if len(points) < 2:
            return cls(tuple(steps), tuple(errors), math.inf, math.inf)
        x, y = np.log(np.array(points)).T
        last = (y[-2] - y[-1]) / (x[-1] - x[-2])
        return cls(tuple(steps), tuple(errors), float(last), -float(np.polyfit(x, y, 1)[0]))


def observed_order(
    sampler: Sampler,
    sde: SDE,
    variances: Tensor | Sequence[float] = (0.05, 0.5, 2.0),
    mean: Tensor | float = 0.0,
    *,
    steps: Iterable[int] = (32, 64, 128),
    kind: Literal["law", "flow"] = "law",
    grid: Grid | None = None,
) -> Order:
    """The order of convergence of a sampler on Gaussian data, from exact errors.

    "law" is the W2 distance of the output's law from the exact p_s, begun at the exact p_t (the
    weak order); "flow" the root mean square over x_t of the distance of the output from the exact
    probability-flow map, for noise-free solvers (the deterministic order).

    A slope is a floor only: on Gaussian data some methods super-converge on some grids. Take grids
    that end at an interior level, unequal steps (`ZigZag`) among them; a last move to sigma = 0
    adds an error that more steps do not remove.

    Args:
        sampler: on a grid with a count of steps, between interior levels.
        sde: the process.
        variances: eigenvalues of the data's covariance, shape (d,).
        mean: of the data in the eigenbasis, () or (d,).
        steps: the ladder, increasing.
        kind: what is measured.
        grid: replaces the sampler's own.

    Raises:
        ValueError: "flow" for a solver that draws noise, or a sampler that is not affine.

    >>> from scoregen import DDIM, EDMSDE, UniformLam
    >>> grid = ZigZag(8, start=5.0, stop=0.2)
    >>> order = observed_order(Sampler(DDIM(), grid), EDMSDE(), kind="flow")
    >>> round(order.last, 1)
    1.0
    """
    check_kind("sampler", sampler, Sampler, "Sampler(DDIM(), UniformTime(20))")
    check_choice("kind", kind, ("law", "flow"))
    if grid is not None:
        sampler = Sampler(sampler.solver, grid)
    ladder = check_counts("steps", steps)
    if len(ladder) < 2 or any(b <= a for a, b in pairwise(ladder)):
        raise ValueError(f"need at least two increasing numbers of steps, got {ladder}")
    laws = [output_law(sampler.with_steps(n), sde, variances, mean) for n in ladder]
    return Order.of(ladder, [law.w2 if kind == "law" else law.flow_error for law in laws])


class PolynomialModel(ScoreModel):
    """A model whose prediction is lam^power at every x: the test of a method's order conditions.

    With lam = log(alpha / sigma), an exponential integrator of order p in x0 (or in eps) must be
    exact for every power below p in one step with true history; power 0 says that its weights sum
    to one. This finds mistakes that keep the order in the limit.

    Args:
        sde: the process.
        power: of lam, at least 0.
        form: which prediction is the polynomial.

    >>> from scoregen import EDMSDE
    >>> PolynomialModel(EDMSDE(), 1)(torch.zeros(1, 1), 1.0).x0
    tensor([[0.]])
    """

    def __init__(self, sde: SDE, power: int, form: Literal["x0", "eps"] = "x0"):
        super().__init__()
        check_kind("sde", sde, SDE, "VPSDE()")
        check_choice("form", form, ("x0", "eps"))
        self.sde, self.power, self.form = sde, check_count("power", power, 0), form

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        value = torch.zeros_like(x) + t.lam**self.power
        if self.form == "x0":
            return Prediction(self.sde, t, x, x0=value)
        return Prediction(self.sde, t, x, eps=value)

    def flow(self, x: Tensor, t: Level, s: Level, tau: float = 0.0) -> Tensor:
        """The exact mean of x_s from x at t under the reverse SDE of noise tau (0: the ODE).

        x0 form: sigma_s / sigma_t exp(-tau^2 h) x + (1 + tau^2) alpha_s int exp(-(1 + tau^2)
        (lam_s - l)) l^power dl over l from lam_t to lam_s, h = lam_s - lam_t; eps form:
        alpha_s / alpha_t x - (1 + tau^2) alpha_s int exp(-l) l^power dl. (Xue et al. 2023,
        2309.05019; Lu et al. 2022, 2206.00927.)

        Args:
            x: state at t, shape (batch, *event).
            t: level of floats.
            s: level of floats.
            tau: noise of the reverse SDE relative to the standard one.
        """
        rate = 1 + tau**2
        nodes, weights = np.polynomial.legendre.leggauss(40)
        h = s.lam - t.lam
        lams = t.lam + h * (nodes + 1) / 2
        power = lams**self.power
        if self.form == "x0":
            inner = float((weights * np.exp(-rate * (s.lam - lams)) * power).sum()) * h / 2
            decay = s.sigma / t.sigma * math.exp(-(tau**2) * h)
            return decay * x + rate * s.alpha * inner
        inner = float((weights * np.exp(-lams) * power).sum()) * h / 2
        return s.alpha / t.alpha * x - rate * s.alpha * inner


def last_move_defect(
    solver: Solver,
    sde: SDE,
    power: int,
    times: Sequence[float],
    *,
    form: Literal["x0", "eps"] = "x0",
    tau: float = 0.0,
) -> float:
    """How far the last of several moves is from the exact one, where the model says lam^power.

    The model does not look at x, so what a multistep method remembers of earlier moves is true
    history, and the last move is judged alone, from wherever it began. Noise draws are left out.

    Args:
        solver: a fixed-grid solver.
        sde: the process.
        power: of the polynomial.
        times: at least two, in the direction that the solver moves.
        form: whether x0 or eps is the polynomial.
        tau: noise of the reverse SDE that a stochastic solver integrates: 1 for the standard one.

    Returns:
        The largest difference, relative to the size of the exact move's result.

    >>> from scoregen import EDMSDE, DPMSolverPP
    >>> last_move_defect(DPMSolverPP(), EDMSDE(), 0, (4.0, 2.0, 1.5)) < 1e-14
    True
    """
    check_kind("solver", solver, Solver, "DDIM()")
    tau = check_number("tau", tau, 0.0, 1e100)
    knots = check_numbers("times", times)
    if len(knots) < 2:
        raise ValueError(f"times must be at least two, got {len(knots)}")
    model = PolynomialModel(sde, power, form)
    x = torch.tensor([[0.0], [1.0], [-2.0]], dtype=torch.float64)
    silent = _Silent(0)
    steps = list(Sampler(solver, Times(*knots)).iterate(model, x, noise=silent))
    before, after = steps[-2:]
    exact = model.flow(before.x, before.t, after.t, tau)
    return float((after.x - exact).abs().max() / exact.abs().max().clamp(min=1e-300))


class _Silent(SampleNoise):
    """No noise: the mean of a move that is affine in its draws."""

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        return torch.zeros_like(like)
