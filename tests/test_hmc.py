"""Leapfrog, HMC and underdamped Langevin against the closed forms of a harmonic target."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from scoregen.densities import Gaussian, GaussianMixture
from scoregen.grids import Constant
from scoregen.mcmc import BAOAB, HMC, MALA, OBABO, Kinetic, KineticState, leapfrog
from scoregen.noise import ReplayNoise, SampleNoise
from scoregen.processes import StaticSDE
from scoregen.sampling import Sampler

F64 = torch.float64
STATIC = StaticSDE()
ZERO = STATIC.level(0.0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gauss(variance: float) -> Gaussian:
    return Gaussian(STATIC, torch.zeros(1, dtype=F64), variance)


def double_hump() -> GaussianMixture:
    means = torch.tensor([[-1.0], [1.2]])
    return GaussianMixture(STATIC, torch.tensor([0.4, 0.6]), means, torch.tensor([0.3, 0.6]))


def leapfrog_matrix(v: float, h: float, steps: int) -> Tensor:
    """The linear map of (x, p), from unit inputs."""
    model = gauss(v)
    x, p = torch.eye(2, dtype=F64).unsqueeze(2)
    here, p = leapfrog(model, model(x, 0.0), p, ZERO, h, steps)
    return torch.stack([here.x.flatten(), p.flatten()])


@pytest.mark.parametrize("h", [0.1, 0.7, 1.2])
@pytest.mark.parametrize("v", [0.5, 1.0, 3.0])
def test_leapfrog_is_symplectic_and_keeps_its_shadow(v: float, h: float) -> None:
    w = 1 / math.sqrt(v)
    for steps in (1, 5):
        m = leapfrog_matrix(v, h, steps)
        assert float(torch.linalg.det(m)) == pytest.approx(1.0, abs=1e-12)
        # conserves p^2 + w^2 (1 - h^2 w^2 / 4) x^2 exactly
        shadow = torch.diag(torch.tensor([w**2 * (1 - (h * w) ** 2 / 4), 1.0], dtype=F64))
        torch.testing.assert_close(m.mT @ shadow @ m, shadow, rtol=1e-12, atol=1e-12)
        # and turns by arccos(1 - h^2 w^2 / 2) per step
        turn = steps * math.acos(1 - (h * w) ** 2 / 2)
        assert float(m.trace()) == pytest.approx(2 * math.cos(turn), abs=1e-11)


def test_leapfrog_is_unstable_beyond_two() -> None:
    assert leapfrog_matrix(1.0, 1.99, 50).abs().max() < 30
    assert leapfrog_matrix(1.0, 2.05, 50).abs().max() > 1e5


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_leapfrog_goes_back_and_is_second_order(temperature: float) -> None:
    model = double_hump()
    x, p = normal(40, 1), normal(40, 1, seed=1)
    here, q = leapfrog(model, model(x, 0.0), p, ZERO, 0.2, 7, temperature)
    back, r = leapfrog(model, here, -q, ZERO, 0.2, 7, temperature)
    torch.testing.assert_close(back.x, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(-r, p, rtol=1e-10, atol=1e-10)

    def error(steps: int) -> Tensor:
        there, q = leapfrog(model, model(x, 0.0), p, ZERO, 1 / steps, steps, temperature)
        kinetic = (q.square() - p.square()).sum(1) / 2
        change = model.energy_difference(x, there.x, 0.0) / temperature + kinetic
        return change.abs().mean()

    assert math.log2(float(error(20) / error(40))) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize(("h", "steps"), [(0.8, 1), (0.8, 3), (1.3, 4)])
def test_acceptance_and_crooks_average(h: float, steps: int) -> None:
    """E exp(-dH) = 1 and E min(1, exp(-dH)) = (4 / pi) arctan sqrt(-e1 / e2), by quadrature."""
    v = 0.7
    m = leapfrog_matrix(v, h, steps)
    root = torch.diag(torch.tensor([math.sqrt(v), 1.0], dtype=F64))
    energy = torch.diag(torch.tensor([1 / v, 1.0], dtype=F64))
    form = root @ (m.mT @ energy @ m - energy) @ root  # 2 dH in standard normal variables
    e1, e2 = torch.linalg.eigvalsh(form).tolist()
    u = torch.linspace(-9, 9, 1201, dtype=F64)
    weight = (-u.square() / 2).exp()
    weight = weight / weight.sum()
    x = (math.sqrt(v) * u).repeat_interleave(len(u)).unsqueeze(1)
    p = u.repeat(len(u)).unsqueeze(1)
    both = (weight.unsqueeze(1) * weight).flatten()
    model = gauss(v)
    solver = HMC(h, leapfrog_steps=steps)
    _, ratio, _ = solver.propose(model, model(x, 0.0), ZERO, h, ReplayNoise([p]))
    if max(abs(e1), abs(e2)) < 3:  # else the average is carried by where the grid does not reach
        assert float((both * ratio.exp()).sum()) == pytest.approx(1.0, abs=1e-3)
    mean = float((both * ratio.clamp(max=0).exp()).sum())
    assert mean == pytest.approx(4 / math.pi * math.atan(math.sqrt(-e1 / e2)), abs=2e-4)


def test_acceptance_of_many_independent_coordinates() -> None:
    """E accept = 2 F_{d,d}(-l1 / l2) for MALA on N(0, I_d); 40,000 draws, 5 standard errors."""
    d, h, n = 20, 0.35, 40_000
    # log ratio = -(h / 4) (|y|^2 - |x|^2) with y = (1 - h) x + sqrt(2 h) z
    a, b = 1 - h, math.sqrt(2 * h)
    form = torch.tensor([[a * a - 1, a * b], [a * b, b * b]], dtype=F64)
    l1, l2 = torch.linalg.eigvalsh(form).tolist()
    exact = 2 * stats.f.cdf(-l1 / l2, d, d)
    model = Gaussian(STATIC, torch.zeros(d, dtype=F64), 1.0)
    x = normal(n, d, seed=4)
    _, state = MALA(h).step(model, x, ZERO, ZERO, None, SampleNoise(0))
    error = float(state.acceptance.std()) / math.sqrt(n)
    assert float(state.acceptance.mean()) == pytest.approx(exact, abs=5 * error)


def test_hmc_of_one_step_is_mala() -> None:
    model, x, z = double_hump(), normal(50, 1), normal(50, 1, seed=1)
    u = normal(50, seed=2)
    one, first = HMC(0.6, leapfrog_steps=1).step(model, x, ZERO, ZERO, None, ReplayNoise([z, u]))
    two, second = MALA(0.18).step(model, x, ZERO, ZERO, None, ReplayNoise([z, u]))
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(first.acceptance, second.acceptance)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_hmc_detailed_balance(temperature: float) -> None:
    """p(x) N(p) accept(x, p) = p(y) N(p') accept(y, -p'), point by point."""
    model, n = double_hump(), 400
    solver = HMC(0.7, leapfrog_steps=4, temperature=temperature)
    x, p, sure = normal(n, 1), normal(n, 1, seed=1), torch.full((n,), -30.0, dtype=F64)
    y, there = solver.step(model, x, ZERO, ZERO, None, ReplayNoise([p, sure]))
    here, q = leapfrog(model, model(x, 0.0), p, ZERO, 0.7, 4, temperature)
    torch.testing.assert_close(here.x, y)
    back, state = solver.step(model, y, ZERO, ZERO, None, ReplayNoise([-q, sure]))
    torch.testing.assert_close(back, x)
    left = model.log_prob(x, 0.0) / temperature - p.square().sum(1) / 2 + there.acceptance.log()
    right = model.log_prob(y, 0.0) / temperature - q.square().sum(1) / 2 + state.acceptance.log()
    torch.testing.assert_close(left, right)


def stationary(solver: Kinetic, v: float) -> Tensor:
    """Covariance of (x, p), from the affine map of one move at unit inputs."""
    model = gauss(v)
    draws = 2 if isinstance(solver, OBABO) else 1
    rows = 2 + draws
    x, p = torch.zeros(rows, 1, dtype=F64), torch.zeros(rows, 1, dtype=F64)
    x[0], p[1] = 1, 1
    z = [torch.zeros(rows, 1, dtype=F64) for _ in range(draws)]
    for k in range(draws):
        z[k][2 + k] = 1
    out, state = solver.step(model, x, ZERO, ZERO, KineticState(None, p), ReplayNoise(z))
    assert state.momentum is not None
    gain = torch.cat([out, state.momentum], 1).mT
    a, b = gain[:, :2], gain[:, 2:]
    # S = A S A^T + B B^T
    system = torch.eye(4, dtype=F64) - torch.kron(a, a)
    return torch.linalg.solve(system, (b @ b.mT).flatten()).reshape(2, 2)


@pytest.mark.parametrize("friction", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("h", [0.1, 0.8, 1.3])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_stationary_law_of_underdamped_langevin(
    h: float, friction: float, temperature: float
) -> None:
    v = 0.6
    shrunk = 1 - h**2 / (4 * v)
    found = stationary(BAOAB(h, friction, temperature), v)
    exact = temperature * torch.diag(torch.tensor([v, shrunk], dtype=F64))
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    found = stationary(OBABO(h, friction, temperature), v)
    exact = temperature * torch.diag(torch.tensor([v / shrunk, 1.0], dtype=F64))
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


def test_without_friction_it_is_leapfrog() -> None:
    model, x, p = double_hump(), normal(9, 1), normal(9, 1, seed=1)
    quiet = [torch.zeros(9, 1, dtype=F64)] * 2
    there, q = leapfrog(model, model(x, 0.0), p, ZERO, 0.3, 1)
    out, state = OBABO(0.3, friction=0.0).step(
        model, x, ZERO, ZERO, KineticState(None, p), ReplayNoise(quiet)
    )
    torch.testing.assert_close(out, there.x)
    torch.testing.assert_close(state.momentum, q)


def test_first_momentum_is_thermal_and_the_state_is_kept() -> None:
    z = [normal(3, 1, seed=k) for k in range(9)]
    model, x = gauss(1.0), normal(3, 1)
    given = KineticState(None, math.sqrt(0.5) * z[0])
    solver = BAOAB(0.2, temperature=0.5)
    one, _ = solver.step(model, x, ZERO, ZERO, None, ReplayNoise(z))
    two, _ = solver.step(model, x, ZERO, ZERO, given, ReplayNoise(z[1:]))
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(given.momentum, math.sqrt(0.5) * z[0])  # never mutated


@pytest.mark.parametrize("solver", [BAOAB(0.25), OBABO(0.1), HMC(0.5, leapfrog_steps=4)], ids=str)
def test_samples_of_a_mixture(solver: BAOAB | OBABO | HMC) -> None:
    """Distance to the exact law, at a false alarm rate of 1e-6 plus the known bias of a step."""
    n, target = 6000, double_hump()
    x = target.sample(n, generator=2)
    out = Sampler(solver, Constant(0.0, 50)).run(target, x, noise=SampleNoise(3))
    assert (out != x).double().mean() > 0.9

    def cdf(u: Tensor) -> Tensor:
        return 0.4 * stats.norm.cdf(u, -1.0, math.sqrt(0.3)) + 0.6 * stats.norm.cdf(
            u, 1.2, math.sqrt(0.6)
        )

    distance = float(stats.kstest(out.flatten().numpy(), cdf).statistic)
    assert distance < math.sqrt(math.log(2e6) / (2 * n)) + 0.003
