"""Laws of t that are normal in the logarithm of the noise, or in the logit of the time."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_number
from ..processes import SDE
from .laws import Law, lam_rate

__all__ = ["LogNormalSigma", "LogitNormal"]

_LOG_ROOT = 0.5 * math.log(2 * math.pi)


class _Normal(Law):
    """A normal law of some increasing or falling map of t, cut to the interval of the process."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_number("std", self.std, 0.0, open_low=True)

    @abstractmethod
    def _span(self, sde: SDE) -> tuple[float, float]:
        """The mapped ends of the interval of times, in rising order."""

    def _shares(self, sde: SDE) -> tuple[Tensor, Tensor]:
        ends = torch.tensor(self._span(sde), dtype=torch.float64)
        low, high = torch.special.ndtr((ends - self.mean) / self.std)
        if float(high - low) < 1e-3:
            raise ValueError(
                f"{self} puts a share of only {float(high - low):.1e} on the times of "
                f"{type(sde).__name__}; choose a mean and std that fit its noise levels"
            )
        return low, high

    def _normal(self, sde: SDE, u: Tensor) -> Tensor:
        low, high = (share.to(u.device) for share in self._shares(sde))
        return self.mean + self.std * torch.special.ndtri(low + (high - low) * u)

    def _log_normal(self, sde: SDE, value: Tensor) -> Tensor:
        low, high = self._shares(sde)
        z = (value - self.mean) / self.std
        return -z.square() / 2 - _LOG_ROOT - math.log(self.std) - math.log(float(high - low))


@dataclass(frozen=True)
class LogNormalSigma(_Normal):
    """log(sigma / alpha) normal: EDM's law of the noise level (Karras et al. 2022, 2206.00364).

        -lam ~ N(mean, std^2), cut to the levels of the process and renormalised

    Args:
        mean: of log(sigma / alpha).
        std: of log(sigma / alpha).

    Raises:
        ValueError: if almost none of the law lies on the levels of the process.

    >>> from scoregen import EDMSDE
    >>> LogNormalSigma()(EDMSDE(), 3, torch.Generator().manual_seed(0)).dtype
    torch.float64
    """

    mean: float = -1.2
    std: float = 1.2

    def _span(self, sde: SDE) -> tuple[float, float]:
        first, last = sde.levels([sde.t_min, sde.t_max])
        return -first.lam, -last.lam

    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        return sde.time(-self._normal(sde, u)).clamp(sde.t_min, sde.t_max)

    def log_density(self, sde: SDE, t: Tensor) -> Tensor:
        density = self._log_normal(sde, -sde.lam(t.double())) + lam_rate(sde, t).log()
        return density.masked_fill((t < sde.t_min) | (t > sde.t_max), -math.inf)


@dataclass(frozen=True)
class LogitNormal(_Normal):
    """logit(t / t_max) normal: most often at middling times (Esser et al. 2024, 2403.03206).

        log(t / (t_max - t)) ~ N(mean, std^2), cut to [t_min, t_max] and renormalised

    Args:
        mean: of the logit.
        std: of the logit.

    >>> from scoregen import RectifiedSDE
    >>> LogitNormal()(RectifiedSDE(), 3, torch.Generator().manual_seed(0)).shape
    torch.Size([3])
    """

    mean: float = 0.0
    std: float = 1.0

    def _span(self, sde: SDE) -> tuple[float, float]:
        share = sde.t_min / sde.t_max
        return (math.log(share / (1 - share)) if share > 0 else -math.inf), math.inf

    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        t = sde.t_max * torch.sigmoid(self._normal(sde, u))
        return t.clamp(sde.t_min, sde.t_max)

    def log_density(self, sde: SDE, t: Tensor) -> Tensor:
        share = t.double() / sde.t_max
        jacobian = -(share * (1 - share)).log() - math.log(sde.t_max)
        density = self._log_normal(sde, torch.logit(share)) + jacobian
        return density.masked_fill((t < sde.t_min) | (t > sde.t_max), -math.inf)
