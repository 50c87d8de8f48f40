"""One evaluation of a model, in whichever form a solver needs."""

from __future__ import annotations

import math
from typing import Any

import torch
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

    It keeps the form it was built from, and converts to another on demand, once. Give it `x0`,
    `eps` or both, a `score`, or a linear `form` (a, b, out) with out = a x0 + b eps.

    A form that does not exist at the level raises: for floats always, for tensor levels where
    their values can be read without waiting for a device (on the CPU, outside `torch.compile` and
    `vmap`); elsewhere the rows in question are not finite.

    Args:
        sde: the process.
        t: the level at which the model was evaluated.
        x: the state it was evaluated at, shape (batch, *event).
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
        """Raise if a form does not follow, because what it is divided by is 0 (or infinite)."""
        if isinstance(det, Tensor):
            if not _readable(det):
                return
            wrong = (det == 0) | torch.isinf(det)
            if not bool(wrong.any()):
                return
            row = int(wrong.reshape(-1).nonzero()[0])
            t, alpha = (
                float(c.reshape(-1)[row if c.numel() > 1 else 0])
                for c in (torch.as_tensor(self.t.t), torch.as_tensor(self.t.alpha))
            )
        elif det == 0 or math.isinf(det):
            t, alpha = self.t.t, self.t.alpha
        else:
            return
        hint = (
            "at zero signal an eps- or score-network does not give x0: use x0-, v- or velocity-"
            "prediction, or start below t_max"
            if alpha == 0
            else "there is no noise left to find: stop the grid above 0, let its last move "
            "return x0, or take the score or energy only"
        )
        raise ValueError(f"{wanted} does not follow from this model at t = {t:g}; " + hint)

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
            if isinstance(sigma_rate, Tensor):
                infinite = _readable(sigma_rate) and bool(torch.isinf(sigma_rate).any())
            else:
                infinite = math.isinf(sigma_rate)
            if infinite:
                raise ValueError(
                    f"the velocity of {type(self.sde).__name__} is infinite at t = 0; stop the "
                    "grid at t_min"
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
    """(alpha', sigma') at a level: floats, or tensors shaped like its own.

    Tensors stay in the precision of the level's time: its device may have no float64.
    """
    if isinstance(t.t, Tensor):
        alpha, sigma = sde.rates(t.t)
        return alpha.to(t.alpha.dtype), sigma.to(t.alpha.dtype)
    return sde.rates_at(t.t)


def _readable(value: Tensor) -> bool:
    """Whether a tensor's values can be read here without waiting for a device."""
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not torch._C._functorch.is_batchedtensor(value)
