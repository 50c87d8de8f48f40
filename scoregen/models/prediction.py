"""One evaluation of a model, in whichever form a solver asks for."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..processes import SDE, Level

__all__ = ["Prediction"]


def mix(a: Any, x: Tensor, b: Any, y: Tensor) -> Tensor:
    """a x + b y, in two kernels when b is a float."""
    if isinstance(b, float):
        return (a * x).add(y, alpha=b)
    return a * x + b * y


class Prediction:
    """One evaluation of a model: which part of x is data and which is noise.

    It keeps the form it was built from, and converts to another when asked, once. Give it `x0`,
    `eps` or both, a `score`, or a linear `form` (a, b, out) with out = a x0 + b eps.

    Args:
        sde: the process.
        t: the level at which the model was asked.
        x: the state it was asked about, shape (batch, *event).
        spread: None, or shaped like x in [0, 1]: the learned reverse variance between the
            posterior's (0) and the transition's (1), in log space.

    >>> import torch
    >>> p = Prediction(None, Level(0.5, 0.6, 0.8, -0.29), torch.ones(1, 2), x0=torch.zeros(1, 2))
    >>> p.eps
    tensor([[1.2500, 1.2500]])
    """

    __slots__ = ("_eps", "_form", "_score", "_v", "_velocity", "_x0", "sde", "spread", "t", "x")

    def __init__(
        self,
        sde: SDE,
        t: Level,
        x: Tensor,
        *,
        x0: Tensor | None = None,
        eps: Tensor | None = None,
        score: Tensor | None = None,
        velocity: Tensor | None = None,
        v: Tensor | None = None,
        form: tuple[Any, Any, Tensor] | None = None,
        spread: Tensor | None = None,
    ):
        self.sde, self.t, self.x, self.spread = sde, t, x, spread
        self._x0, self._eps, self._score, self._v = x0, eps, score, v
        self._velocity, self._form = velocity, form

    def combine(self, p: Any, q: Any, name: str = "this form") -> Tensor:
        """p x0 + q eps, in as few kernels as the form it was built from allows.

        Solves {x = alpha x0 + sigma eps, out = a x0 + b eps} for the combination.
        """
        _, alpha, sigma, _ = self.t
        x0, eps = self._x0, self._eps
        if self._form is not None:
            a, b, out = self._form
        elif x0 is not None:
            if eps is not None:
                return mix(p, x0, q, eps)
            a, b, out = 1.0, 0.0, x0
        elif eps is not None or self._score is not None:
            a, b, out = 0.0, 1.0, self.eps
        else:
            raise ValueError("a Prediction needs x0, eps, a score or a linear form")
        det = alpha * b - sigma * a
        self._refuse(name, det)
        return mix((p * b - q * a) / det, self.x, (q * alpha - p * sigma) / det, out)

    @property
    def made_from_score(self) -> bool:
        """Whether the score is known without a conversion, as where there is no noise at all."""
        return self._score is not None

    def _refuse(self, wanted: str, det: Any) -> None:
        if not isinstance(det, Tensor) and (det == 0 or math.isinf(det)):
            hint = (
                "at zero signal an eps- or score-network cannot tell x0: use x0-, v- or velocity-"
                "prediction, or start below t_max"
                if self.t.alpha == 0
                else "there is no noise left to tell: stop the grid above 0, let its last move "
                "return x0, or ask for the score or energy only"
            )
            raise ValueError(
                f"{wanted} does not follow from this model at t = {self.t.t:g}; " + hint
            )

    @property
    def x0(self) -> Tensor:
        """Posterior mean of the data, E[x0 | x_t]."""
        if self._x0 is None:
            self._x0 = self.combine(1.0, 0.0, "x0")
        return self._x0

    @property
    def eps(self) -> Tensor:
        """Posterior mean of the noise, E[eps | x_t] = -sigma score."""
        if self._eps is None:
            if self._score is not None:
                self._refuse("eps", self.t.sigma)
                self._eps = -self.t.sigma * self._score
            else:
                self._eps = self.combine(0.0, 1.0, "eps")
        return self._eps

    @property
    def score(self) -> Tensor:
        """grad_x log p_t(x) = -eps / sigma (Vincent 2011; Song 2021, 2011.13456)."""
        if self._score is None:
            sigma = self.t.sigma
            if not isinstance(sigma, Tensor):
                self._refuse("the score", sigma)
            if self._eps is None:
                self._score = self.combine(0.0, -1 / sigma, "the score")
            else:
                self._score = self._eps / -sigma
        return self._score

    @property
    def velocity(self) -> Tensor:
        """Velocity alpha' x0 + sigma' eps of the probability-flow ODE."""
        if self._velocity is None:
            alpha_rate, sigma_rate = rates_of(self.sde, self.t)
            if isinstance(sigma_rate, float) and math.isinf(sigma_rate):
                raise ValueError(
                    f"the velocity is infinite at t = {self.t.t:g}; stop the grid at t_min"
                )
            self._velocity = self.combine(alpha_rate, sigma_rate, "the velocity")
        return self._velocity

    @property
    def v(self) -> Tensor:
        """alpha eps - sigma x0 (Salimans and Ho 2022, 2202.00512); not the velocity."""
        if self._v is None:
            self._v = self.combine(-self.t.sigma, self.t.alpha, "v")
        return self._v

    def with_x0(self, x0: Tensor) -> Prediction:
        """The prediction after an edit of x0; eps follows, so x = alpha x0 + sigma eps holds."""
        return Prediction(self.sde, self.t, self.x, x0=x0, spread=self.spread)


def rates_of(sde: SDE, t: Level) -> tuple[Any, Any]:
    if isinstance(t.t, Tensor):
        rates = sde.rates(t.t.double())
        return rates[0].to(t.t.dtype), rates[1].to(t.t.dtype)
    return sde.rates_at(t.t)
