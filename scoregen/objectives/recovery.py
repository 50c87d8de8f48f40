"""Diffusion recovery likelihood: energies learned from one level of noise to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import (
    check_batch,
    check_callable,
    check_choice,
    check_count,
    check_kind,
    check_number,
)
from ..energies import EnergyModel, energy_of
from ..grids import Grid
from ..mcmc import MALA
from ..models import ScoreModel, check_model
from ..models.base import evaluating
from ..noise import TorchNoise
from ..noise.sources import normal_like
from ..processes import Level, StaticSDE

__all__ = ["DiffusionRecovery"]


class _Recovered(EnergyModel):
    """-log p(x_s | x_t) = E(x_s, s) + |x_t - a x_s|^2 / (2 v) + const, row by row."""

    def __init__(self, model: ScoreModel, noisy: Tensor, a: float, v: float):
        super().__init__()
        self.model, self.sde = model, model.sde
        self.noisy, self.a, self.v = noisy, a, v

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        gap = (self.noisy - self.a * x).square().reshape(len(x), x.shape[1:].numel()).sum(1)
        return energy_of(self.model, x, t) + gap / (2 * self.v)


@dataclass(frozen=True)
class DiffusionRecovery:
    """E(x_s, s) - E(x_s', s), with x_s' from the model's own law of x_s given x_t.

    Maximum likelihood of p(x_s | x_t), proportional to exp(-E(x_s, s) - |x_t - a x_s|^2 / 2v), with
    a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2, for neighbours (t, s) of a grid
    (Gao et al. 2021, 2012.08125). Far less rugged than exp(-E) itself, so that short chains mix; a
    pair sees the weights of modes that x_t leaves open, and the pairs together link them all. Where
    chains are too short the gradient has a bias; from the data it has none at the exact energy.
    The value itself is no measure of progress.

    Args:
        grid: falling times with noise at all of them, such as UniformLam(6, stop=0.01).
        moves: of MALA on every conditional.
        step: of MALA, as a share of v: h = step v.
        start: "noisy", at x_t as published; "data", at x_s, a contrastive divergence.

    >>> from scoregen import Gaussian, UniformLam, VPSDE
    >>> from scoregen.energies import Mixture
    >>> model = Mixture(Gaussian(VPSDE(), torch.zeros(2), 1.0))
    >>> loss = DiffusionRecovery(UniformLam(6, stop=0.01), moves=3)
    >>> loss(model, torch.zeros(5, 2), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([5])
    """

    grid: Grid
    moves: int = 20
    step: float = 0.3
    start: Literal["noisy", "data"] = "noisy"

    def __post_init__(self) -> None:
        check_callable("grid", self.grid, "sde -> falling times, such as UniformLam(6, stop=0.01)")
        check_count("moves", self.moves)
        check_number("step", self.step, 0.0, open_low=True)
        check_choice("start", self.start, ("noisy", "data"))

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One loss per sample, shape (batch,), all at one pair of levels.

        Args:
            model: an energy model on a process with noise.
            x0: clean data, shape (batch, *event).
            generator: source of the pair and of all noise.
            **condition: bound to the model.

        Raises:
            ValueError: for a grid that rises, or reaches a level without noise.
        """
        check_model(model)
        check_batch(x0, "x0")
        check_kind("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
        model = model.given(**condition)
        levels = self._levels(model)
        k = int(torch.randint(len(levels) - 1, (), generator=generator, device=generator.device))
        t, s = levels[k], levels[k + 1]
        e0, e1 = (normal_like(x0, generator) for _ in range(2))
        a = t.alpha / s.alpha
        v = t.sigma**2 - (a * s.sigma) ** 2
        real = s.alpha * x0 + s.sigma * e0
        noisy = a * real + math.sqrt(v) * e1
        fake, state = (noisy if self.start == "noisy" else real), None
        kernel, noise = MALA(self.step * v), TorchNoise(generator)
        with torch.no_grad(), evaluating(model):
            law = _Recovered(model, noisy, a, v)
            for _ in range(self.moves):
                fake, state = kernel.step(law, fake, s, s, state, noise)
        return energy_of(model, real, s) - energy_of(model, fake.detach(), s)

    def _levels(self, model: ScoreModel) -> list[Level]:
        if isinstance(model.sde, StaticSDE):
            raise ValueError(
                "StaticSDE has no noise to recover from; use a process such as VPSDE()"
            )
        levels = model.sde.levels(self.grid(model.sde))
        sigmas = [level.sigma / level.alpha if level.alpha else math.inf for level in levels]
        if len(levels) < 2 or sigmas[-1] == 0 or sorted(set(sigmas), reverse=True) != sigmas:
            raise ValueError(
                "the grid must fall and keep some noise at every time, such as "
                f"UniformLam(6, stop=0.01); got times {[level.t for level in levels]}"
            )
        return list(levels)
