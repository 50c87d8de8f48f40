"""What a network is told the time is: `clock(sde, t, x)` gives one number per sample, (batch,)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import check_number
from ..processes import SDE, DiscreteSDE, Level

__all__ = ["Clock", "HalfLogSNR", "Index", "LogSigma", "RawTime"]

Clock = Callable[[SDE, Level, Tensor], Tensor]


def _per_sample(value: Any, x: Tensor) -> Tensor:
    """A float, or one value per sample, as a (batch,) tensor in x's dtype."""
    if isinstance(value, Tensor):
        return value.reshape(-1).expand(len(x)).to(x.dtype)
    return torch.full((len(x),), value, dtype=x.dtype, device=x.device)


def _log(value: Any) -> Any:
    return value.log() if isinstance(value, Tensor) else math.log(value)


@dataclass(frozen=True)
class HalfLogSNR:
    """scale * log(alpha / sigma): the same clock on every process.

    >>> HalfLogSNR()(None, Level(0.5, 1.0, 1.0, 0.0), torch.zeros(2, 3))
    tensor([0., 0.])
    """

    scale: float = 1.0

    def __call__(self, sde: SDE, t: Level, x: Tensor) -> Tensor:
        if not isinstance(t.lam, Tensor) and math.isinf(t.lam):
            raise ValueError(
                f"log(alpha / sigma) is infinite at t = {t.t:g}; stay inside (0, t_max), "
                "or give the network another clock"
            )
        return _per_sample(t.lam * self.scale, x)


@dataclass(frozen=True)
class RawTime:
    """scale * t, the time itself; networks with transformer-like embeddings want scale = 1000.

    >>> RawTime(scale=1000.0)(None, Level(0.5, 0.5, 0.5, 0.0), torch.zeros(2, 3))
    tensor([500., 500.])
    """

    scale: float = 1.0

    def __call__(self, sde: SDE, t: Level, x: Tensor) -> Tensor:
        return _per_sample(t.t * self.scale, x)


@dataclass(frozen=True)
class LogSigma:
    """scale * log(sigma / alpha); EDM's c_noise has scale = 1/4 (Karras et al. 2022, 2206.00364).

    >>> LogSigma(0.25)(None, Level(2.0, 1.0, 2.0, -0.6931), torch.zeros(2, 3))
    tensor([0.1733, 0.1733])
    """

    scale: float = 0.25

    def __call__(self, sde: SDE, t: Level, x: Tensor) -> Tensor:
        if not isinstance(t.lam, Tensor) and math.isinf(t.lam):
            raise ValueError(
                f"log(sigma / alpha) is infinite at t = {t.t:g}; stay inside (0, t_max)"
            )
        return _per_sample(-t.lam * self.scale, x)


@dataclass(frozen=True)
class Index:
    """Position of t among the knots of a chain, 0 .. N - 1, as integers.

    Args:
        fractional: answer between the knots too, as a floating-point position, instead of refusing.

    >>> from scoregen import DiscreteVPSDE
    >>> sde = DiscreteVPSDE.linear(10)
    >>> Index()(sde, sde.level(0.3), torch.zeros(2, 3))
    tensor([2, 2])
    """

    fractional: bool = False

    def __call__(self, sde: SDE, t: Level, x: Tensor) -> Tensor:
        if not isinstance(sde, DiscreteSDE):
            raise TypeError(f"Index needs a process with knots, got {type(sde).__name__}")
        if isinstance(t.t, Tensor):
            # float32 times still find their knot: snap by more than their rounding
            position = sde.index(t.t.double())
            label = _per_sample(position, x.double())
            return label.to(x.dtype) if self.fractional else label.round().long()
        position = t.t * sde.steps - 1
        near = round(position)
        if abs(position - near) < 1e-6:
            position = near
        elif not self.fractional:
            raise ValueError(
                f"t = {t.t:.9g} lies between the knots of the chain; the nearest are "
                f"{math.floor(position + 1) / sde.steps:.9g} and "
                f"{math.ceil(position + 1) / sde.steps:.9g}. Use Knots() or Strided(steps), "
                "or Index(fractional=True)"
            )
        check_number("the index of t among the knots", position, 0, sde.steps - 1)
        label = _per_sample(float(position), x)
        return label if self.fractional else label.round().long()
