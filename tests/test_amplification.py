"""Gains of a network's error, against closed forms, published figures and a longhand recursion."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from cases import F64
from scipy.special import ellipk

from scoregen import (
    DDIM,
    EDM,
    EDMSDE,
    MALA,
    SDE,
    VPSDE,
    Constant,
    DiscreteVPSDE,
    Dopri5,
    DPMSolverPP,
    EulerMaruyama,
    Karras,
    KarrasHeun,
    Level,
    RectifiedSDE,
    Sampler,
    ScoreModel,
    Solver,
    Times,
    UniformLam,
    UniformTime,
    UniPC,
)
from scoregen.analysis import NotAffineError, amplification
from scoregen.grids import SinhLam
from scoregen.models import Prediction
from scoregen.solvers import AngularAB, EulerStart, ExponentialAB

TABLE = [  # VP, v = 0.25, 9 moves from t = 1 to 0.001 and one to 0: largest, independent, worst
    (DDIM(), UniformLam(10), "eps", (0.728, 1.652, 4.216)),
    (DDIM(), UniformLam(10), "x0", (1.0, 1.637, 3.980)),
    (DDIM(), UniformLam(10), "v", (0.330, 0.478, 1.024)),
    (DDIM(), Karras(10), "eps", (0.659, 1.336, 3.674)),
    (DDIM(), Karras(10), "x0", (1.0, 1.625, 3.431)),
    (DDIM(), Karras(10), "v", (0.405, 0.518, 1.008)),
    (DPMSolverPP(), UniformLam(10), "eps", (0.556, 0.931, 2.113)),
    (DPMSolverPP(), UniformLam(10), "x0", (1.0, 2.103, 4.918)),
    (DPMSolverPP(), UniformLam(10), "v", (0.447, 0.558, 1.054)),
    (DPMSolverPP(), Karras(10), "eps", (0.853, 1.055, 2.244)),
    (DPMSolverPP(), Karras(10), "x0", (1.413, 2.313, 4.563)),
    (DPMSolverPP(), Karras(10), "v", (0.536, 0.713, 1.196)),
]


@pytest.mark.parametrize(("solver", "grid", "form", "expected"), TABLE)
def test_figures_of_an_independent_program(
    solver: Solver, grid: UniformLam, form: str, expected: tuple[float, float, float]
) -> None:
    found = amplification(Sampler(solver, grid), VPSDE(), (0.25,), form)  # type: ignore[arg-type]
    numbers = found.largest, found.independent, found.worst
    assert numbers == pytest.approx(expected, abs=6e-4)


def test_bounded_weights_keep_the_gain_of_the_angular_method_small() -> None:
    """Unbounded, these were 7.8, 11.5, 271 and 0.91: an eps-network's error came out as large."""
    angular = EulerStart(AngularAB(4, smooth_end=True))
    for grid, most in (
        (SinhLam(10), 3.6),
        (SinhLam(20), 1.0),
        (UniformLam(10), 1.0),
        (UniformLam(20), 1.0),
    ):
        found = amplification(Sampler(angular, grid), VPSDE())
        assert found.largest < most
        assert amplification(Sampler(angular, grid), VPSDE(), form="v").largest < 6
    for solver, expected in ((UniPC(2), 0.58), (EulerStart(ExponentialAB(3, "eps")), 0.60)):
        found = amplification(Sampler(solver, UniformLam(10)), VPSDE())
        assert found.largest == pytest.approx(expected, abs=6e-3)


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedSDE(0.01, 0.99)], ids=repr)
def test_ddim_by_its_product(sde: SDE) -> None:
    """G_i = (r' - r) prod [1 + (r_{j+1} - r_j) r_j / (v + r_j^2)], and the same in x0 and v."""
    times = Times(*(sde.t_max * f for f in (0.9, 0.6, 0.4, 0.1, 0.05)), 0.0)
    sampler, levels = Sampler(DDIM(), times), sde.levels(times(sde))
    v = torch.tensor([0.04, 0.25, 3.0], dtype=F64)
    r = [level.sigma / level.alpha for level in levels]
    expected = []
    for i in range(len(r) - 1):
        gain = torch.full_like(v, r[i + 1] - r[i])
        for j in range(i + 1, len(r) - 1):
            gain = gain * (1 + (r[j + 1] - r[j]) * r[j] / (v + r[j] ** 2))
        expected.append(gain)
    eps = torch.stack(expected)
    ratio = torch.tensor(r[:-1], dtype=F64)[:, None]
    options = {"rtol": 1e-11, "atol": 1e-13}
    found = amplification(sampler, sde, v)
    assert found.levels == tuple(levels[:-1])
    torch.testing.assert_close(found.gains, eps, **options)
    torch.testing.assert_close(amplification(sampler, sde, v, "x0").gains, -eps / ratio, **options)
    circle = amplification(sampler, sde, v, "v").gains
    torch.testing.assert_close(circle, eps / (1 + ratio**2).sqrt(), **options)
    assert found.worst == pytest.approx(float(eps.abs().sum(0).max()))
    assert found.constant == pytest.approx(float(eps.sum(0).abs().max()))
    assert found.independent == pytest.approx(float(eps.square().sum(0).max().sqrt()))


def test_two_step_method_by_longhand_recursion() -> None:
    """DPM-Solver++(2M), its error carried from move to move by hand."""
    sde, v = VPSDE(), 0.09
    levels = sde.levels(Karras(7)(sde))
    count = len(levels) - 1
    gains = []
    for wrong in range(count):
        x, before = 0.0, None
        for i, (t, s) in enumerate(pairwise(levels)):
            x0 = t.alpha * v / (t.alpha**2 * v + t.sigma**2) * x + (i == wrong)
            d = x0
            if s.sigma == 0:
                x = x0
                break
            if before is not None:
                d = x0 + (s.lam - t.lam) / (2 * (t.lam - before[0])) * (x0 - before[1])
            before = (t.lam, x0)
            x = s.sigma / t.sigma * x - s.alpha * math.expm1(t.lam - s.lam) * d
        gains.append(x)
    found = amplification(Sampler(DPMSolverPP(), Karras(7)), sde, (v,), "x0").gains
    torch.testing.assert_close(found[:, 0], torch.tensor(gains, dtype=F64), rtol=1e-11, atol=1e-13)


@pytest.mark.slow
def test_many_moves_reach_the_integrals() -> None:
    v, sde = 0.25, VPSDE()
    sampler = Sampler(DDIM(), UniformLam(1500, stop=sde.t_min))
    first, last = (sde.level(t) for t in (sde.t_max, sde.t_min))
    high, low = first.sigma / first.alpha, last.sigma / last.alpha
    root = math.sqrt(v)
    eps = -root * (math.asinh(high / root) - math.asinh(low / root))
    x0 = math.asinh(root / low) - math.asinh(root / high)
    for form, expected in (("eps", eps), ("x0", x0)):
        found = amplification(sampler, sde, (v,), form).gains.sum()  # type: ignore[arg-type]
        assert float(found) == pytest.approx(expected, rel=4e-3)
    bounded = amplification(sampler, sde, (v,), "v")
    assert bounded.constant <= root * ellipk(1 - v) * math.sqrt(1 + low**2 / v)
    assert bounded.constant == pytest.approx(root * ellipk(1 - v), rel=0.02)


def test_heun_counts_both_of_its_evaluations() -> None:
    """Its last x0 error before the move to 0: (r / r' - 1) / 2."""
    sde = EDMSDE()
    found = amplification(Sampler(KarrasHeun(), Times(2.0, 0.5, 0.0)), sde, (1.0,), "x0")
    assert [level.t for level in found.levels] == [2.0, 0.5, 0.5]
    through = 1.0 / (1.0 + 0.25)  # x0 from the state at 0.5
    half = (1 - 0.5 / 2.0) / 2 * 2.0 / 0.5  # (r - r') / (2 r'), on the state at r'
    assert float(found.gains[1]) == pytest.approx(half * through)
    assert float(found.gains[2]) == pytest.approx(1.0)


def test_noise_does_not_enter_and_any_parameterization_may_err() -> None:
    sde = EDMSDE()
    noisy = amplification(Sampler(EulerMaruyama(), UniformTime(6)), sde, (1.0,))
    assert len(noisy.levels) == 6
    eps = amplification(Sampler(DDIM(), Karras(6)), sde, (1.0,)).gains
    edm = amplification(Sampler(DDIM(), Karras(6)), sde, (1.0,), EDM(0.5)).gains
    for i, level in enumerate(sde.levels(Karras(6)(sde))[:-1]):
        # F wrong by 1: x0 wrong by c_out, eps by -c_out / sigma
        c_out = level.sigma * 0.5 / math.hypot(level.sigma, 0.5)
        torch.testing.assert_close(edm[i], -c_out / level.sigma * eps[i], rtol=1e-10, atol=0)


class Foreign(Solver):
    """Another library's Euler step in x / alpha, written without our helpers."""

    def step(
        self, model: ScoreModel, x: torch.Tensor, t: Level, s: Level, state: object, noise: object
    ) -> tuple[torch.Tensor, None]:
        p: Prediction = model(x, t.t)
        y = x / t.alpha + (s.sigma / s.alpha - t.sigma / t.alpha) * p.eps
        return s.alpha * y, None


def test_a_foreign_solver_and_a_chain() -> None:
    sde = DiscreteVPSDE.linear(1000)
    found = amplification(Sampler(Foreign(), UniformLam(9)), sde)
    ours = amplification(Sampler(DDIM(), UniformLam(9)), sde)
    torch.testing.assert_close(found.gains, ours.gains, rtol=1e-10, atol=1e-12)


def test_what_has_no_gain_is_refused() -> None:
    with pytest.raises(NotAffineError, match="affine"):
        amplification(Sampler(Dopri5(), UniformTime(2)), VPSDE())
    with pytest.raises(NotAffineError):
        amplification(Sampler(MALA(0.1), Constant(0.5, 3)), VPSDE())
    with pytest.raises(ValueError, match="form must be one of"):
        amplification(Sampler(DDIM(), UniformTime(3)), VPSDE(), (1.0,), "noise")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="parameterization"):
        amplification(Sampler(DDIM(), UniformTime(3)), VPSDE(), (1.0,), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="variances"):
        amplification(Sampler(DDIM(), UniformTime(3)), VPSDE(), (-1.0,))
