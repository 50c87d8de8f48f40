"""DPM-Solver and DPM-Solver++ in single steps: each move stands alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._checks import check_choice
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver
from .exponential import Form, check_order, combine, ddim, output, plan

__all__ = ["DPMSolverSingle"]


@dataclass(frozen=True)
class DPMSolverSingle(Solver):
    """DPM-Solver-1, 2, 3 (eps) and DPM-Solver++(2S, 3S) (x0): Runge-Kutta in lam, step by step.

    Stages lie at lam_t + h / 2 (order 2), h / 3 and 2 h / 3 (order 3). In the x0 form
    x_s = sigma_s / sigma_t x + alpha_s int_0^h exp(u - h) D(u) du: at order 2 D is x0 half-way, at
    order 3 the straight line in u through x0 at 0 and at the last stage (Lu et al. 2022, 2206.00927
    and 2211.01095). Order 1 is DDIM.

    Args:
        order: 1, 2 or 3, and as many evaluations.
        form: "eps" for DPM-Solver, "x0" for DPM-Solver++.

    >>> DPMSolverSingle(3).nfe
    3
    """

    order: int = 3
    form: Form = "eps"
    direction = "both"

    def __post_init__(self) -> None:
        check_order("order", self.order, 3)
        check_choice("form", self.form, ("x0", "eps"))

    @property
    def weak_order(self) -> int:
        return self.order

    @property
    def nfe(self) -> int:
        return self.order

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p = model(x, t)
        if s.sigma == 0:
            return p.x0, None
        if math.isinf(t.lam):
            return ddim(p, s), None
        levels: tuple[Level, ...] = (t,)
        outs: tuple[Tensor, ...] = (output(self.form, p),)
        for stage in range(1, self.order):
            m = model.sde.level_at(t.lam + stage / self.order * (s.lam - t.lam))
            carry, weights = plan(self.form, t, m, levels, "exact")
            y = combine(carry, x, weights, outs)
            levels, outs = (t, m), (outs[0], output(self.form, model(y, m)))
        # at order 2 bh2 puts all the weight on the half-way value
        carry, weights = plan(self.form, t, s, levels, "bh2" if self.order == 2 else "exact")
        return combine(carry, x, weights, outs), None
