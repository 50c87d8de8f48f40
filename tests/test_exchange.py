"""Replica exchange: trades at their closed-form rate, and a law that stays."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from scoregen.densities import GaussianMixture
from scoregen.energies import Potential
from scoregen.grids import Constant
from scoregen.mcmc import MALA, Kernel, Langevin, ReplicaExchange, Replicas
from scoregen.noise import SampleNoise
from scoregen.processes import EDMSDE, Level, StaticSDE
from scoregen.sampling import Sampler

F64 = torch.float64
STATIC = StaticSDE()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Stay(Kernel):
    """No move at all: what is left of a transition are the trades."""

    invariant = True

    def transition(self, model: Any, x: Tensor, t: Level, state: Any, noise: Any) -> Any:
        return x, None


class Precision(Potential):
    """N(0, t^2 I) at time t."""

    def __init__(self) -> None:
        super().__init__(lambda x: x.square().sum(1))

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        return x.square().sum(1) / (2 * t.t**2)


@pytest.mark.parametrize(
    ("ratio", "d", "exact"), [(4.0, 1, 0.59033), (1.5, 10, 0.53314), (1.1, 100, 0.63459)]
)
def test_trades_are_accepted_at_their_rate(ratio: float, d: int, exact: float) -> None:
    """2 P(F_{d,d} > l1 / l2) between precisions l1 > l2; five standard errors."""
    assert 2 * stats.f.sf(ratio, d, d) == pytest.approx(exact, abs=1e-5)
    n, cold = 20_000, 1 / math.sqrt(ratio)
    kernel = ReplicaExchange(Stay(), (1.0,))
    t = STATIC.level(cold)
    state = Replicas((normal(n, d, seed=1),), 0, torch.zeros(n, 1))
    out, after = kernel.step(Precision(), cold * normal(n, d), t, t, state, SampleNoise(0))
    rate = after.acceptance[:, 0]
    assert float(rate.mean()) == pytest.approx(exact, abs=5 * float(rate.std()) / math.sqrt(n))
    # the trade leaves N(0, cold^2): chi2 of all coordinates, false alarm 1e-6
    p = float(stats.chi2.cdf(float(out.square().sum()) / cold**2, n * d))
    assert 2 * min(p, 1 - p) > 1e-6
    # what left came from the other, row by row
    moved = (out != cold * normal(n, d)).any(1)
    torch.testing.assert_close(out[moved], state.above[0][moved])
    assert float(moved.double().mean()) == pytest.approx(exact, abs=6 * 0.5 / math.sqrt(n))


@pytest.mark.slow
def test_chains_cross_between_modes_that_one_level_keeps_apart() -> None:
    """Modes at -3 and 3 with weights .2 and .8, all chains started in the smaller one."""
    target = GaussianMixture(
        EDMSDE(), torch.tensor([0.2, 0.8]), torch.tensor([[-3.0], [3.0]]), torch.tensor([0.1, 0.1])
    )
    start = torch.full((300, 1), -3.0, dtype=F64)
    step = MALA(lambda t: 0.4 * (0.1 + t.sigma**2))
    alone = Sampler(step, Constant(0.1, 60)).run(target, start, noise=SampleNoise(0))
    assert (alone < 0).all()
    kernel = ReplicaExchange(step, (0.4, 0.9, 1.8, 3.5))
    out = Sampler(kernel, Constant(0.1, 200)).run(target, start, noise=SampleNoise(0))
    share = float((out > 0).double().mean())
    # standard error .023; the chains have forgotten their start
    assert share == pytest.approx(0.8, abs=0.14)
    assert out.abs().mean() == pytest.approx(3.0, abs=0.2)


def test_bad_ladders_are_refused() -> None:
    with pytest.raises(ValueError, match="exactly invariant"):
        ReplicaExchange(Langevin(0.1), (1.0,))
    for times in ((), (1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="rise"):
            ReplicaExchange(MALA(0.1), times)
    assert not ReplicaExchange(MALA(0.1), (1.0,)).invariant
    model = GaussianMixture(EDMSDE(), torch.ones(1), torch.zeros(1, 1), torch.ones(1))
    with pytest.raises(ValueError, match="above t"):
        Sampler(ReplicaExchange(MALA(0.1), (1.0,)), Constant(2.0, 2)).sample(model, (2, 1))
