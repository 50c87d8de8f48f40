"""The time as a network reads it: `clock(sde, t, x)` gives one number per sample, (batch,)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_flag,
    check_number,
)
from ..processes import SDE, DiscreteSDE, Level

__all__ = ["Clock", "HalfLogSNR", "Index", "LogSigma", "RawTime"]

Clock = Callable[[SDE, Level, Tensor], Tensor]


def _per_sample(value: Any, x: Tensor) -> Tensor:
    """A float, or one value per sample, as a (batch,) tensor in x's dtype, float32 at least.

    Half precision would round the time: bfloat16 has 1000 for 999.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if isinstance(value, Tensor):
        return value.reshape(-1).expand(len(x)).to(dtype)
    return torch.full((len(x),), value, dtype=dtype, device=x.device)


def _check_scale(scale: float) -> None:
    check_number("scale", scale)
    if scale == 0:
        raise ValueError("scale must not be 0: the network would read one time everywhere")


@dataclass(frozen=True)
class HalfLogSNR:
    """scale * log(alpha / sigma): the same clock on every process.

    >>> HalfLogSNR()(None, Level(0.5, 1.0, 1.0, 0.0), torch.zeros(2, 3))
    tensor([0., 0.])
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_scale(self.scale)

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

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, sde: SDE, t: Level, x: Tensor) -> Tensor:
        return _per_sample(t.t * self.scale, x)


@dataclass(frozen=True)
class LogSigma:
    """scale * log(sigma / alpha); EDM's c_noise has scale = 1/4 (Karras et al. 2022, 2206.00364).

    >>> LogSigma(0.25)(None, Level(2.0, 1.0, 2.0, -0.6931), torch.zeros(2, 3))
    tensor([0.1733, 0.1733])
    """

    scale: float = 0.25

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, sde: SDE, t: Level, x: Tensor) -> Tensor:
        if not isinstance(t.lam, Tensor) and math.isinf(t.lam):
            raise ValueError(
                f"log(sigma / alpha) is infinite at t = {t.t:g}; stay inside (0, t_max)"
            )
        return _per_sample(-t.lam * self.scale, x)


@dataclass(frozen=True)
class Index:
    """scale times the position of t among the knots of a chain, 0 .. N - 1.

    Integers where scale is 1 and `fractional` is off; floating point otherwise.

    Args:
        fractional: answer between the knots too, as a floating-point position, instead of refusing.
        scale: factor on the position; 1000 / N for networks trained on N knots whose clock was
            rescaled to 1000 (improved-diffusion's `rescale_timesteps`).

    >>> from scoregen import DiscreteVPSDE
    >>> sde = DiscreteVPSDE.linear(10)
    >>> Index()(sde, sde.level(0.3), torch.zeros(2, 3))
    tensor([2, 2])
    """

    fractional: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_flag("fractional", self.fractional)
        _check_scale(self.scale)

    def __call__(self, sde: SDE, t: Level, x: Tensor) -> Tensor:
        if not isinstance(sde, DiscreteSDE):
            raise TypeError(f"Index needs a process with knots, got {type(sde).__name__}")
        whole = self.scale == 1.0 and not self.fractional
        if isinstance(t.t, Tensor):
            # float32 times still find their knot: the label is the nearest
            position = _per_sample(t.t * sde.steps - 1, x)
            if not self.fractional:
                position = position.round()
            return position.long() if whole else position * self.scale
        place: float = t.t * sde.steps - 1
        near = round(place)
        if abs(place - near) < 1e-6:
            place = near
        elif not self.fractional:
            raise ValueError(
                f"t = {t.t:.9g} lies between the knots of the chain; the nearest are "
                f"{math.floor(place + 1) / sde.steps:.9g} and "
                f"{math.ceil(place + 1) / sde.steps:.9g}. Use Knots() or Strided(steps), "
                "or Index(fractional=True)"
            )
        check_number("the index of t among the knots", place, 0, sde.steps - 1)
        label = _per_sample(float(place), x)
        return label.long() if whole else label * self.scale
