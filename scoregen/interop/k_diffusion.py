"""k-diffusion's denoisers as models, and solvers as functions in k-diffusion's signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_kind,
    check_number,
    check_numbers,
    check_range,
    check_state,
)
from ..grids import Karras, Times
from ..models import X0, Prediction, RawTime, ScoreModel
from ..models.network import check_network
from ..noise import Noise, SampleNoise
from ..processes import EDMSDE, Level
from ..sampling import Sampler, Solver
from ..solvers import ExponentialAB
from .card import Adapter, Card, Imported
from .released import released

__all__ = ["as_k_diffusion", "from_k_diffusion"]


@dataclass(frozen=True)
class _Evaluation:
    """What its train.py samples with: sample_dpmpp_2m_sde, eta 0, solver_type "heun"."""

    def __call__(self, model: ScoreModel, steps: int) -> tuple[ScoreModel, Sampler]:
        return model, Sampler(ExponentialAB(2, "x0"), Karras(steps))


def from_k_diffusion(
    denoiser: Callable[..., Any],
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    data_range: tuple[float, float] = (-1.0, 1.0),
) -> Imported:
    """A denoiser D = denoiser(x, sigma, **extra_args) with x = x0 + sigma eps.

    Any of k-diffusion's wrappers, and its kin in ComfyUI and A1111. Conditions are its extra_args.

    Args:
        denoiser: the wrapped network, not the inner one.
        sigma_min: least noise level; the denoiser's own `sigma_min` unless given.
        sigma_max: greatest noise level; the denoiser's own `sigma_max` unless given.
        data_range: least and greatest value of the data, for the card.

    Raises:
        TypeError: where neither the denoiser nor the call states the range.

    >>> denoiser = lambda x, sigma: x / (1 + sigma.reshape(-1, 1) ** 2)
    >>> model = from_k_diffusion(denoiser, sigma_min=0.01, sigma_max=10.0)
    >>> model(torch.ones(1, 2), 1.0).x0
    tensor([[0.5000, 0.5000]])
    """
    check_network(denoiser, "denoiser")
    check_range("data_range", data_range)
    ends = []
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if value is None and not hasattr(denoiser, name):
            raise TypeError(
                f"{type(denoiser).__name__} has no {name}: give {name}=, from its config"
            )
        stated = getattr(denoiser, name) if value is None else value
        ends.append(check_number(name, stated, 0.0, open_low=True))
    check_number("sigma_max", ends[1], ends[0], open_low=True)
    card = Card(
        f"k-diffusion, {type(denoiser).__name__}",
        data_range,
        times=f"sigma in [{ends[0]:g}, {ends[1]:g}]",
        sampling="dpmpp_2m_sde with eta 0 and solver_type heun, Karras(steps)",
    )
    return Imported(Adapter(denoiser), EDMSDE(*ends), X0(), RawTime(), card, _Evaluation())


class _Denoised(ScoreModel):
    """A k-diffusion denoiser that remembers its last answer, for callbacks."""

    def __init__(self, model: Callable[..., Any], extra: dict[str, Any], sde: EDMSDE):
        super().__init__()
        self.model, self.extra, self.sde = model, extra, sde
        self.last: Tensor | None = None
        self.sigma = 0.0

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        sigma = x.new_full((len(x),), t.sigma)
        x0 = self.model(x, sigma, **self.extra)
        self.last, self.sigma = x0, t.sigma
        return Prediction(self.sde, t, x, x0=x0)


class _Drawn:
    """k-diffusion's noise_sampler(sigma, sigma_next) as a source of noise."""

    def __init__(self, draw: Callable[[Tensor, Tensor], Tensor]):
        self.draw = draw

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        return self.draw(like.new_tensor(t.sigma), like.new_tensor(s.sigma))


def as_k_diffusion(solver: Solver, *, seed: int = 0) -> Callable[..., Tensor]:
    """A solver as sample_x(model, x, sigmas, extra_args, callback, disable).

    For k-diffusion's own programs, ComfyUI (`KSAMPLER(as_k_diffusion(solver))`) and A1111. The
    grid is the sigmas that the program gives. `noise_sampler=` and `seed=` may be given per call.

    Args:
        solver: any solver whose moves go down. A tuned one runs on sigmas that are its own, sigma /
            alpha at its times, and cannot check the network that the program gives.
        seed: of the noise where the program gives no noise_sampler.

    Returns:
        sample(model, x, sigmas, extra_args=None, callback=None, disable=None, *,
        noise_sampler=None, seed=None) -> x at the last sigma.

    >>> from scoregen import DPMSolverPP
    >>> sample = as_k_diffusion(DPMSolverPP(2))
    >>> denoiser = lambda x, sigma: x / (1 + sigma.reshape(-1, 1) ** 2)
    >>> sample(denoiser, torch.ones(1, 2), torch.tensor([1.0, 0.1, 0.0])).shape
    torch.Size([1, 2])
    """
    check_kind("solver", solver, Solver, "DPMSolverPP(2)")
    SampleNoise(seed)  # refuses what is no seed, before a program is under way
    leaving = released(solver)

    @torch.no_grad()
    def sample(
        model: Callable[..., Any],
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
        seed: int = seed,
    ) -> Tensor:
        check_state(x)
        levels = check_numbers("sigmas", sigmas, 0.0)
        positive = [sigma for sigma in levels if sigma > 0]
        if not positive:
            raise ValueError(f"sigmas must fall from a positive value, got {levels}")
        sde = EDMSDE(min(positive) * (1 - 1e-12), max(positive))
        denoised = _Denoised(model, dict(extra_args or {}), sde)
        sampler = Sampler(leaving, Times(*levels))
        noise: Noise = SampleNoise(seed) if noise_sampler is None else _Drawn(noise_sampler)
        before = x
        for step in sampler.iterate(denoised, x, noise=noise):
            if callback is not None and step.index:
                i = step.index - 1
                callback(
                    {
                        "x": before,
                        "i": i,
                        "sigma": sigmas[i],
                        "sigma_hat": sigmas.new_tensor(denoised.sigma),
                        "denoised": denoised.last,
                    }
                )
            before = step.x
        return before

    return sample
