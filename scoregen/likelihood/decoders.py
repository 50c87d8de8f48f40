"""How the last term of the bound sees data: as real values, or as levels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.special import log_ndtr

from .._checks import check_count, check_number, check_same_shape
from .levels import bin_width, on_levels
from .terms import half_sum

__all__ = ["Decoder", "DiscretisedGaussian", "GaussianDecoder"]


class Decoder(ABC):
    """p(x_0 | x_1), a Gaussian around the model's x0_hat at the first knot.

    Args:
        variance: of the Gaussian; the chain's (beta_1, or the learned one) unless given.

    >>> isinstance(GaussianDecoder(), Decoder)
    True
    """

    variance: float | None

    def log_variance(self, chain: Any) -> Any:
        """The decoder's own log variance, or the chain's where it has none."""
        return chain if self.variance is None else math.log(self.variance)

    @abstractmethod
    def log_prob(self, x: Tensor, mean: Tensor, log_var: Any) -> Tensor:
        """log p(x_0 | x_1) in nats, shape (batch,)."""


@dataclass(frozen=True)
class GaussianDecoder(Decoder):
    """log N(x_0; x0_hat, variance): a density, for real values.

    >>> x = torch.zeros(1, 2)
    >>> round(float(GaussianDecoder(1.0).log_prob(x, x, 0.0)), 4)
    -1.8379
    """

    variance: float | None = None

    def __post_init__(self) -> None:
        if self.variance is not None:
            check_number("variance", self.variance, 0.0, open_low=True)

    def log_prob(self, x: Tensor, mean: Tensor, log_var: Any) -> Tensor:
        check_same_shape("the mean", mean, x)
        log_var = torch.as_tensor(log_var, dtype=x.dtype, device=x.device)
        terms = (x - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)
        return -half_sum(terms)


@dataclass(frozen=True)
class DiscretisedGaussian(Decoder):
    """log of the probability that the Gaussian gives to x_0's bin: for data on levels.

    P(level) = Phi((x_0 + w/2 - x0_hat) / std) - Phi((x_0 - w/2 - x0_hat) / std), with the lowest
    and the highest bin open, so that the levels' probabilities sum to 1 (Ho et al. 2020,
    2006.11239, eq. 13). Computed in float64 in log space, far tails included.

    Args:
        bins: the number of levels: 256 for 8-bit images, 17 for the digits.
        data_range: the lowest and the highest level.
        variance: of the Gaussian; the chain's unless given.

    >>> decoder = DiscretisedGaussian(17, (-1.0, 1.0))
    >>> levels = torch.linspace(-1, 1, 17).reshape(17, 1)
    >>> log_p = decoder.log_prob(levels, torch.zeros(17, 1), math.log(0.1))
    >>> round(float(log_p.exp().sum()), 6)
    1.0
    """

    bins: int
    data_range: tuple[float, float]
    variance: float | None = None

    def __post_init__(self) -> None:
        check_count("bins", self.bins, 2)
        bin_width(self.bins, self.data_range)
        if self.variance is not None:
            check_number("variance", self.variance, 0.0, open_low=True)

    def log_prob(self, x: Tensor, mean: Tensor, log_var: Any) -> Tensor:
        """log P(level of x) in nats, shape (batch,).

        Raises:
            ValueError: if a value is not on a level.
        """
        check_same_shape("the mean", mean, x)
        width, level = on_levels(x, self.bins, self.data_range)
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # which MPS has not
        log_var = torch.as_tensor(log_var, dtype=wide, device=x.device)
        centred = self.data_range[0] + width * level.to(wide) - mean.to(wide)
        scale = (-log_var / 2).exp()
        upper = torch.where(level == self.bins - 1, math.inf, (centred + width / 2) * scale)
        lower = torch.where(level == 0, -math.inf, (centred - width / 2) * scale)
        # both ends in the lower tail, where log Phi keeps its digits
        flip = centred > 0
        first = torch.where(flip, -upper, lower)
        second = torch.where(flip, -lower, upper)
        top = log_ndtr(second)
        logs = top + torch.log(-torch.expm1(log_ndtr(first) - top))
        return 2 * half_sum(logs).to(x.dtype)
