"""Energies learned by contrast: with their own samples, or with noise of known density."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import (
    check_batch,
    check_count,
    check_kind,
    check_number,
)
from ..densities import Analytic
from ..energies import energy_of
from ..models import ScoreModel, check_model
from ..models.base import evaluating
from ..noise import TorchNoise
from ..noise.sources import normal_like
from ..sampling import Sampler
from .implicit import noised

__all__ = [
    "ContrastiveDivergence",
    "NoiseContrastive",
    "PersistentContrastiveDivergence",
    "ReplayBuffer",
]


def _dreamt(
    sampler: Sampler, model: ScoreModel, x: Tensor, generator: torch.Generator, t: float
) -> Tensor:
    """Where a few MCMC moves take x, without gradients."""
    first = sampler.levels(model.sde)[0].t
    if sampler.solver.direction != "fixed" or abs(first - t) > 1e-9:
        raise ValueError(
            f"the negatives need an MCMC sampler at the objective's own time, t = {t:g}, such as "
            f"Sampler(MALA(step), Constant({t:g}, moves)); got {sampler.solver!r} from {first:g}"
        )
    x, noise = x.detach(), TorchNoise(generator)
    with torch.no_grad(), evaluating(model):
        if x.device.type == "cpu":
            return sampler.run(model, x, noise=noise)
        # a device would have to be waited for; there the loss shows what is not finite
        for step in sampler.iterate(model, x, noise=noise):
            x = step.x
        return x


@dataclass(frozen=True)
class ContrastiveDivergence:
    """E(x) - E(x'), where x' is x after a few MCMC moves (Hinton 2002).

    Its gradient is that of the likelihood once the moves reach equilibrium; with few moves it has
    a bias, except at the exact model, where it has mean zero for every number of moves of an exact
    sampler. The value itself is no measure of progress.

    Args:
        sampler: an MCMC solver on `Constant(t, moves)`.
        t: the time whose marginal is learned; 0 on StaticSDE.
        penalty: times the mean square of both energies, which keeps them from drifting.

    >>> from scoregen import Constant, Sampler
    >>> from scoregen.energies import Potential
    >>> from scoregen.mcmc import MALA
    >>> loss = ContrastiveDivergence(Sampler(MALA(0.1), Constant(0.0, 5)))
    >>> model = Potential(lambda x: x.square().sum(1) / 2)
    >>> loss(model, torch.zeros(4, 2), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([4])
    """

    sampler: Sampler
    t: float = 0.0
    penalty: float = 0.0

    def __post_init__(self) -> None:
        check_kind("sampler", self.sampler, Sampler, "Sampler(MALA(0.1), Constant(0.0, 5))")
        check_number("t", self.t, 0.0)
        check_number("penalty", self.penalty, 0.0)

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One loss per sample, shape (batch,).

        Args:
            model: an energy model.
            x0: clean data, shape (batch, *event).
            generator: source of all noise.
            **condition: bound to the model.
        """
        model = check_model(model).given(**condition)
        x, _ = noised(model, x0, self.t, generator)
        fake = _dreamt(self.sampler, model, x, generator, self.t)
        return _contrast(model, x, fake, self.t, self.penalty)


def _contrast(model: ScoreModel, real: Tensor, fake: Tensor, t: float, penalty: float) -> Tensor:
    up, down = energy_of(model, real, t), energy_of(model, fake, t)
    loss = up - down
    return loss + penalty * (up.square() + down.square()) if penalty else loss


class ReplayBuffer(nn.Module):
    """Past negatives, from which chains go on; a part of them starts anew.

    A module, so that it is saved and moved with a model.

    Args:
        points: first negatives, shape (size, *event).
        restart: probability with which a drawn chain starts anew from a fresh point.

    >>> buffer = ReplayBuffer(torch.zeros(100, 2))
    >>> rows, x = buffer.draw(torch.ones(8, 2), torch.Generator().manual_seed(0))
    >>> x.shape
    torch.Size([8, 2])
    """

    def __init__(self, points: Tensor, restart: float = 0.05):
        super().__init__()
        check_batch(points, "points")
        check_count("the size of the buffer", len(points))
        self.restart = check_number("restart", restart, 0.0, 1.0)
        self.register_buffer("points", points.detach().clone())
        self.points: Tensor

    def draw(self, fresh: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(rows of the buffer without repeats, where their chains start).

        Args:
            fresh: new starts, shape (batch, *event), of which a part `restart` is used.
            generator: source of the choice.
        """
        count = len(fresh)
        if count > len(self.points):
            raise ValueError(f"a batch of {count} needs a buffer as large, got {len(self.points)}")
        device = generator.device
        rows = torch.randperm(len(self.points), generator=generator, device=device)[:count]
        anew = torch.rand(count, generator=generator, device=device) < self.restart
        rows, anew = rows.to(self.points.device), anew.to(fresh.device)
        shape = (count, *[1] * (fresh.dim() - 1))
        return rows, torch.where(anew.reshape(shape), fresh, self.points[rows].to(fresh))

    def keep(self, rows: Tensor, x: Tensor) -> None:
        """Put the ends of the chains back in their rows."""
        self.points[rows] = x.detach().to(self.points)


@dataclass(frozen=True)
class PersistentContrastiveDivergence:
    """E(x) - E(x'), with x' from chains that go on from batch to batch (Tieleman 2008).

    The buffer with restarts is that of Du and Mordatch (2019, 1903.08689); fresh starts are normal
    with the standard deviation of the batch.

    Args:
        sampler: an MCMC solver on `Constant(t, moves)`.
        buffer: the chains; changed by every call.
        t: the time whose marginal is learned; 0 on StaticSDE.
        penalty: times the mean square of both energies.

    >>> from scoregen import Constant, Sampler
    >>> from scoregen.energies import Potential
    >>> from scoregen.mcmc import MALA
    >>> buffer = ReplayBuffer(torch.zeros(100, 2))
    >>> sampler = Sampler(MALA(0.1), Constant(0.0, 5))
    >>> loss = PersistentContrastiveDivergence(sampler, buffer)
    >>> model = Potential(lambda x: x.square().sum(1) / 2)
    >>> loss(model, torch.zeros(4, 2), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([4])
    """

    sampler: Sampler
    buffer: ReplayBuffer
    t: float = 0.0
    penalty: float = 0.0

    def __post_init__(self) -> None:
        check_kind("buffer", self.buffer, ReplayBuffer, "ReplayBuffer(points)")
        check_kind("sampler", self.sampler, Sampler, "Sampler(MALA(0.1), Constant(0.0, 5))")
        check_number("t", self.t, 0.0)
        check_number("penalty", self.penalty, 0.0)

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One loss per sample, shape (batch,); the buffer moves on.

        Args:
            model: an energy model without a condition, since chains outlive their batch.
            x0: clean data, shape (batch, *event).
            generator: source of all noise.

        Raises:
            TypeError: for a condition.
        """
        if condition:
            raise TypeError(
                "chains in a buffer outlive the condition of their batch; use "
                "ContrastiveDivergence, or one buffer per condition"
            )
        x, _ = noised(model, x0, self.t, generator)
        fresh = x.mean(0) + x.std(0, correction=0) * normal_like(x, generator)
        rows, start = self.buffer.draw(fresh, generator)
        fake = _dreamt(self.sampler, model, start, generator, self.t)
        self.buffer.keep(rows, fake)
        return _contrast(model, x, fake, self.t, self.penalty)


@dataclass(frozen=True)
class NoiseContrastive:
    """Separate data from noise: log(1 + exp(-G(x))) + sum_j log(1 + exp(G(y_j))).

    G(u) = -E(u) - log q(u) - log m, with m draws y_j of the noise q per sample (Gutmann and
    Hyvarinen 2010, JMLR 9:297). The minimum is normalised: give the energy a free constant, and it
    becomes log Z. The closer the noise to the data, the better.

    Args:
        noise: an exact density to draw from, such as a Gaussian fitted to the data, on StaticSDE
            or at the same time of the same process.
        draws: m.
        t: the time whose marginal is learned; 0 on StaticSDE.

    >>> from scoregen import Gaussian, StaticSDE
    >>> from scoregen.energies import Potential
    >>> loss = NoiseContrastive(Gaussian(StaticSDE(), torch.zeros(2), 2.0))
    >>> model = Potential(lambda x: x.square().sum(1) / 2)
    >>> loss(model, torch.zeros(4, 2), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([4])
    """

    noise: Analytic
    draws: int = 1
    t: float = 0.0

    def __post_init__(self) -> None:
        check_kind("noise", self.noise, Analytic, "Gaussian(StaticSDE(), mean, variance)")
        check_count("draws", self.draws)
        check_number("t", self.t, 0.0)

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One loss per sample, shape (batch,).

        Args:
            model: an energy model.
            x0: clean data, shape (batch, *event).
            generator: source of the noise.
            **condition: bound to the model.
        """
        model = check_model(model).given(**condition)
        x, _ = noised(model, x0, self.t, generator)
        loss = nn.functional.softplus(-self._logit(model, x))
        for _ in range(self.draws):
            y = self.noise.sample(len(x), self.t, generator=generator).to(x)
            loss = loss + nn.functional.softplus(self._logit(model, y))
        return loss

    def _logit(self, model: ScoreModel, u: Tensor) -> Tensor:
        log_q = self.noise.log_prob(u, self.t) + math.log(self.draws)
        return -energy_of(model, u, self.t) - log_q
