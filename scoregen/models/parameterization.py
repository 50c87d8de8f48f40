"""What a network's output means. Every output in use is a linear form a x0 + b eps.

With x = alpha x0 + sigma eps it is a 2 x 2 system; the training target and the decoder are that
one system, so they cannot disagree.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .._checks import (
    check_kind,
    check_number,
    check_same_shape,
)
from ..processes import SDE, Level
from .prediction import Prediction, mix, rates_of

__all__ = [
    "EDM",
    "V",
    "X0",
    "Eps",
    "LearnedVariance",
    "Parameterization",
    "Score",
    "Velocity",
]


def _sqrt(value: Any) -> Any:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


class Parameterization(ABC):
    """The meaning of a network's output: the pair (a, b) in out = a x0 + b eps.

    >>> Eps().coefficients(None, Level(0.5, 0.6, 0.8, -0.29))
    (0.0, 1.0)
    """

    @abstractmethod
    def coefficients(self, sde: SDE, t: Level) -> tuple[Any, Any]:
        """(a, b) at a level: floats, or tensors that broadcast against x."""

    def input_scale(self, sde: SDE, t: Level) -> Any:
        """Factor on x before it enters the network; 1 unless overridden."""
        return 1.0

    def target(self, sde: SDE, t: Level, x0: Tensor, eps: Tensor) -> Tensor:
        """What the network should predict, a x0 + b eps, shaped like x0."""
        a, b = self.coefficients(sde, t)
        return mix(a, x0, b, eps)

    def decode(self, sde: SDE, t: Level, x: Tensor, out: Tensor) -> Prediction:
        """The prediction that a network output stands for.

        Raises:
            ValueError: if `out` is not shaped like x.
        """
        check_same_shape("the network's output", out, x)
        return Prediction(sde, t, x, form=(*self.coefficients(sde, t), out))


@dataclass(frozen=True)
class Eps(Parameterization):
    """The network predicts the noise eps (Ho et al. 2020, 2006.11239).

    >>> Eps().coefficients(None, Level(0.5, 0.6, 0.8, -0.29))
    (0.0, 1.0)
    """

    def coefficients(self, sde: SDE, t: Level) -> tuple[Any, Any]:
        return 0.0, 1.0

    def decode(self, sde: SDE, t: Level, x: Tensor, out: Tensor) -> Prediction:
        check_same_shape("the network's output", out, x)
        return Prediction(sde, t, x, eps=out)


@dataclass(frozen=True)
class X0(Parameterization):
    """The network predicts the clean data x0, a denoiser.

    >>> X0().coefficients(None, Level(0.5, 0.6, 0.8, -0.29))
    (1.0, 0.0)
    """

    def coefficients(self, sde: SDE, t: Level) -> tuple[Any, Any]:
        return 1.0, 0.0

    def decode(self, sde: SDE, t: Level, x: Tensor, out: Tensor) -> Prediction:
        check_same_shape("the network's output", out, x)
        return Prediction(sde, t, x, x0=out)


@dataclass(frozen=True)
class V(Parameterization):
    """The network predicts v = alpha eps - sigma x0 (Salimans and Ho 2022, 2202.00512).

    >>> V().coefficients(None, Level(0.5, 0.6, 0.8, -0.29))
    (-0.8, 0.6)
    """

    def coefficients(self, sde: SDE, t: Level) -> tuple[Any, Any]:
        return -t.sigma, t.alpha

    def decode(self, sde: SDE, t: Level, x: Tensor, out: Tensor) -> Prediction:
        check_same_shape("the network's output", out, x)
        return Prediction(sde, t, x, v=out, form=(*self.coefficients(sde, t), out))


@dataclass(frozen=True)
class Velocity(Parameterization):
    """The network predicts dx/dt = alpha' x0 + sigma' eps (Lipman et al. 2023, 2210.02747).

    >>> from scoregen import RectifiedSDE
    >>> sde = RectifiedSDE()
    >>> Velocity().coefficients(sde, sde.level(0.5))
    (-1.0, 1.0)
    """

    def coefficients(self, sde: SDE, t: Level) -> tuple[Any, Any]:
        return rates_of(sde, t)

    def decode(self, sde: SDE, t: Level, x: Tensor, out: Tensor) -> Prediction:
        check_same_shape("the network's output", out, x)
        return Prediction(sde, t, x, velocity=out, form=(*self.coefficients(sde, t), out))


@dataclass(frozen=True)
class Score(Parameterization):
    """The network predicts the score -eps / sigma (Song and Ermon 2019, 1907.05600).

    >>> Score().coefficients(None, Level(0.5, 0.6, 0.8, -0.29))
    (0.0, -1.25)
    """

    def coefficients(self, sde: SDE, t: Level) -> tuple[Any, Any]:
        if not isinstance(t.sigma, Tensor) and t.sigma == 0:
            raise ValueError("a score network has no training target at sigma = 0; use t >= t_min")
        return 0.0, -1 / t.sigma

    def decode(self, sde: SDE, t: Level, x: Tensor, out: Tensor) -> Prediction:
        check_same_shape("the network's output", out, x)
        return Prediction(sde, t, x, score=out)


@dataclass(frozen=True)
class EDM(Parameterization):
    """x0 = c_skip x + c_out F(c_in x), the preconditioning of Karras et al. (2022, 2206.00364).

    On any process, with r = sigma / alpha: F = (r^2 x0 / sigma_data - sigma_data r eps)
    / (r sqrt(r^2 + sigma_data^2)), and c_in = 1 / sqrt(sigma^2 + alpha^2 sigma_data^2).

    Args:
        sigma_data: standard deviation of the data, per coordinate.

    >>> a, b = EDM(0.5).coefficients(None, Level(0.5, 1.0, 0.5, 0.69))
    >>> round(a, 4), round(b, 4)
    (1.4142, -0.7071)
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_number("sigma_data", self.sigma_data, 0.0, open_low=True)

    def coefficients(self, sde: SDE, t: Level) -> tuple[Any, Any]:
        total = _sqrt(t.sigma**2 + (t.alpha * self.sigma_data) ** 2)
        return t.sigma / (self.sigma_data * total), -self.sigma_data * t.alpha / total

    def input_scale(self, sde: SDE, t: Level) -> Any:
        return 1 / _sqrt(t.sigma**2 + (t.alpha * self.sigma_data) ** 2)


@dataclass(frozen=True)
class LearnedVariance(Parameterization):
    """Twice the channels: the inner output, and v in [-1, 1] with spread = (v + 1) / 2.

    The reverse variance is exp(spread log beta + (1 - spread) log beta-tilde)
    (Nichol and Dhariwal 2021, 2102.09672).

    >>> LearnedVariance().coefficients(None, Level(0.5, 0.6, 0.8, -0.29))
    (0.0, 1.0)
    """

    inner: Parameterization = field(default_factory=Eps)

    def __post_init__(self) -> None:
        check_kind("inner", self.inner, Parameterization, "Eps()")

    def coefficients(self, sde: SDE, t: Level) -> tuple[Any, Any]:
        return self.inner.coefficients(sde, t)

    def input_scale(self, sde: SDE, t: Level) -> Any:
        return self.inner.input_scale(sde, t)

    def decode(self, sde: SDE, t: Level, x: Tensor, out: Tensor) -> Prediction:
        if out.shape[:1] + out.shape[2:] != x.shape[:1] + x.shape[2:] or x.dim() < 2:
            raise ValueError(
                f"the network must return twice the channels of x, {tuple(x.shape)}, "
                f"got {tuple(out.shape)}"
            )
        mean, raw = out[:, : x.shape[1]], out[:, x.shape[1] :]
        check_same_shape("the network's variance channels", raw, x)
        prediction = self.inner.decode(sde, t, x, mean)
        prediction.spread = (raw + 1) / 2
        return prediction
