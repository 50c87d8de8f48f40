"""What every MCMC kernel shares: claims, ends, graphs, and flags where a chain leaves its law."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scoregen._checks import DivergenceError
from scoregen.densities import Gaussian, GaussianMixture
from scoregen.energies import EnergyModel, Potential, Product, energy_of, line_integral
from scoregen.grids import Constant, Staircase
from scoregen.mcmc import (
    BAOAB,
    HMC,
    MALA,
    OBABO,
    SGLD,
    Chains,
    DualAveraging,
    Kernel,
    KineticState,
    Langevin,
    run_chains,
)
from scoregen.models import Prediction, ScoreModel
from scoregen.noise import BrownianNoise, ReplayNoise, SampleNoise
from scoregen.processes import EDMSDE, VPSDE, Level, StaticSDE
from scoregen.sampling import Sampler
from scoregen.solvers import DDIM, PredictorCorrector, SNRLangevin

F64 = torch.float64
STATIC = StaticSDE()
ZERO = STATIC.level(0.0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def two_modes() -> GaussianMixture:
    return GaussianMixture(
        EDMSDE(),
        torch.tensor([0.3, 0.7]),
        torch.tensor([[-2.0, 0.0], [2.0, 1.0]]),
        torch.tensor([0.3, 0.5]),
    )


class ScoreOnly(ScoreModel):
    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model, self.sde = model, model.sde

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        return Prediction(self.sde, t, x, score=self.model.predict(x, t).score)


@pytest.mark.parametrize(
    ("kernel", "invariant"),
    [
        (MALA(0.1), True),
        (HMC(0.1), True),
        (MALA(0.1, temperature=4.0), False),
        (HMC(0.1, temperature=0.5), False),
        (Langevin(0.1), False),
        (BAOAB(0.1), False),
        (OBABO(0.1), False),
        (SGLD(0.1), False),
        (SNRLangevin(0.5), False),
        (DualAveraging(MALA(0.1), warmup=1), False),
    ],
    ids=str,
)
def test_invariance_is_declared(kernel: Any, invariant: bool) -> None:
    assert kernel.invariant is invariant
    assert kernel.direction == "fixed"
    assert not kernel.population
    with pytest.raises(AttributeError):
        kernel.invariant = True


def test_a_kernel_writes_its_transition_and_nothing_else() -> None:
    class Shift(Kernel):
        def transition(self, model: Any, x: Tensor, t: Level, state: Any, noise: Any) -> Any:
            return x + t.sigma, (state or 0) + 1

    sde = VPSDE()
    model = Gaussian(sde, torch.zeros(1, dtype=F64), 1.0)
    x = normal(3, 1)
    grid = Staircase(2, 2, denoise=True)
    *_, before, last = Sampler(Shift(), grid).iterate(model, x, noise=SampleNoise(0))
    levels = Sampler(Shift(), grid).levels(sde)
    torch.testing.assert_close(before.x, x + sum(t.sigma for t in levels[:-2]))
    assert before.state == 4
    assert last.state is None
    torch.testing.assert_close(last.x, model(before.x, levels[-2]).x0)
    with pytest.raises(ValueError, match="Shift cannot move at sigma = 0"):
        Sampler(Shift(), Constant(0.0, 2)).run(model, x, noise=SampleNoise(0))
    assert Shift().report("anything") is None
    moved = PredictorCorrector(corrector=Shift()).step(
        model, x, sde.level(0.5), sde.level(0.4), None, SampleNoise(0)
    )
    assert torch.isfinite(moved[0]).all()


def test_the_draws_of_one_move_are_independent_on_a_brownian_path() -> None:
    """OBABO draws twice in a move: on a falling grid both used to be the path's one increment."""

    class Flat(EnergyModel):
        sde = EDMSDE()

        def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
            return 0 * x.sum(1)

    sde = Flat.sde
    x = torch.zeros(4000, 1, dtype=F64)
    start = torch.zeros(4000, 1, dtype=F64)
    solver = OBABO(1.0, friction=50.0)  # forgets: p after each thermostat is its draw
    out, state = solver.step(
        Flat(), x, sde.level(2.0), sde.level(1.0), KineticState(None, start), BrownianNoise(0)
    )
    assert state.momentum is not None
    # the first draw is the drift, the second the momentum; correlation of 4000 pairs, 6 sigma
    both = torch.cat([out, state.momentum], 1)
    assert abs(float(torch.corrcoef(both.mT)[0, 1])) < 6 / math.sqrt(4000)


def test_chains_hold_no_graph_that_nothing_needs() -> None:
    captured = torch.tensor(2.0, requires_grad=True)

    class Scale(EnergyModel):
        sde = STATIC

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
            return self.scale * x.square().sum(1)

    x = torch.ones(3, 2)
    assert torch.is_grad_enabled()
    for kernel in (Langevin(0.1), MALA(0.1), HMC(0.1), BAOAB(0.1)):
        last = list(
            Sampler(kernel, Constant(0.0, 3)).iterate(
                Potential(lambda y: y.square().sum(1)), x, noise=SampleNoise(0)
            )
        )[-1]
        assert last.x.grad_fn is None
        here = getattr(last.state, "here", None)
        assert here is None or (here.score.grad_fn is None and here.energy.grad_fn is None)
    # what can be trained still is: a parameter, a captured tensor, x itself
    for model in (Scale(), Potential(lambda y: captured * y.square().sum(1))):
        score = model(x, 0.0).score
        (slope,) = torch.autograd.grad(
            score.sum(), model.scale if isinstance(model, Scale) else captured
        )
        assert float(slope) == -12.0
    leaf = x.clone().requires_grad_()
    assert Potential(lambda y: y.square().sum(1))(leaf, 0.0).score.requires_grad


def test_chains_that_leave_the_support_are_flagged() -> None:
    """E = x - log x: outside x > 0 the energy is nan, but its derivative is finite."""
    gamma = Potential(lambda x: (x - x.log()).sum(1))
    assert gamma(torch.tensor([[-1.0], [2.0]]), 0.0).score.isnan().flatten().tolist() == [1, 0]
    start = torch.full((20, 1), 0.5, dtype=F64)
    for kernel in (Langevin(0.3), BAOAB(0.6), OBABO(0.6)):
        with pytest.raises(DivergenceError):
            run_chains(Sampler(kernel, Constant(0.0, 50)), gamma, start)
    # the last move has no successor to notice it
    one = Sampler(Langevin(1.0), Constant(0.0, 1))
    with pytest.raises(DivergenceError, match="1 rows"):
        run_chains(one, gamma, start[:1], noise=ReplayNoise([torch.full((1, 1), -9.0).double()]))
    kept = run_chains(Sampler(MALA(0.3), Constant(0.0, 50)), gamma, start)
    assert kept.draws.min() > 0


def test_metropolis_reports_the_error_of_its_line_integral() -> None:
    mix = two_modes()
    t = mix.sde.level(0.1)
    x = 2 * normal(500, 2)
    hidden = ScoreOnly(mix)
    for kernel in (MALA(0.5), HMC(0.8, leapfrog_steps=2)):
        _, exact = kernel.step(mix, x, t, t, None, SampleNoise(0))
        _, state = kernel.step(hidden, x, t, t, None, SampleNoise(0))
        assert exact.energy_error.isfinite().all()
        gap = (exact.acceptance.log() - state.acceptance.log()).abs()
        inside = (state.acceptance < 1) & (exact.acceptance < 1)
        assert inside.sum() > 20
        # false for about one pair in a thousand
        assert (gap[inside] <= state.energy_error[inside] + 1e-10).double().mean() > 0.99
        assert state.energy_error.max() > 1e-3
    _, state = MALA(0.1).step(
        Potential(lambda y: y.square().sum(1)), x, ZERO, ZERO, None, SampleNoise(0)
    )
    assert (state.energy_error == 0).all()
    # a product of an exact part and a score: only the score's integral counts
    prior = Product(Potential(lambda y: y.pow(4).sum(1)), hidden)
    _, state = MALA(0.05).step(prior, x, t, t, None, SampleNoise(0))
    assert state.energy_error.max() > 0


@pytest.mark.parametrize("pairs", [2000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_line_integrals_state_an_upper_bound_of_their_error(pairs: int) -> None:
    """Two modes at sigma = 0.1: 3 % of the pairs had more error than stated, up to 615 times."""
    mix = two_modes()
    a, b = 3 * normal(pairs, 2, seed=2), 3 * normal(pairs, 2, seed=3)
    exact = mix.log_prob(a, 0.1) - mix.log_prob(b, 0.1)
    for options in ({}, {"tolerance": math.inf}, {"nodes": 8, "tolerance": 1e-2}):
        found = line_integral(mix, a, b, 0.1, **options)  # type: ignore[arg-type]
        error = (found.difference - exact).abs()
        assert (error > found.error).double().mean() <= 1e-3
    assert found.error.max() <= 1e-2 + 1e-9
    # one halving is not enough, and the error says so
    short = line_integral(mix, a, b, 0.1, halvings=1)
    assert short.error.max() > 1e-2
    single = line_integral(mix, a[:1], b[:1], 0.1)
    torch.testing.assert_close(single.difference, line_integral(mix, a, b, 0.1).difference[:1])


def test_a_frozen_step_is_an_invariant_kernel() -> None:
    model = Gaussian(STATIC, torch.zeros(3, dtype=F64), 1.0)
    tuning = DualAveraging(MALA(0.01), warmup=150)
    *_, last = Sampler(tuning, Constant(0.0, 150)).iterate(
        model, normal(16, 3), noise=SampleNoise(0)
    )
    kernel = tuning.frozen(last.state)
    assert kernel.invariant
    assert isinstance(kernel.step_size, float)
    assert kernel.step_size == pytest.approx(0.01 * math.exp(float(last.state.log_average.mean())))
    rule = DualAveraging(HMC(lambda t: 2.0 + t.t, leapfrog_steps=2), warmup=2)
    made = rule.frozen(last.state)
    assert callable(made.step_size)
    ratio = made.step_size(STATIC.level(1.0)) / made.step_size(ZERO)
    assert ratio == pytest.approx(1.5)
    assert made.leapfrog_steps == 2  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="tuned for 150"):
        tuning.frozen(last.state._replace(move=3))


def test_chains_print_short_and_take_a_seed() -> None:
    model = Gaussian(STATIC, torch.zeros(2, dtype=F64), 1.0)
    sampler = Sampler(MALA(0.5), Constant(0.0, 40))
    x = normal(5, 2)
    found = run_chains(sampler, model, x, seed=3, warmup=10)
    assert len(repr(found)) < 200
    assert "5 chains of 30 draws" in repr(found)
    assert "acceptance=" in repr(found)
    again = run_chains(sampler, model, x, noise=SampleNoise(3, draw=1), warmup=10)
    assert torch.equal(found.draws, again.draws)
    one = run_chains(sampler, model, x, seed=torch.Generator().manual_seed(1))
    two = run_chains(sampler, model, x, seed=torch.Generator().manual_seed(1))
    assert torch.equal(one.draws, two.draws)
    assert not torch.equal(run_chains(sampler, model, x).draws, one.draws)
    assert "acceptance" not in repr(Chains(torch.zeros(1, 4), None, None, None, 1.0, 4))
    with pytest.raises(ValueError, match="not both"):
        run_chains(sampler, model, x, seed=1, noise=SampleNoise(0))
    with pytest.raises(ValueError, match="finite"):
        run_chains(sampler, model, x * math.nan)
    with pytest.raises(TypeError, match="real"):
        run_chains(sampler, model, x.to(torch.complex128))
    with pytest.raises(ValueError):
        MALA(math.nan)
    with pytest.raises(ValueError):
        HMC(math.inf)
    with pytest.raises(TypeError, match="kernel"):
        run_chains(Sampler(DDIM(), Constant(0.0, 3)), model, x)


def test_energy_of_refuses_what_is_not_a_number() -> None:
    with pytest.raises(TypeError, match="real"):
        energy_of(Potential(lambda x: x.real.sum(1)), torch.ones(1, 1, dtype=torch.complex64))
