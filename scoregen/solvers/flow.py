"""The probability-flow ODE dx/dt = alpha' x0 + sigma' eps = f x - g^2 score / 2, in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_count, check_number
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver

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

    A move to below t_min, where networks are not asked, returns x0; on rectified flow t_min is 0
    and every move is a full step.

    Args:
        tableau: EULER, MIDPOINT, HEUN, RK4, or your own.

    >>> ProbabilityFlow(RK4).nfe
    4
    """

    tableau: Tableau = EULER
    direction = "both"

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
        if s.t < model.sde.t_min * (1 - 1e-9):
            return model(x, t).x0, None
        h = s.t - t.t
        slopes: list[Tensor] = []
        for c, row in zip(self.tableau.c, self.tableau.a, strict=True):
            y = _walk(x, h, row, slopes)
            level = t if c == 0 else s if c == 1 else model.sde.level(t.t + c * h)
            slopes.append(model(y, level).velocity)
        return _walk(x, h, self.tableau.b, slopes), None


def _walk(x: Tensor, h: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = x.add(slope, alpha=h * weight)
    return x


@dataclass(frozen=True)
class Dopri5(Solver):
    """Dormand-Prince 4(5) on the probability-flow ODE, by torchdiffeq; error control per sample.

    The step is shared by the batch and small enough for its worst row, so every sample meets the
    tolerance, but its last digits depend on its batch mates. A move to below t_min integrates to
    t_min and returns x0 there.

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
        from torchdiffeq import odeint  # imports scipy, which is slow

        sde = model.sde
        leap = s.t < sde.t_min * (1 - 1e-9)
        stop = sde.t_min if leap else s.t
        low, high = min(t.t, stop), max(t.t, stop)

        def velocity(time: Tensor, y: Tensor) -> Tensor:
            # torchdiffeq hands the time over in the dtype of y: rounding must not leave the domain
            inside = min(max(float(time), low), high)
            return model.predict(y, sde.levels([inside])[0]).velocity

        if len(x) and stop != t.t:
            span = torch.tensor([t.t, stop], dtype=torch.float64, device=x.device)
            try:
                x = odeint(
                    velocity,
                    x,
                    span,
                    rtol=self.rtol,
                    atol=self.atol,
                    method="dopri5",
                    options={
                        "norm": worst_row,
                        "max_num_steps": self.max_steps,
                        "step_t": span[-1:],  # land on the end: beyond it there may be no process
                    },
                )[-1]
            except AssertionError as error:  # how torchdiffeq says that it gave up
                raise RuntimeError(
                    f"Dopri5 could not meet rtol = {self.rtol:g}, atol = {self.atol:g} between "
                    f"t = {t.t:g} and {stop:g} ({error}); loosen them, raise max_steps = "
                    f"{self.max_steps}, or check that the model is finite"
                ) from error
        return (model(x, sde.level(stop)).x0 if leap else x), None


def worst_row(error: Tensor) -> Tensor:
    """The largest root mean square among the samples of a batch."""
    if error.dim() < 2:
        return error.abs().max()
    return error.reshape(len(error), -1).square().mean(1).sqrt().max()
