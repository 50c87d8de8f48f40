"""Named grids by their formulas, and grids that are optimised."""

from __future__ import annotations

import math
import time
from functools import cache
from itertools import combinations, pairwise
from typing import Any

import pytest
import scipy.stats
import torch
from cases import F64, mixture, normal

from scoregen import (
    DDIM,
    EDMSDE,
    VPSDE,
    DPMSolverPP,
    Karras,
    KarrasHeun,
    RectifiedSDE,
    Sampler,
    Times,
    UniformLam,
    UniformTime,
)
from scoregen.analysis import output_law, strong_error
from scoregen.grids import (
    BetaQuantiles,
    Interpolated,
    PolyExponential,
    Polynomial,
    Quadratic,
    RestartGrid,
)
from scoregen.noise import ReplayNoise
from scoregen.solvers import SDEDPMSolverPP
from scoregen.tuning import OptimalGaussian, trajectory_grid

SPECTRUM = (0.02, 0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0)


# ---- named --------------------------------------------------------------------------------------


def test_polynomial_contains_its_neighbours() -> None:
    for sde in (VPSDE(), EDMSDE(), RectifiedSDE()):
        torch.testing.assert_close(Polynomial(7, rho=1.0)(sde), UniformTime(7)(sde))
        torch.testing.assert_close(Polynomial(7, rho=2.0)(sde), Quadratic(7)(sde))
    torch.testing.assert_close(Polynomial(9, rho=7.0)(EDMSDE()), Karras(9)(EDMSDE()))


def test_polyexponential_contains_the_exponential_grid() -> None:
    for sde in (VPSDE(), EDMSDE()):
        torch.testing.assert_close(PolyExponential(7)(sde), UniformLam(7)(sde))
    lam = -PolyExponential(5, start=16.0, stop=1.0, rho=2.0)(EDMSDE()).log()
    ramp = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0], dtype=F64)
    torch.testing.assert_close(lam, lam[0] * ramp**2)


def test_beta_quantiles_are_quantiles() -> None:
    times = BetaQuantiles(10, a=0.7, b=0.4)(RectifiedSDE())
    law = scipy.stats.beta(0.7, 0.4)
    torch.testing.assert_close(
        torch.from_numpy(law.cdf(times.numpy())), torch.linspace(1, 0, 11, dtype=F64)
    )
    torch.testing.assert_close(BetaQuantiles(10, a=1.0, b=1.0)(VPSDE()), UniformTime(10)(VPSDE()))


def test_interpolation_keeps_a_list_and_halves_it() -> None:
    times = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
    sde = EDMSDE()
    assert Interpolated(times, 10)(sde).tolist() == list(times)
    assert Interpolated((*times, 0.0), 11)(sde).tolist() == [*times, 0.0]
    double = Interpolated(times, 20)(sde)
    assert double[::2].tolist() == list(times)
    torch.testing.assert_close(double[1::2].square(), double[:-1:2] * double[2::2])
    triple = Interpolated(times, 30)(sde)
    torch.testing.assert_close(triple[1::3] ** 3, triple[:-1:3] ** 2 * triple[3::3])
    assert len(Interpolated((*times, 0.0), 7)(sde)) == 8
    for bad in ((1.0,), (1.0, 0.0), (1.0, 2.0)):
        with pytest.raises(ValueError, match="times must fall"):
            Interpolated(bad, 4)
    with pytest.raises(ValueError, match="a little below"):
        Interpolated((1.0, 0.5), 4)(RectifiedSDE())


def test_restarts_are_put_where_they_belong() -> None:
    sde, base = EDMSDE(), Karras(10)
    times = RestartGrid(base, low=0.3, high=2.0, repeats=2, inner=3)(sde)
    plain = base(sde)
    low = float(plain[(plain.clamp(min=1e-9).log() - torch.tensor(0.3).log()).abs().argmin()])
    at = plain.tolist().index(low)
    assert times[: at + 1].tolist() == plain[: at + 1].tolist()
    assert times[-(10 - at) :].tolist() == plain[at + 1 :].tolist()
    rounds = times[at + 1 : at + 9].reshape(2, 4)
    assert rounds[:, 0].tolist() == [2.0, 2.0]
    assert rounds[:, -1].tolist() == [low, low]
    assert torch.equal(rounds[0], rounds[1])
    roots = rounds[0] ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(3))
    with pytest.raises(ValueError, match="no time between"):
        RestartGrid(base, low=0.001, high=0.0015)(sde)
    with pytest.raises(ValueError, match="high"):
        RestartGrid(base, low=2.0, high=1.0)


@pytest.mark.parametrize(
    "grid",
    [Polynomial(6), BetaQuantiles(6), PolyExponential(6, rho=2.0)],
    ids=lambda g: type(g).__name__,
)
def test_named_grids_fall_from_end_to_end(grid: Any) -> None:
    for sde in (VPSDE(), EDMSDE(), RectifiedSDE()):
        times = grid(sde)
        assert len(times) == 7
        assert times.dtype == F64
        assert float(times[0]) == sde.t_max
        assert float(times[-1]) == 0
        assert bool((times.diff() < 0).all())


# ---- optimal for a Gaussian ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sde", "solver", "steps"),
    [
        (EDMSDE(), DDIM(), 5),
        (EDMSDE(), DPMSolverPP(), 12),
        (VPSDE(), DDIM(), 8),
        (VPSDE(), SDEDPMSolverPP(2), 10),
    ],
    ids=str,
)
@pytest.mark.slow
def test_optimal_times_are_closer_than_any_named_ones(sde: Any, solver: Any, steps: int) -> None:
    def distance(grid: Any) -> float:
        return output_law(Sampler(solver, grid), sde, SPECTRUM, start="prior").w2

    grid = OptimalGaussian(steps, SPECTRUM, solver)
    best = min(distance(g(steps)) for g in (Karras, UniformLam, UniformTime, BetaQuantiles))
    assert distance(grid) < 0.8 * best
    times = grid(sde)
    assert len(times) == steps + 1
    assert float(times[0]) == sde.t_max
    assert float(times[-1]) == 0
    assert bool((times.diff() < 0).all())
    assert float(times[-2]) >= sde.t_min * (1 - 1e-9)


def test_the_optimum_is_one() -> None:
    """No time of a first-order grid can be moved by 3 % either way for a gain of 0.5 %."""
    sde, solver = EDMSDE(), DDIM()
    times = OptimalGaussian(5, SPECTRUM, solver)(sde).tolist()

    def distance(points: list[float]) -> float:
        return output_law(Sampler(solver, Times(*points)), sde, SPECTRUM, start="prior").w2

    best = distance(times)
    for i in range(1, 5):
        for factor in (0.97, 1.03):
            moved = [t * factor if j == i else t for j, t in enumerate(times)]
            assert distance(moved) > 0.995 * best


@pytest.mark.slow
def test_optimal_grids_are_grids() -> None:
    """Between interior levels, on a rectified flow below t_max, for other solvers, and resized."""
    grid = OptimalGaussian(6, (0.1, 1.0), stop=0.1, start=10.0)
    times = grid(EDMSDE())
    assert float(times[0]) == 10
    assert float(times[-1]) == 0.1
    assert torch.equal(times, OptimalGaussian(6, (0.1, 1.0), stop=0.1, start=10.0)(EDMSDE()))
    sampler = Sampler(KarrasHeun(), grid).with_steps(3)
    assert sampler.sample(mixture(EDMSDE()), (2, 2), seed=0).shape == (2, 2)
    with pytest.raises(ValueError, match="give start"):
        OptimalGaussian(4, (1.0,))(RectifiedSDE())
    assert len(OptimalGaussian(4, (0.3, 2.0), start=0.99)(RectifiedSDE())) == 5
    with pytest.raises(ValueError, match="variance"):
        OptimalGaussian(4, (0.0,))
    with pytest.raises(ValueError, match="steps"):
        OptimalGaussian(1, (1.0,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 2.5}, "steps must be an integer"),
        ({"variances": 1.0}, "variances must be a sequence of real numbers"),
        ({"variances": (1.0, math.nan)}, r"variances\[1\] must lie in"),
        ({"solver": DPMSolverPP}, "got the class DPMSolverPP: make an instance"),
        ({"mean": "0"}, "mean must be a sequence"),
        ({"mean": (0.0, 0.0, 0.0)}, "as many as the 2 variances, got 3"),
        ({"mean": math.inf}, "mean must be finite"),
        ({"start": 0.1, "stop": 0.2}, "start must lie in"),
    ],
)
def test_what_makes_no_optimal_grid_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"steps": 3, "variances": (0.1, 1.0)}
    with pytest.raises((TypeError, ValueError), match=message):
        OptimalGaussian(**{**given, **change})


def test_a_gaussian_beyond_every_number_is_refused_and_other_numbers_are_numbers() -> None:
    with pytest.raises(ValueError, match=r"the distance of DPMSolverPP.* is not finite"):
        OptimalGaussian(3, (0.1, 1.0), mean=1e300)(EDMSDE())
    plain = OptimalGaussian(2, (0.1, 1.0), mean=(0.5, 0.5), stop=0.1)(EDMSDE())
    of_arrays: Any = OptimalGaussian
    listed = of_arrays(
        2, torch.tensor([0.1, 1.0]).double(), mean=[0.5, 0.5], stop=torch.tensor(0.1)
    )
    torch.testing.assert_close(listed(EDMSDE()), plain, rtol=1e-6, atol=1e-6)


def test_optimising_is_quick() -> None:
    began = time.process_time()
    OptimalGaussian(10, (0.1, 0.7, 3.0))(EDMSDE())
    assert time.process_time() - began < 10


# ---- along reference trajectories -----------------------------------------------------------


@pytest.mark.slow
def test_trajectory_grid_beats_named_grids_on_a_mixture() -> None:
    sde = EDMSDE()
    model = mixture(sde)
    x = 80 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    y = 80 * torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    for steps in (6, 10):
        grid = trajectory_grid(model, x, steps)
        errors = [
            float(strong_error(Sampler(DDIM(), g), model, y))
            for g in (grid, Karras(steps), UniformLam(steps), UniformTime(steps))
        ]
        assert errors[0] < 0.9 * min(errors[1:])


@pytest.mark.parametrize("sde", [EDMSDE(), VPSDE()], ids=lambda s: type(s).__name__)
def test_dynamic_programming_finds_the_least_sum(sde: Any) -> None:
    """Against all choices of one to four inner points out of eleven."""
    model = mixture(sde)
    x = sde.prior_std(sde.t_max) * normal(16, 2)
    reference = Sampler(DPMSolverPP(), Karras(12))
    walk = list(reference.iterate(model, x, noise=ReplayNoise([])))

    @cache
    def stray(i: int, j: int) -> float:
        p, s = model(walk[i].x, walk[i].t), walk[j].t
        gap = p.x0 + s.sigma / s.alpha * p.eps - walk[j].x / s.alpha
        return float(gap.square().mean(1).sqrt().mean())

    def cost(path: tuple[int, ...]) -> float:
        return sum(stray(i, j) for i, j in pairwise(path))

    for inner in (1, 2, 3, 4):
        best = min(((0, *c, 12) for c in combinations(range(1, 12), inner)), key=cost)
        times = tuple(float(walk[i].t.t) for i in best)
        assert trajectory_grid(model, x, inner + 1, reference=reference) == Times(*times)
    whole = trajectory_grid(model, x, 12, reference=reference)
    torch.testing.assert_close(whole(sde), Karras(12)(sde))


def test_trajectory_grid_refuses_what_it_cannot_use() -> None:
    model, x = mixture(EDMSDE()), torch.zeros(2, 2)
    with pytest.raises(ValueError, match="noise-free"):
        trajectory_grid(model, x, 4, reference=Sampler(DDIM(1.0), Karras(20)))
    with pytest.raises(ValueError, match="less than"):
        trajectory_grid(model, x, 20, reference=Sampler(DDIM(), Karras(12)))
    wrong: Any = DDIM()
    with pytest.raises(TypeError, match="reference must be a Sampler, such as"):
        trajectory_grid(model, x, 4, reference=wrong)
    with pytest.raises(ValueError, match="x must hold at least one state"):
        trajectory_grid(model, x[:0], 4)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        trajectory_grid(model, x, 0)
