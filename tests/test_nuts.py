"""NUTS: the orbit identity, without quadrature; then laws and what a tree costs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from scoregen.densities import Gaussian, GaussianMixture
from scoregen.energies import Potential
from scoregen.grids import Constant
from scoregen.mcmc import MALA, NUTS, DualAveraging, chain_report, leapfrog, run_chains
from scoregen.models import Counted, Prediction, ScoreModel
from scoregen.noise import SampleNoise
from scoregen.processes import Level, StaticSDE
from scoregen.sampling import Sampler

F64 = torch.float64
STATIC = StaticSDE()
ZERO = STATIC.level(0.0)
DEPTH = 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def bowl(x: Tensor) -> Tensor:
    return x.square().sum(1) / 2


def well(x: Tensor) -> Tensor:
    return (x.square().sum(1) - 1).square()


def bent(x: Tensor) -> Tensor:
    scale = torch.tensor([1.0, 4.0, 0.25], dtype=F64)
    return (scale * x.square()).sum(1) / 2 + 0.15 * x.sum(1).square() + x.cos().sum(1)


class Forced:
    """The momentum, and then all decisions as given uniform numbers; bit 1 is forward."""

    def __init__(self, momentum: Tensor, bits: Tensor, accept: Tensor, inner: Tensor) -> None:
        self.draws = [momentum, torch.special.ndtri(torch.cat([1 - bits, accept, inner], 1))]
        self.calls = 0

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        self.calls += 1
        draw = self.draws[self.calls - 1]
        assert draw.shape == like.shape
        return draw


def transition_laws(
    kernel: NUTS, model: ScoreModel, q: Tensor, p: Tensor, starts: list[int]
) -> Tensor:
    """P(i to every point of the orbit) for every start i, by bisection of every threshold.

    Each uniform decides by a threshold that no other uniform moves. To see it, the uniforms that
    come later in the tree are set so that they undo nothing, and all are bisected at once.
    """
    bits = torch.tensor(list(itertools.product((0.0, 1.0), repeat=DEPTH)), dtype=F64)
    places = [(level, k) for level in range(DEPTH) for k in range(2**level)]
    decisions = len(places) + DEPTH
    shape = (len(starts), len(bits), decisions)
    rows = shape[0] * shape[1] * decisions
    momentum = p[starts].repeat_interleave(len(bits) * decisions, 0)
    x = q[starts].repeat_interleave(len(bits) * decisions, 0)
    directions = bits.repeat_interleave(decisions, 0).repeat(len(starts), 1)

    def found(u: Tensor) -> Tensor:
        """The end of every row when its own decision has the uniform u."""
        accept = torch.ones(*shape, DEPTH, dtype=F64)
        inner = torch.ones(*shape, len(places), dtype=F64)
        for d, (level, _) in enumerate(places):
            accept[:, :, d, level] = 0.0
            inner[:, :, d, d] = u[:, :, d]
        for level in range(DEPTH):
            d = len(places) + level
            inner[:, :, d] = 0.0
            accept[:, :, d, level] = u[:, :, d]
        noise = Forced(momentum, directions, accept.reshape(rows, -1), inner.reshape(rows, -1))
        out, _ = kernel.step(model, x, ZERO, ZERO, None, noise)
        gap = (out.unsqueeze(1) - q.unsqueeze(0)).abs().sum(2)
        assert float(gap.min(1).values.max()) < 1e-9
        return gap.argmin(1).reshape(shape)

    # where each decision leads: the doublings' places follow from the bits
    taken = torch.zeros(shape, dtype=torch.long)
    for i, start in enumerate(starts):
        for row, way in enumerate(bits.tolist()):
            low_end = high_end = start
            for level, bit in enumerate(way):
                size = 2**level
                points = [high_end + 1 + k if bit else low_end - 1 - k for k in range(size)]
                taken[i, row, size - 1 : 2 * size - 1] = torch.tensor(points)
                taken[i, row, len(places) + level] = points[-1]
                low_end, high_end = min(low_end, points[-1]), max(high_end, points[-1])
    low, high = torch.zeros(shape, dtype=F64), torch.ones(shape, dtype=F64)
    # where a later doubling is sure to be accepted the decision is hidden, and has no weight
    impossible, sure = found(low) != taken, found(high) == taken
    for _ in range(34):
        middle = (low + high) / 2
        same = found(middle) == taken
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    limit = torch.where(sure, 1.0, torch.where(impossible, 0.0, (low + high) / 2))
    laws = torch.zeros(len(starts), len(q), dtype=F64)
    for i, start in enumerate(starts):
        for row in range(len(bits)):
            here = torch.zeros(len(q), dtype=F64)
            here[start] = 1.0
            for level in range(DEPTH):
                inside = torch.zeros(len(q), dtype=F64)
                for k in range(2**level):
                    d = 2**level - 1 + k
                    share = float(limit[i, row, d]) if k else 1.0
                    inside = (1 - share) * inside
                    inside[taken[i, row, d]] += share
                a = float(limit[i, row, len(places) + level])
                here = (1 - a) * here + a * inside
            laws[i] += here / len(bits)
    return laws


@pytest.mark.parametrize(
    ("energy", "h", "dimensions", "seed"),
    [(bowl, 0.45, 1, 0), (bowl, 0.45, 1, 1), (well, 0.25, 1, 2), (bent, 0.5, 3, 3)],
)
def test_the_orbit_is_left_invariant(energy: Any, h: float, dimensions: int, seed: int) -> None:
    """sum_i pi_i P(i to c) = pi_c over the leapfrog orbit, pi = exp(-H)."""
    model, kernel = Potential(energy), NUTS(h, depth=DEPTH)
    reach = 2 * (2**DEPTH - 1)
    x, p = normal(1, dimensions, seed=seed), normal(1, dimensions, seed=seed + 100)
    here = model(x, 0.0)
    ends = {}
    for sign in (1, -1):
        state, momentum, points = here, sign * p, []
        for _ in range(reach):
            state, momentum = leapfrog(model, state, momentum, ZERO, h, 1)
            points.append((state.x, sign * momentum))
        ends[sign] = points
    orbit = [*ends[-1][::-1], (x, p), *ends[1]]
    q, m = (torch.cat(part) for part in zip(*orbit, strict=True))
    pi = (-(energy(q) + m.square().sum(1) / 2)).softmax(0)
    c = reach
    starts = list(range(c - 2**DEPTH + 1, c + 2**DEPTH))
    laws = transition_laws(kernel, model, q, m, starts)
    torch.testing.assert_close(laws.sum(1), torch.ones(len(starts), dtype=F64))
    flow = float((pi[starts] * laws[:, c]).sum())
    assert flow == pytest.approx(float(pi[c]), rel=1e-6)


def test_chains_that_start_right_stay_right() -> None:
    """Two modes, one move from exact draws and 15 more; false alarm 1e-6 each."""
    target = GaussianMixture(
        STATIC, torch.tensor([0.4, 0.6]), torch.tensor([[-1.0], [1.2]]), torch.tensor([0.3, 0.6])
    )
    n = 10_000
    x = target.sample(n, generator=2)
    out = Sampler(NUTS(0.5, depth=5), Constant(0.0, 8)).run(target, x, noise=SampleNoise(3))
    assert (out != x).double().mean() > 0.95

    def cdf(u: Any) -> Any:
        return 0.4 * stats.norm.cdf(u, -1.0, 0.3**0.5) + 0.6 * stats.norm.cdf(u, 1.2, 0.6**0.5)

    distance = float(stats.kstest(out.flatten().numpy(), cdf).statistic)
    assert distance < (torch.tensor(2e6).log().item() / (2 * n)) ** 0.5


@pytest.mark.slow
def test_trees_fit_their_scale_and_report_themselves() -> None:
    model = Gaussian(STATIC, torch.zeros(2, dtype=F64), torch.tensor([1.0, 25.0]))
    kernel = DualAveraging(NUTS(0.3, depth=5), warmup=30)
    x = model.sample(8, generator=0)
    *_, last = Sampler(kernel, Constant(0.0, 30)).iterate(model, x, noise=SampleNoise(0))
    frozen = kernel.frozen(last.state)
    assert isinstance(frozen, NUTS)
    chains = run_chains(Sampler(frozen, Constant(0.0, 100)), model, x, seed=1)
    assert chains.acceptance is not None
    assert 0.6 < float(chains.acceptance.mean()) < 0.99
    report = chain_report(chains)
    assert report.divergent == 0
    assert report.ess > 100
    with Counted(model) as count:
        _, state = frozen.step(model, x, ZERO, ZERO, None, SampleNoise(0))
    assert count.rows >= int(state.steps.max()) + 1
    assert (state.energy_error == 0).all()


def test_divergent_trees_are_reported_and_stay() -> None:
    steep = Potential(lambda x: x.pow(4).sum(1))
    x = torch.full((4, 1), 3.0, dtype=F64)
    out, state = NUTS(3.0).step(steep, x, ZERO, ZERO, None, SampleNoise(0))
    assert state.divergent.all()
    assert torch.equal(out, x)
    walls = Potential(lambda y: torch.where(y[:, 0] > 0, y.sum(1), torch.inf * y.sum(1).abs()))
    out, _ = NUTS(0.5).step(walls, x, ZERO, ZERO, None, SampleNoise(1))
    assert torch.isfinite(out).all()


def test_batch_mates_and_scores_alone() -> None:
    model = Gaussian(STATIC, torch.zeros(2, dtype=F64), 1.0)
    sampler = Sampler(NUTS(0.4, depth=4), Constant(0.0, 6))
    together = sampler.sample(model, (7, 2), seed=4)
    assert torch.equal(together[5:6], sampler.sample(model, (1, 2), seed=4, first=5))

    class Hidden(ScoreModel):
        sde = STATIC

        def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
            return Prediction(self.sde, t, x, score=model.predict(x, t).score)

    x = normal(5, 2)
    energy, _ = NUTS(0.4).step(Potential(bowl), x, ZERO, ZERO, None, SampleNoise(0))
    score, state = NUTS(0.4).step(Hidden(), x, ZERO, ZERO, None, SampleNoise(0))
    torch.testing.assert_close(energy, score)
    assert 0 < float(state.energy_error.max()) < 1e-10
    for bad in (lambda: NUTS(0.0), lambda: NUTS(0.1, depth=0), lambda: NUTS(0.1, nodes=0)):
        with pytest.raises(ValueError):
            bad()
    assert NUTS(0.1).invariant
    assert MALA(0.1).invariant
