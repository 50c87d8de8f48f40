"""Rank tests: an exact draw at a uniform place in a reversible chain has a uniform rank.

Besag and Clifford (1989), in stages after Gandy and Scott (2020, 2001.06465): n, 4 n, 16 n rows,
going on while p < .01, rejecting at the last stage alone and with p < 1e-9.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from scoregen.densities import GaussianMixture
from scoregen.mcmc import HMC, MALA, NUTS, Kernel, Langevin, ReplicaExchange, Replicas
from scoregen.models import Prediction, ScoreModel
from scoregen.noise import TorchNoise
from scoregen.processes import EDMSDE, Level, StaticSDE

F64 = torch.float64
STATIC = StaticSDE()
ZERO = STATIC.level(0.0)
LENGTH = 5


def rank_law(step: np.ndarray, start: np.ndarray, length: int) -> np.ndarray:
    """P(rank of the exact draw) in a chain run both ways from a uniform place, by enumeration."""
    law, states = np.zeros(length), range(len(start))
    for place in range(length):
        sides = (place, length - 1 - place)
        for x in states:
            for rest in itertools.product(states, repeat=length - 1):
                weight = start[x] / length
                for side in (rest[: sides[0]], rest[sides[0] :]):
                    here = x
                    for there in side:
                        weight *= step[here, there]
                        here = there
                below, ties = sum(r < x for r in rest), sum(r == x for r in rest)
                law[below : below + ties + 1] += weight / (ties + 1)
    return law


def metropolis(start: np.ndarray, power: float) -> np.ndarray:
    """A chain on three states that proposes the others alike and accepts with ratio^power."""
    step = np.minimum(1.0, (start[None, :] / start[:, None]) ** power) / 2
    np.fill_diagonal(step, 0.0)
    np.fill_diagonal(step, 1 - step.sum(1))
    return step


def test_ranks_are_uniform_by_enumeration() -> None:
    start = np.array([0.2, 0.5, 0.3])
    right = rank_law(metropolis(start, 1.0), start, 4)
    np.testing.assert_allclose(right, 0.25, atol=1e-15)
    wrong = rank_law(metropolis(start, 0.5), start, 4)
    assert abs(wrong - 0.25).max() > 0.005


def ranks(kernel: Kernel, target: Any, hidden: ScoreModel, n: int, seed: int) -> Tensor:
    """Rank of cos(2 x) of an exact draw among a chain of LENGTH states, for n rows."""
    noise, g = TorchNoise(torch.Generator().manual_seed(seed)), torch.Generator().manual_seed(seed)
    exact = target.sample(n, generator=g)
    place = torch.randint(LENGTH, (n,), generator=g)
    lower, ties = torch.zeros(n, dtype=F64), torch.zeros(n, dtype=F64)
    for side in (place, LENGTH - 1 - place):
        x, state = exact, None
        for k in range(LENGTH - 1):
            x, state = kernel.step(hidden, x, ZERO, ZERO, state, noise)
            here, there = (torch.cos(2 * v[:, 0]) for v in (exact, x))
            lower = lower + ((k < side) & (there < here))
            ties = ties + ((k < side) & (there == here))
    # chains that stayed tie with the draw, whose place among them is uniform
    return lower + (torch.rand(n, generator=g, dtype=F64) * (ties + 1)).floor()


def p_value(found: Tensor) -> float:
    counts = torch.bincount(found.long(), minlength=LENGTH)
    return float(stats.chisquare(counts.numpy()).pvalue)


def rejected(draw: Callable[[int, int], Tensor], n: int) -> bool:
    for stage in range(3):
        p = p_value(draw(n * 4**stage, stage))
        if p >= 0.01:
            return False
    return p < 1e-9


TARGET = GaussianMixture(
    STATIC, torch.tensor([0.4, 0.6]), torch.tensor([[-1.0], [1.2]]), torch.tensor([0.3, 0.6])
)


class Bare(ScoreModel):
    """The score alone: acceptance by the line integral."""

    def __init__(self) -> None:
        super().__init__()
        self.sde = STATIC

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        return Prediction(STATIC, t, x, score=TARGET.predict(x, t).score)


@pytest.mark.parametrize(
    ("kernel", "model"),
    [
        (MALA(0.8), TARGET),
        (MALA(0.8), Bare()),
        (HMC(0.7, leapfrog_steps=3), TARGET),
        (NUTS(0.6, depth=3), TARGET),
    ],
    ids=["mala", "mala by line integral", "hmc", "nuts"],
)
def test_reversible_kernels_pass(kernel: Kernel, model: ScoreModel) -> None:
    assert not rejected(lambda n, seed: ranks(kernel, TARGET, model, n, seed), 4000)


def test_wrong_kernels_are_rejected() -> None:
    class Half(MALA):
        """The square root of the right acceptance."""

        def propose(self, *arguments: Any) -> Any:
            there, ratio, error = super().propose(*arguments)
            return there, ratio / 2, error

    for kernel in (Half(0.8), Langevin(0.8)):
        assert p_value(ranks(kernel, TARGET, TARGET, 64_000, 0)) < 1e-9


# Replica exchange: one trade on a grid, without randomness, then chains from exact starts

NOISY = GaussianMixture(
    EDMSDE(), torch.tensor([0.4, 0.6]), torch.tensor([[-1.0], [1.2]]), torch.tensor([0.1, 0.2])
)


class Still(Kernel):
    invariant = True

    def transition(self, model: Any, x: Tensor, t: Level, state: Any, noise: Any) -> Any:
        return x, None


def traded(acceptance: Tensor) -> float:
    """Change of E cos 2x at the lower level by one trade of independent exact draws."""
    x = torch.linspace(-6, 7, 401, dtype=F64)
    low, high = (NOISY.log_prob(x.unsqueeze(1), t).softmax(0) for t in (0.3, 1.0))
    gain = torch.cos(2 * x).unsqueeze(0) - torch.cos(2 * x).unsqueeze(1)
    return float((low.unsqueeze(1) * high.unsqueeze(0) * acceptance.reshape(401, 401) * gain).sum())


def test_one_trade_leaves_both_levels_as_they_are() -> None:
    x = torch.linspace(-6, 7, 401, dtype=F64)
    below = x.repeat_interleave(401).unsqueeze(1)
    above = x.repeat(401).unsqueeze(1)
    t = NOISY.sde.level(0.3)
    state = Replicas((above,), 0, torch.zeros(len(below), 1))
    kernel = ReplicaExchange(Still(), (1.0,))
    _, after = kernel.step(NOISY, below, t, t, state, lambda like, *_: torch.zeros_like(like))
    assert abs(traded(after.acceptance[:, 0])) < 1e-12
    logs = [NOISY.log_prob(at, time) for time in (0.3, 1.0) for at in (below, above)]
    ratio = logs[1] + logs[2] - logs[0] - logs[3]
    torch.testing.assert_close(after.acceptance[:, 0], ratio.clamp(max=0).exp())
    # what the identity would see: the sign, and one energy only
    assert abs(traded((-ratio).clamp(max=0).exp())) > 0.1
    assert abs(traded((logs[1] - logs[0]).clamp(max=0).exp())) > 0.01


def test_replicas_that_start_right_stay_right() -> None:
    """Not reversible: exact starts at both levels, the ends by Kolmogorov-Smirnov, 1e-6 each."""
    n = 20_000
    low, high = (NOISY.sample(n, t, generator=k) for k, t in enumerate((0.3, 1.0)))
    kernel = ReplicaExchange(MALA(lambda t: 0.4 * (0.1 + t.sigma**2)), (1.0,))
    t, noise = NOISY.sde.level(0.3), TorchNoise(torch.Generator().manual_seed(5))
    x, state = low, Replicas((high,), 0, torch.zeros(n, 1))
    for _ in range(6):
        x, state = kernel.step(NOISY, x, t, t, state, noise)
    assert float((x != low).double().mean()) > 0.9
    for found, sigma2 in ((x, 0.09), (state.above[0], 1.0)):

        def cdf(u: Any, s: float = sigma2) -> Any:
            a, b = (
                stats.norm.cdf(u, -1.0, (0.1 + s) ** 0.5),
                stats.norm.cdf(u, 1.2, (0.2 + s) ** 0.5),
            )
            return 0.4 * a + 0.6 * b

        distance = float(stats.kstest(found.flatten().numpy(), cdf).statistic)
        assert distance < (np.log(2e6) / (2 * n)) ** 0.5
