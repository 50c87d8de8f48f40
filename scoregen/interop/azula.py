"""azula's denoisers as models, and models as azula's denoisers."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_callable, check_number, shown
from ..grids import UniformTime
from ..models import X0, RawTime, ScoreModel, check_model
from ..processes import SDE
from ..sampling import Sampler
from ..solvers import DDIM
from .card import Adapter, Card, Imported

__all__ = ["ScheduleSDE", "as_azula", "from_azula"]


@dataclass(frozen=True)
class ScheduleSDE(SDE):
    """A process from any function t -> (alpha, sigma) on [0, t_max].

    Args:
        schedule: elementwise, differentiable; sigma may be above 0 at t = 0, as azula's are.
        t_min: smallest positive time at which a network is evaluated.
        t_max: where sampling starts.

    Raises:
        TypeError: for a schedule that gives no pair.
        ValueError: for one that is not finite at 0 or t_max.

    >>> sde = ScheduleSDE(lambda t: (1 - t, t + 1e-3))
    >>> sde.level(0.0).sigma
    0.001
    """

    schedule: Callable[[Tensor], tuple[Tensor, Tensor]]
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_callable("schedule", self.schedule, "t -> (alpha, sigma)")
        last = check_number("t_max", self.t_max, 0.0, open_low=True)
        check_number("t_min", self.t_min, 0.0, last, open_high=True)
        for t in (0.0, last):
            with torch.no_grad():
                scales = self.schedule(torch.tensor(t, dtype=torch.float64))
            if not isinstance(scales, tuple | list) or len(scales) != 2:
                raise TypeError(f"schedule must give (alpha, sigma) of t, got {shown(scales)}")
            check_number(f"the schedule's alpha at t = {t:g}", scales[0])
            check_number(f"the schedule's sigma at t = {t:g}", scales[1])

    def alpha(self, t: Tensor) -> Tensor:
        return self.schedule(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.schedule(t)[1]

    def prior_std(self, t: float) -> float:
        """That of x_t for data of unit variance, which azula's samplers start from."""
        level = self.level(t)
        return math.hypot(level.alpha, level.sigma)


class _Mean(Adapter):
    """The mean of the posterior that an azula denoiser returns."""

    def forward(self, x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        return self.net(x, clock, **condition).mean


@dataclass(frozen=True)
class _Uniform:
    """DDIMSampler on azula's times, linspace(1, 0)."""

    def __call__(self, model: ScoreModel, steps: int) -> tuple[ScoreModel, Sampler]:
        return model, Sampler(DDIM(), UniformTime(steps))


def from_azula(denoiser: nn.Module) -> Imported:
    """A denoiser of azula: denoiser(x, t).mean is x0, denoiser.schedule(t) the pair of scales.

    Args:
        denoiser: any azula `Denoiser` that takes one time per sample; conditions are its keyword
            arguments.

    Raises:
        TypeError: for an object without a schedule.

    >>> import torch
    >>> from types import SimpleNamespace
    >>> class Denoiser(nn.Module):  # stands for one of azula's
    ...     def schedule(self, t):
    ...         return torch.ones_like(t), 0.01 + t
    ...     def forward(self, x, t):
    ...         return SimpleNamespace(mean=x / (1 + self.schedule(t)[1].reshape(-1, 1) ** 2))
    >>> model = from_azula(Denoiser())
    >>> model(torch.ones(1, 2), 0.99).x0
    tensor([[0.5000, 0.5000]])
    """
    schedule = getattr(denoiser, "schedule", None)
    if not callable(schedule):
        raise TypeError(
            f"need an azula Denoiser with a schedule, got {type(denoiser).__name__}; wrap a "
            "backbone in azula's KarrasDenoiser(backbone, schedule) first"
        )
    sde = ScheduleSDE(schedule)
    first, last = sde.level(0.0), sde.level(1.0)
    card = Card(
        f"azula, {type(denoiser).__name__}, {type(schedule).__name__}",
        times=f"t in [0, 1], sigma / alpha from {first.sigma / first.alpha:g} to "
        f"{last.sigma / last.alpha if last.alpha else math.inf:g}",
        sampling="DDIM on uniform times, which end at sigma(0)",
        dropped=(f"the noise left at the end, sigma(0) = {first.sigma:g}, stays here too",),
    )
    return Imported(_Mean(denoiser), sde, X0(), RawTime(), card, _Uniform())


def as_azula(model: ScoreModel) -> nn.Module:
    """A model as an azula `Denoiser` on its own process, for azula's samplers and guidance.

    azula's times run over [0, 1]: t there is t_max t here. Times at which the process has no noise
    are moved up to t_min.

    Args:
        model: any score model; keyword arguments are its condition.

    Raises:
        ImportError: without azula.

    >>> from scoregen import VPSDE, Gaussian
    >>> as_azula(Gaussian(VPSDE(), torch.zeros(2), 1.0))  # doctest: +SKIP
    """
    sde = check_model(model).sde
    try:
        denoise: Any = importlib.import_module("azula.denoise")
        base: Any = importlib.import_module("azula.noise").Schedule
    except ImportError as error:
        raise ImportError("as_azula needs azula: pip install azula") from error

    def time(t: Tensor) -> Tensor:
        return (t * sde.t_max).clamp(min=sde.t_min)

    class ScoregenSchedule(base):
        """alpha and sigma of the process."""

        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            at = time(t)
            return sde.alpha(at).to(t.dtype), sde.sigma(at).to(t.dtype)

    class ScoregenDenoiser(denoise.Denoiser):
        """A scoregen model behind azula's interface."""

        def __init__(self) -> None:
            super().__init__()
            self.model, self.schedule = model, ScoregenSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **condition: Any) -> Any:
            return denoise.DiracPosterior(self.model(x_t, time(t), **condition).x0)

    return ScoregenDenoiser()
