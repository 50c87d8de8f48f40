"""A grid moved towards the noise, as large flow models are sampled."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from .._checks import check_callable, check_number
from ..processes import SDE
from .spaced import Grid

__all__ = ["Shifted"]


@dataclass(frozen=True)
class Shifted:
    """u -> shift u / (1 + (shift - 1) u) of another grid's u = t / t_max (Esser 2024, 2403.03206).

    On straight paths it multiplies sigma / alpha by `shift`: 3 for Stable Diffusion 3 at a million
    pixels, exp(mu) for Flux.

    Args:
        grid: the grid that is moved.
        shift: above 1 towards the noise, below 1 towards the data.
        steps: number of moves; the count of `grid` unless given.

    >>> from scoregen import RectifiedSDE, UniformTime
    >>> Shifted(UniformTime(4), 3.0)(RectifiedSDE()).tolist()
    [1.0, 0.9, 0.75, 0.5, 0.0]
    """

    grid: Grid
    shift: float = 3.0
    steps: int | None = None

    def __post_init__(self) -> None:
        check_callable("grid", self.grid, "(sde) -> times, such as UniformTime(20)")
        check_number("shift", self.shift, 0.0, open_low=True)
        inner: Any = self.grid
        counted = is_dataclass(inner) and any(f.name == "steps" for f in fields(inner))
        if self.steps is None:
            object.__setattr__(self, "steps", inner.steps if counted else None)
        elif not counted:
            raise ValueError(
                f"{type(inner).__name__} has no count of steps to change; shift a grid such as "
                "UniformTime(n)"
            )
        else:
            object.__setattr__(self, "grid", replace(inner, steps=self.steps))

    def __call__(self, sde: SDE) -> Tensor:
        times = self.grid(sde)
        u = times / sde.t_max
        shifted = sde.t_max * (self.shift * u / (1 + (self.shift - 1) * u))
        shifted[u == 1] = sde.t_max  # the ends stay themselves to the last bit
        return shifted
