"""log Z: identities by enumeration and quadrature, which kernels pass, intervals at low ESS."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from scoregen.densities import Gaussian
from scoregen.energies import GeometricPath, Potential
from scoregen.grids import Times, UniformTime
from scoregen.mcmc import (
    BAOAB,
    MALA,
    OBABO,
    DualAveraging,
    Evidence,
    Kernel,
    Langevin,
    adaptive_levels,
    annealed_importance,
    both_directions,
    effective,
    reverse_annealed_importance,
    systematic,
    thermodynamic_integration,
)
from scoregen.mcmc.evidence import _interval
from scoregen.noise import ReplayNoise, SampleNoise
from scoregen.processes import Level, StaticSDE
from scoregen.solvers import SNRLangevin

F64 = torch.float64
STATIC = StaticSDE()
TRUTH = 0.5 * math.log(math.pi / 2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def narrowing(factor: float = 2.0) -> GeometricPath:
    start = Gaussian(STATIC, torch.zeros(1, dtype=F64), 1.0)
    return GeometricPath(start, Potential(lambda x: factor * x.square().sum(1)))


class Precision(Potential):
    """E = |x|^2 / (2 t^2): N(0, t^2 I), of Z = (2 pi t^2)^(d / 2)."""

    def __init__(self) -> None:
        super().__init__(lambda x: x.square().sum(1))

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        return x.square().sum(1) / (2 * t.t**2)


class Perfect(Kernel):
    """A fresh draw of N(0, t^2) at every move, from the noise."""

    invariant = True

    def transition(self, model: Any, x: Tensor, t: Level, state: Any, noise: Any) -> Any:
        return t.t * noise(x, t, t), None


# Which kernels are accepted


@pytest.mark.parametrize("method", [annealed_importance, thermodynamic_integration])
@pytest.mark.parametrize(
    "kernel",
    [
        DualAveraging(MALA(0.2), warmup=5),
        MALA(0.2, temperature=4.0),
        BAOAB(0.5),
        OBABO(0.7),
        SNRLangevin(0.5),
        Langevin(0.2, temperature=2.0),
        DualAveraging(MALA(0.2, temperature=4.0), warmup=1),
    ],
    ids=str,
)
def test_kernels_that_are_not_invariant_are_refused(method: Any, kernel: Any) -> None:
    with pytest.raises(ValueError, match=r"exactly invariant.*frozen"):
        method(kernel, UniformTime(3), narrowing(), normal(8, 1), noise=SampleNoise(0))


def test_langevin_is_weighed_but_not_integrated() -> None:
    x = normal(400, 1)
    found = annealed_importance(
        Langevin(0.05), UniformTime(10), narrowing(), x, noise=SampleNoise(0), repeats=2
    )
    assert found.low < TRUTH < found.high
    with pytest.raises(ValueError, match="biased at every level"):
        thermodynamic_integration(
            Langevin(0.05), UniformTime(10), narrowing(), x, noise=SampleNoise(0)
        )


def test_bad_starts_and_settings_are_refused() -> None:
    path, x = narrowing(), normal(10, 1)
    for options in ({"resample": 1.5}, {"confidence": math.nan}, {"groups": 3, "resample": 0.5}):
        with pytest.raises(ValueError):
            annealed_importance(MALA(0.1), UniformTime(3), path, x, noise=SampleNoise(0), **options)
    with pytest.raises(ValueError, match="finite"):
        annealed_importance(MALA(0.1), UniformTime(3), path, x * math.nan, noise=SampleNoise(0))


# Exact identities

LOG3 = math.log(3.0)
# energies of three states at four levels; neighbours differ by 0 or log 3, so that every share of
# two particles is a multiple of 1/4 or 1/10 and ten uniforms enumerate systematic resampling
TABLE = LOG3 * torch.tensor([[0, 0, 0], [-1, 0, 0], [-1, -1, 0], [-2, -1, -1]], dtype=F64)


class States(Potential):
    def __init__(self) -> None:
        super().__init__(lambda x: x.sum(1))

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        return TABLE[round(3 - 3 * t.t)][x[:, 0].long()]


class Lazy(Kernel):
    """An exact draw of the level (outcomes 0, 1, 2) or no move (outcome 3), as the noise says."""

    invariant = True

    def transition(self, model: Any, x: Tensor, t: Level, state: Any, noise: Any) -> Any:
        outcome = noise(x, t, t)
        return torch.where(outcome < 3, outcome, x), None


@pytest.mark.parametrize("resample", [0.0, 0.75, 1.0])
def test_unbiased_by_enumeration(resample: float) -> None:
    """Two particles, four levels, every outcome with its probability: E Z-hat = Z = 5."""
    pairs = list(itertools.product(range(3), repeat=2))
    moves = list(itertools.product(range(4), repeat=2))
    # at 0.75 a share of 1 : 3 is left as it is and carried on, so that 1 : 9 can follow
    before, after = {0.0: (1, 1), 0.75: (1, 10), 1.0: (4, 4)}[resample]
    first_u, second_u = ([(i + 0.5) / m for i in range(m)] for m in (before, after))
    cases = list(itertools.product(pairs, first_u, moves, second_u, moves))
    levels = (-TABLE).softmax(1)
    chance = [torch.cat([0.5 * levels[k], torch.tensor([0.5], dtype=F64)]) for k in (1, 2)]
    starts, u1, m1, u2, m2 = zip(*cases, strict=True)
    first, second = torch.tensor(m1), torch.tensor(m2)
    probability = chance[0][first].prod(1) * chance[1][second].prod(1) / 9 / (before * after)
    assert float(probability.sum()) == pytest.approx(1.0)

    def both(u: Any) -> Tensor:
        return torch.special.ndtri(torch.tensor(u, dtype=F64)).repeat_interleave(2)

    draws = [first.double().reshape(-1, 1), second.double().reshape(-1, 1)]
    if resample:
        draws = [both(u1), draws[0], both(u2), draws[1]]
    x = torch.tensor(starts, dtype=F64).reshape(-1, 1)
    found = annealed_importance(
        Lazy(),
        Times(1.0, 2 / 3, 1 / 3, 0.0),
        States(),
        x,
        noise=ReplayNoise(draws),
        resample=resample,
        groups=len(cases),
    )
    means = found.log_weights.exp().reshape(-1, 2).mean(1)
    assert float((probability * means).sum()) == pytest.approx(5.0, rel=1e-12)


def test_systematic_copies_are_within_one_of_their_share() -> None:
    logs = normal(50, 37, seed=1)
    u = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=F64)
    chosen = systematic(logs, u)
    shares = 37 * logs.softmax(1)
    counts = torch.stack([torch.bincount(row, minlength=37) for row in chosen])
    assert ((counts - shares).abs() < 1).all()
    # on average over u the count is the share: exact on a fine grid up to the cells it cuts
    grid = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    every = systematic(logs[:1].expand(4000, -1), grid)
    mean = torch.bincount(every.flatten(), minlength=37) / 4000
    torch.testing.assert_close(mean.double(), shares[0], rtol=0, atol=1e-3)
    lost = systematic(torch.full((1, 4), -math.inf, dtype=F64), u[:1])
    assert lost.tolist() == [[0, 1, 2, 3]]
    assert float(effective(torch.zeros(7))) == pytest.approx(7.0)


def test_adaptive_levels_are_the_geometric_ladder() -> None:
    """Conditional ESS between N(0, I / l) and N(0, I / (r l)) is [sqrt(2 r - 1) / r]^d."""
    d, n, target = 10, 20_000, 0.8
    radii = torch.as_tensor(stats.chi2.ppf((torch.arange(n).double() + 0.5) / n, d)).sqrt()
    x = torch.zeros(n, d, dtype=F64)
    x[:, 0] = radii

    class Quantiles(Kernel):
        invariant = True

        def transition(self, model: Any, y: Tensor, t: Level, state: Any, noise: Any) -> Any:
            return t.t * x, None

    grid = adaptive_levels(Quantiles(), Precision(), x, noise=SampleNoise(0), ess=target, stop=0.1)
    q = target ** (2 / d)
    r = (1 + math.sqrt(1 - q)) / q
    assert r == pytest.approx(1.26409, abs=1e-5)
    assert len(grid.times) == 21  # 20 moves from precision 1 to 100
    for k, time in enumerate(grid.times[:-1]):
        assert 1 / time**2 == pytest.approx(r**k, rel=2e-3)
    assert grid.times[-1] == 0.1
    with pytest.raises(ValueError, match="levels do not suffice"):
        adaptive_levels(Quantiles(), Precision(), x, noise=SampleNoise(0), stop=0.1, most=3)


@pytest.mark.parametrize(
    ("moves", "forward", "backward"), [(10, 0.62188, 0.45737), (100, 0.05384, 0.05221)]
)
def test_both_directions_bracket_log_z(moves: int, forward: float, backward: float) -> None:
    """Perfect transitions along a geometric ladder from precision 1 to 100, by quadrature."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    z = torch.tensor(nodes).unsqueeze(1)
    w = torch.tensor(weights / weights.sum())
    times = [100 ** (-k / moves / 2) for k in range(moves)] + [0.1]
    model, exact = Precision(), math.log(0.1)

    def mean(run: Any, x: Tensor) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = run(Perfect(), Times(*times), model, x, noise=ReplayNoise([z] * moves))
        return float((w * found.log_weights).sum())

    assert mean(annealed_importance, z) - exact == pytest.approx(-forward, abs=1e-5)
    assert mean(reverse_annealed_importance, 0.1 * z) - exact == pytest.approx(backward, abs=1e-5)


def test_a_backward_run_bounds_from_above_and_bennett_joins_both() -> None:
    grid, path = UniformTime(20), narrowing()
    ends, inside = [], 0
    for seed in range(12):
        noise = SampleNoise(seed)
        forward = annealed_importance(
            MALA(0.2), grid, path, normal(200, 1, seed=seed), noise=noise, confidence=0.99
        )
        target = 0.5 * normal(200, 1, seed=1000 + seed)
        back = reverse_annealed_importance(
            MALA(0.2), grid, path, target, noise=noise, confidence=0.99
        )
        assert forward.certified_high == math.inf
        assert back.certified_low == -math.inf
        inside += back.low < TRUTH < back.high
        joined = both_directions(forward, back)
        assert joined.low < TRUTH < joined.high
        ends.append(joined.log_z - TRUTH)
    assert inside >= 10
    # mean of 12 estimates: eight standard errors
    spread = torch.tensor(ends)
    assert abs(float(spread.mean())) < 8 * float(spread.std()) / math.sqrt(12)
    with pytest.raises(ValueError, match="first"):
        both_directions(back, forward)


def test_bennett_is_exact_for_gaussian_log_weights() -> None:
    """log w ~ N(c - v/2, v) forwards and N(c + v/2, v) backwards satisfy Crooks' relation."""
    q = torch.special.ndtri((torch.arange(4001, dtype=F64) + 0.5) / 4001)
    c, v = 1.7, 0.5
    up, down = c - v / 2 + math.sqrt(v) * q, c + v / 2 + math.sqrt(v) * q
    x = torch.zeros(4001, 1)
    estimate = float(up.logsumexp(0) - math.log(4001))
    forward = Evidence(estimate, 0.0, 3.0, 1.0, up, x, 0.0)
    back = Evidence(estimate, 0.0, 3.0, 1.0, down, x, certified_high=3.0)
    assert both_directions(forward, back).log_z == pytest.approx(c, abs=1e-6)


# Intervals


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0, 3.0, 5.0])
def test_intervals_of_heavy_weights_hold(spread: float) -> None:
    """Lognormal weights, 400 runs: the delta method covers .66 at 3 and .18 at 5, nominal .95."""
    covered = certified = 0
    for seed in range(400):
        logs = spread * normal(1000, seed=seed) - spread**2 / 2
        groups = logs.reshape(10, 100).logsumexp(1) - math.log(100)
        _, low, high, certificate = _interval(logs, groups, 0.999)
        covered += low < 0 < high
        certified += certificate < 0
    # at least .985 in truth; fewer than 380 of 400 then has a chance below 1e-6
    assert covered >= 380
    assert certified >= 398


def test_low_effective_size_is_said_and_costs_the_upper_end() -> None:
    """One coarse step onto a target 20 times narrower in ten dimensions."""
    start = Gaussian(STATIC, torch.zeros(10, dtype=F64), 1.0)
    path = GeometricPath(start, Potential(lambda x: 200 * x.square().sum(1)))
    exact = 5 * math.log(math.pi / 200)
    for seed in range(20):
        with pytest.warns(UserWarning, match="too uneven for an interval"):
            found = annealed_importance(
                MALA(1e-3), UniformTime(2), path, normal(100, 10, seed=seed), noise=SampleNoise(0)
            )
        assert found.ess < 30
        assert found.high == math.inf
        assert found.low < exact


@pytest.mark.parametrize("resample", [0.5, 1.0])
def test_resampling_holds_the_truth_and_keeps_particles_alive(resample: float) -> None:
    """Ten dimensions, precision 1 to 200, few levels: unresampled weights would degenerate."""
    start = Gaussian(STATIC, torch.zeros(10, dtype=F64), 1.0)
    path = GeometricPath(start, Potential(lambda x: 100 * x.square().sum(1)))
    exact = 5 * math.log(math.pi / 100)
    times = [(200 - 200 ** (k / 20)) / 199 for k in range(20)] + [0.0]
    within = 0
    for seed in range(4):
        found = annealed_importance(
            MALA(lambda t: 0.35 / (t.t + 200 * (1 - t.t))),
            Times(*times),
            path,
            normal(600, 10, seed=seed),
            noise=SampleNoise(seed),
            repeats=3,
            resample=resample,
            confidence=0.99,
        )
        within += found.low < exact < found.high
        assert found.ess > 30
    assert within >= 3
