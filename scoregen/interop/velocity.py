"""Flow networks: flow_matching, torchcfm, Stable Diffusion 3 and Flux, and one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .._checks import check_choice, check_number, check_range
from ..grids import Shifted, UniformTime
from ..models import RawTime, ScoreModel, Velocity
from ..processes import RectifiedSDE
from ..sampling import Sampler
from ..solvers import EULER, ProbabilityFlow
from .card import Adapter, Card, Imported

__all__ = ["from_velocity"]


class _Flow(Adapter):
    """dx/du of a flow network with its own time u, as dx/dt with data at t = 0."""

    def __init__(self, net: Callable[..., Any], data_at: float, time_scale: float, first: str):
        super().__init__(net)
        self.data_at, self.time_scale, self.first = data_at, time_scale, first

    def forward(self, x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        u = self.time_scale * ((1 - clock) if self.data_at else clock)
        out = self.net(x, u, **condition) if self.first == "x" else self.net(u, x, **condition)
        return -out if self.data_at else out


@dataclass(frozen=True)
class _Euler:
    """Euler's method on shifted uniform times."""

    shift: float

    def __call__(self, model: ScoreModel, steps: int) -> tuple[ScoreModel, Sampler]:
        grid = UniformTime(steps)
        return model, Sampler(
            ProbabilityFlow(EULER), grid if self.shift == 1 else Shifted(grid, self.shift)
        )


def from_velocity(
    net: Callable[..., Any],
    data_at: float = 1.0,
    data_range: tuple[float, float] = (0.0, 1.0),
    *,
    shift: float = 1.0,
    time_scale: float = 1.0,
    first: Literal["x", "t"] = "x",
    event: tuple[int, ...] | None = None,
) -> Imported:
    """A network that predicts dx/du along x = u data + (1 - u) noise (Lipman 2023, 2210.02747).

    With data_at = 1 (flow_matching, torchcfm) time runs from noise to data, so t = 1 - u and the
    sign turns; with data_at = 0 (Stable Diffusion 3, Flux) t = u, and the prediction is noise -
    data.

    Args:
        net: callable net(x, u, **condition) with one time per sample, output shaped like x.
        data_at: the network's own time of the data, 0 or 1.
        data_range: least and greatest value of the data, for the card.
        shift: the time shift it is sampled with; 3 for Stable Diffusion 3 at a million pixels.
        time_scale: its time runs from 0 to this; 1000 for diffusers' transformers.
        first: "x" for net(x, u), "t" for net(u, x).
        event: shape of one sample, for the card.

    Raises:
        ValueError: for another data_at: the two ends are the only places data can be.

    >>> import torch
    >>> def net(x, u):  # the exact flow for data at 0: x = (1 - u) noise
    ...     return -x / (1 - u).reshape(-1, 1)
    >>> model = from_velocity(net, data_at=1.0)
    >>> model(torch.ones(1, 2), 0.25).x0
    tensor([[0., 0.]])
    """
    if check_number("data_at", data_at) not in (0, 1):
        raise ValueError(f"data_at must be 0 or 1, the network's own time of the data; {data_at=}")
    check_number("shift", shift, 0.0, open_low=True)
    check_number("time_scale", time_scale, 0.0, open_low=True)
    check_choice("first", first, ("x", "t"))
    low, high = check_range("data_range", data_range)
    card = Card(
        f"a velocity network with data at its time {data_at * time_scale:g}",
        (low, high),
        event,
        times=f"all of [0, {time_scale:g}], on straight paths",
        sampling=f"Euler's method, shift {shift:g}",
        dropped=() if shift == 1 else (f"shift {shift:g}: use Shifted(UniformTime(n), {shift:g})",),
    )
    flow = _Flow(net, float(data_at), float(time_scale), first)
    return Imported(flow, RectifiedSDE(), Velocity(), RawTime(), card, _Euler(float(shift)))
