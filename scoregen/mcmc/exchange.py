"""Replica exchange: chains at several noise levels that trade places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_numbers
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level
from .kernel import Kernel
from .metropolis import column

__all__ = ["ReplicaExchange", "Replicas"]


class Replicas(NamedTuple):
    """The chains above the one that is sampled.

    Attributes:
        above: their states, from the lowest noise level to the highest, each shaped like x.
        move: moves so far; even and odd moves trade different pairs.
        acceptance: probability of the last trade of each pair, shape (batch, pairs), nan where a
            pair was not up.

    >>> Replicas((), 0, torch.zeros(1, 0)).move
    0
    """

    above: tuple[Tensor, ...]
    move: int
    acceptance: Tensor


@dataclass(frozen=True)
class ReplicaExchange(Kernel):
    """A chain at the sampler's level, and chains at noisier levels that trade places with it.

    After a move of the kernel at every level, neighbours (a, b) trade x_a and x_b with probability
    min(1, exp(E_a(x_a) + E_b(x_b) - E_a(x_b) - E_b(x_a))) (Swendsen and Wang 1986,
    doi:10.1103/PhysRevLett.57.2607; Geyer 1991), even pairs and odd pairs in turn. The joint law of
    all levels stays as it is; that of the sampled level alone does so once the others have
    reached theirs, which all start at the first x, so `invariant` is not claimed. Noise levels
    flatten the modes, so a chain crosses between them above and comes down.

    Args:
        kernel: an invariant kernel, with a step rule that follows the level.
        times: of the noisier levels, rising, all above the sampler's own.

    >>> from scoregen import EDMSDE, MALA, Constant, Gaussian, Sampler
    >>> model = Gaussian(EDMSDE(), torch.zeros(1), 1.0)
    >>> chain = ReplicaExchange(MALA(lambda t: 0.5 * (1 + t.sigma**2)), (1.0, 3.0))
    >>> Sampler(chain, Constant(0.1, 5)).sample(model, (4, 1), seed=0).shape
    torch.Size([4, 1])
    """

    kernel: Kernel
    times: tuple[float, ...]
    nfe = None

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel) or not self.kernel.invariant:
            raise ValueError(
                "the kernel must leave each level exactly invariant, like MALA or HMC at "
                f"temperature 1, got {self.kernel!r}"
            )
        times = list(check_numbers("times", self.times, 0.0, open_low=True))
        if not times or sorted(set(times)) != times:
            raise ValueError(f"times must rise, from one of them on, got {self.times!r}")

    def transition(
        self, model: ScoreModel, x: Tensor, t: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if self.times[0] <= t.t:
            raise ValueError(
                f"the noisier levels must lie above t = {t.t:g}, got times {self.times}"
            )
        levels = [t, *(model.level(time, x) for time in self.times)]
        before = Replicas((x,) * len(self.times), 0, x.new_zeros(())) if state is None else state
        places = [
            self.kernel.step(model, y, level, level, None, noise)[0]
            for y, level in zip((x, *before.above), levels, strict=True)
        ]
        log_u = torch.special.log_ndtr(noise(x.new_zeros(len(x), len(self.times)), t, t))
        rates = torch.full_like(log_u, torch.nan)
        for pair in range(before.move % 2, len(self.times), 2):
            low, high = places[pair], places[pair + 1]
            # E_a(x_a) - E_a(x_b) + E_b(x_b) - E_b(x_a), by differences: a score is enough
            log_ratio = model.energy_difference(low, high, levels[pair + 1])
            log_ratio = log_ratio - model.energy_difference(low, high, levels[pair])
            rates[:, pair] = log_ratio.clamp(max=0).exp()
            trade = column(log_u[:, pair] < log_ratio, low)
            places[pair] = torch.where(trade, high, low)
            places[pair + 1] = torch.where(trade, low, high)
        return places[0], Replicas(tuple(places[1:]), before.move + 1, rates)
