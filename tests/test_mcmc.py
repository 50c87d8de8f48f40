"""Langevin, MALA, SGLD, tuning, diagnostics and log Z: exact laws first, statistics last."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from scoregen._checks import DivergenceError
from scoregen.densities import Gaussian, GaussianMixture
from scoregen.energies import GeometricPath, Negated, Potential, Product, energy_of
from scoregen.grids import Constant, Staircase, Times, UniformLam, UniformTime
from scoregen.mcmc import (
    BAOAB,
    HMC,
    MALA,
    OBABO,
    SGLD,
    Chains,
    DualAveraging,
    Kernel,
    Langevin,
    Metropolis,
    NCSNStep,
    NCSNv2Step,
    PolynomialDecay,
    PosteriorEnergy,
    annealed_importance,
    autocorrelation,
    autocorrelation_time,
    chain_report,
    ess,
    rank_normalised,
    run_chains,
    split_rhat,
    thermodynamic_integration,
)
from scoregen.models import Counted, Eps, Prediction, ScoreModel, ScoreNetwork
from scoregen.networks.mlp import MLP
from scoregen.noise import ReplayNoise, SampleNoise, TorchNoise
from scoregen.processes import EDMSDE, VPSDE, Level, RectifiedSDE, StaticSDE
from scoregen.sampling import Sampler, Solver
from scoregen.solvers import DDIM

F64 = torch.float64
STATIC, VP = StaticSDE(), VPSDE()
ZERO = STATIC.level(0.0)


@pytest.fixture(autouse=True)
def _no_graphs() -> Iterator[None]:
    with torch.no_grad():
        yield


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=F64)


def gauss(variance: float = 1.0, mean: float = 0.0, sde: Any = STATIC) -> Gaussian:
    return Gaussian(sde, torch.full((1,), mean, dtype=F64), variance)


def double_hump(sde: Any = STATIC) -> GaussianMixture:
    means = torch.tensor([[-1.0], [1.2]])
    return GaussianMixture(sde, torch.tensor([0.4, 0.6]), means, torch.tensor([0.3, 0.6]))


class ScoreOnly(ScoreModel):
    """Hides the density, so that only the line integral is left."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model, self.sde = model, model.sde

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        return Prediction(self.sde, t, x, score=self.model.predict(x, t).score)


def move(solver: Solver, model: ScoreModel, x: Tensor, *draws: Tensor) -> tuple[Tensor, Any]:
    """One move with given draws."""
    return solver.step(model, x, ZERO, ZERO, None, ReplayNoise(list(draws)))


def surely(x: Tensor) -> Tensor:
    """The draw whose uniform is so small that whatever can be accepted is."""
    return torch.full((len(x),), -30.0, dtype=F64)


def judged(solver: Solver, model: ScoreModel, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """(proposal, probability of its acceptance)."""
    y, state = move(solver, model, x, z, surely(x))
    return y, state.acceptance


def ks_bound(n: int, alpha: float = 1e-6) -> float:
    """Dvoretzky-Kiefer-Wolfowitz: the distance exceeded with probability alpha, for every n."""
    return math.sqrt(math.log(2 / alpha) / (2 * n))


def mixture_cdf(model: GaussianMixture, level: Level = ZERO) -> Callable[[Any], Any]:
    means = (level.alpha * model.means).flatten().tolist()
    scales = (level.alpha**2 * model.variances + level.sigma**2).sqrt().flatten().tolist()
    weights = model.log_weights.exp().tolist()

    def cdf(x: Any) -> Any:
        rows = zip(weights, means, scales, strict=True)
        return sum(w * stats.norm.cdf(x, m, s) for w, m, s in rows)

    return cdf


def ks(x: Tensor, cdf: Callable[[Any], Any]) -> float:
    return float(stats.kstest(x.flatten().numpy(), cdf).statistic)


# Unadjusted Langevin


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize(("variance", "h"), [(1.0, 0.1), (1.0, 0.5), (0.3, 0.2)])
def test_langevin_stationary_variance(variance: float, h: float, temperature: float) -> None:
    # the affine recursion x' = a x + b z, read off unit inputs
    x = torch.tensor([[0.0], [1.0], [0.0]], dtype=F64)
    z = torch.tensor([[0.0], [0.0], [1.0]], dtype=F64)
    out, _ = move(Langevin(h, temperature), gauss(variance), x, z)
    a, b = float(out[1] - out[0]), float(out[2] - out[0])
    assert b**2 / (1 - a**2) == pytest.approx(
        temperature * variance / (1 - h / (2 * variance)), rel=1e-12
    )


def test_annealed_langevin_on_a_staircase_is_the_recursion() -> None:
    rule = NCSNStep(0.02, 0.1)
    sde = EDMSDE(0.1, 2.0)
    sampler = Sampler(Langevin(rule), Staircase(5, 3))
    model = gauss(0.3, sde=sde)
    gains, variance = 1.0, 0.0
    for t in sampler.levels(sde)[:-1]:
        h = 0.02 * t.sigma**2 / 0.1**2 / 2
        a = 1 - h / (0.3 + t.sigma**2)
        gains, variance = a * gains, a**2 * variance + 2 * h
    draws = [torch.zeros(16, 1, dtype=F64) for _ in range(15)]
    for k, z in enumerate(draws):
        z[k + 1] = 1
    x = torch.zeros(16, 1, dtype=F64)
    out = sampler.run(model, x, noise=ReplayNoise(draws)).flatten()
    assert float(((out - out[0]) ** 2).sum()) == pytest.approx(variance, rel=1e-10)
    ones = [torch.zeros(1, 1, dtype=F64)] * 15
    moved = sampler.run(model, torch.ones(1, 1, dtype=F64), noise=ReplayNoise(ones))
    assert float(moved) == pytest.approx(gains, rel=1e-10)


def test_ncsnv2_rule() -> None:
    level = Level(0.5, 1.0, 0.4, 0.0)
    rule = NCSNv2Step(0.01, 0.2)
    assert rule(level) == pytest.approx(0.04)
    assert rule(level) == pytest.approx(2 * NCSNStep(0.01, 0.2)(level))
    # `repeats` steps at sigma = 1 on data at a point, started at three times the spread
    a, b2, v = 1 - 0.25, 2 * 0.25, 9.0
    for _ in range(4):
        v = a**2 * v + b2
    assert rule.variance_ratio(3.0, 4) == pytest.approx(v)


# Metropolis: exactness without Monte Carlo


def pairs() -> tuple[Tensor, Tensor]:
    return 1.5 * normal(500, 1), 1.5 * normal(500, 1, seed=1)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("h", [0.02, 0.4, 1.5])
@pytest.mark.parametrize("hidden", [False, True])
def test_mala_detailed_balance_on_pairs(h: float, temperature: float, hidden: bool) -> None:
    target = double_hump()
    model: ScoreModel = ScoreOnly(target) if hidden else target
    solver = MALA(h, temperature, nodes=40)
    x, y = pairs()
    near = (x - y).abs().flatten() < 6 * math.sqrt(h)
    x, y = x[near], y[near]

    def flow(a: Tensor, b: Tensor) -> Tensor:
        """log of p(a) q(b | a) acceptance(a, b)."""
        z = (b - a - h * target.score(a, 0.0)) / math.sqrt(2 * h * temperature)
        reached, acceptance = judged(solver, model, a, z)
        taken = acceptance > 1e-200
        torch.testing.assert_close(reached[taken], b[taken])
        log_q = -z.square().sum(1) / 2
        return target.log_prob(a, 0.0) / temperature + log_q + acceptance.log()

    there, back = flow(x, y), flow(y, x)
    fine = torch.isfinite(there) & torch.isfinite(back)
    assert fine.double().mean() > 0.5
    tolerance = 1e-4 if hidden else 1e-9
    torch.testing.assert_close(there[fine], back[fine], rtol=tolerance, atol=tolerance)


def drift(solver: Solver, model: ScoreModel, logp: Callable[[Tensor], Tensor]) -> list[float]:
    """Change in one move of E f for f = x^2, x^4, cos 2x, by quadrature over x and z."""
    x = torch.linspace(-10, 10, 1601, dtype=F64)
    z = torch.linspace(-7, 7, 401, dtype=F64)
    px = (logp(x.unsqueeze(1)) - logp(x.unsqueeze(1)).max()).exp()
    px = px / px.sum()
    pz = (-z.square() / 2).exp()
    pz = pz / pz.sum()
    xs = x.repeat_interleave(len(z)).unsqueeze(1)
    zs = z.repeat(len(x)).unsqueeze(1)
    y, acceptance = judged(solver, model, xs, zs)
    weight = px.repeat_interleave(len(z)) * pz.repeat(len(x)) * acceptance
    found = []
    for f in (torch.square, lambda u: u.pow(4), lambda u: torch.cos(2 * u)):
        found.append(float((weight * (f(y) - f(xs)).flatten()).sum()))
    return found


@pytest.mark.parametrize(
    "solver", [MALA(0.3), MALA(0.3, temperature=2.0), HMC(0.5, leapfrog_steps=3)]
)
def test_metropolis_leaves_the_target_invariant(solver: Metropolis) -> None:
    target = double_hump()
    found = drift(solver, target, lambda x: target.log_prob(x, 0.0) / solver.temperature)
    assert max(map(abs, found)) < 2e-5

    # the same quadrature sees a mistake: without the acceptance the target moves
    class Always(MALA):
        def propose(self, *arguments: Any) -> Any:
            there, ratio, error = super().propose(*arguments)
            return there, torch.zeros_like(ratio), error

    assert max(map(abs, drift(Always(0.3), target, lambda x: target.log_prob(x, 0.0)))) > 1e-2


@pytest.mark.parametrize("h", [0.3, 1.0, 1.7])
def test_mala_acceptance_rate_in_one_dimension(h: float) -> None:
    v = 0.8
    a = 1 - h / v
    vy = a**2 * v + 2 * h
    rho = (vy - v) / math.sqrt((vy + v) ** 2 - 4 * a**2 * v**2)
    x = torch.linspace(-8, 8, 801, dtype=F64)
    weight = (-x.square() / 2).exp()
    weight = weight / weight.sum()
    xs = (x * math.sqrt(v)).repeat_interleave(801).unsqueeze(1)
    _, acceptance = judged(MALA(h), gauss(v), xs, x.repeat(801).unsqueeze(1))
    mean = (acceptance.reshape(801, 801) * weight * weight.unsqueeze(1)).sum()
    assert float(mean) == pytest.approx(2 / math.pi * math.acos(rho), abs=1e-4)


def test_accepts_with_the_stated_probability() -> None:
    # the uniform is Phi(z): the move is taken exactly when Phi(z) < acceptance
    x, z = normal(300, 1), normal(300, 1, seed=1)
    y, acceptance = judged(MALA(1.5), gauss(), x, z)
    for shift, taken in ((-1e-6, True), (1e-6, False)):
        edge = torch.special.ndtri((acceptance + shift).clamp(1e-12, 1 - 1e-12))
        out, state = move(MALA(1.5), gauss(), x, z, edge)
        sharp = (acceptance > 1e-3) & (acceptance < 0.999)
        assert sharp.sum() > 50
        assert (state.accepted[sharp] == taken).all()
        torch.testing.assert_close(out[sharp], (y if taken else x)[sharp])


def chi_squared(x: Tensor, variance: float) -> float:
    """Two-sided p-value of independent draws of N(0, variance)."""
    p = float(stats.chi2.cdf(float((x**2).sum()) / variance, x.numel()))
    return 2 * min(p, 1 - p)


@pytest.mark.parametrize(
    "solver",
    [MALA(1.2), HMC(1.1, leapfrog_steps=2), MALA(0.8, temperature=0.5)],
    ids=["mala", "hmc", "cold"],
)
def test_chains_that_start_right_stay_right(solver: Metropolis) -> None:
    # a chain of 20 moves from exact draws; false alarm 1e-6 each; ULA at this step is off by 2.5
    n = 20_000
    x = math.sqrt(solver.temperature) * normal(n, 1, seed=3)
    run = Sampler(solver, Constant(0.0, 20)).run
    assert chi_squared(run(gauss(), x, noise=SampleNoise(0)), solver.temperature) > 1e-6
    if solver.temperature == 1.0:
        target = double_hump()
        start = target.sample(n, generator=5)
        out = run(target, start, noise=SampleNoise(1))
        assert (out != start).double().mean() > 0.5
        assert ks(out, mixture_cdf(target)) < ks_bound(n)


def test_unadjusted_chain_fails_the_same_test() -> None:
    out = Sampler(Langevin(1.2), Constant(0.0, 20)).run(
        gauss(), normal(20_000, 1, seed=3), noise=SampleNoise(0)
    )
    assert chi_squared(out, 1.0) < 1e-6


@pytest.mark.parametrize("solver", [MALA(0.4), HMC(0.6, leapfrog_steps=3)], ids=["mala", "hmc"])
def test_geweke_joint(solver: Metropolis) -> None:
    """theta ~ N(0, 1), y ~ N(theta, 1): alternating exact y and moves of theta keeps the joint."""
    n = 10_000
    theta, noise = normal(n, 1, seed=7), TorchNoise(generator(8))
    g = generator(9)
    for _ in range(15):
        y = theta + torch.randn(n, 1, generator=g, dtype=F64)

        def energy(x: Tensor, y: Tensor = y) -> Tensor:
            return (x.square() + (y - x).square()).sum(1) / 2

        theta, _ = solver.step(Potential(energy), theta, ZERO, ZERO, None, noise)
    assert chi_squared(theta, 1.0) > 1e-6
    assert chi_squared(y, 2.0) > 1e-6
    assert chi_squared(y - theta, 1.0) > 1e-6


# Per sample, cost, errors

SOLVERS: list[Solver] = [
    Langevin(0.1),
    MALA(0.5),
    HMC(0.4, leapfrog_steps=3),
    BAOAB(0.3),
    OBABO(0.3),
    DualAveraging(MALA(0.5), 8),
    DualAveraging(HMC(0.5, leapfrog_steps=2), 8),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("event", [(), (3,), (1, 4, 4)])
def test_batch_mates_never_matter(solver: Solver, event: tuple[int, ...]) -> None:
    model = Gaussian(STATIC, torch.zeros(event), 1.0)
    sampler = Sampler(solver, Constant(0.0, 15))
    together = sampler.sample(model, (7, *event), seed=4)
    alone = sampler.sample(model, (1, *event), seed=4, first=5)
    assert torch.equal(together[5:6], alone)
    draws = [normal(6, *event, seed=k) for k in range(40)]
    flat = [normal(6, seed=100 + k) for k in range(40)]
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    class Shuffled:
        def __init__(self, rows: Tensor) -> None:
            self.rows, self.k = rows, -1

        def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
            self.k += 1
            return (draws if like.shape[1:] == event and event else flat)[self.k][self.rows]

    x = normal(6, *event, seed=77)
    plain = sampler.run(model, x, noise=Shuffled(torch.arange(6)))
    turned = sampler.run(model, x[order], noise=Shuffled(order))
    assert torch.equal(plain[order], turned)


@pytest.mark.parametrize(
    ("solver", "evaluations"),
    [
        (Langevin(0.1), 10),
        (MALA(0.1), 11),
        (HMC(0.1, leapfrog_steps=4), 41),
        (BAOAB(0.1), 11),
        (OBABO(0.1), 11),
    ],
    ids=lambda s: str(s),
)
def test_one_new_evaluation_per_gradient(solver: Solver, evaluations: int) -> None:
    model = Potential(lambda x: x.square().sum(1) / 2)
    with Counted(model) as count:
        Sampler(solver, Constant(0.0, 10)).sample(model, (3, 2))
    assert count.rows == 3 * evaluations


def test_kept_score_is_dropped_when_the_level_changes() -> None:
    model = gauss(0.2, sde=EDMSDE(0.1, 2.0))
    sampler = Sampler(MALA(0.05), Staircase(3, 4, denoise=True))
    with Counted(model) as count:
        out = sampler.sample(model, (2, 1), dtype=F64)
    assert count.rows == 2 * (12 + 3 + 1)
    assert torch.isfinite(out).all()
    steps = list(sampler.iterate(model, normal(2, 1), noise=SampleNoise(0)))
    for before, after in pairwise(steps[:-1]):
        kept = after.state.here
        torch.testing.assert_close(kept.x, after.x)
        torch.testing.assert_close(kept.score, model.score(after.x, before.t))
    assert steps[-1].state is None


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_no_start_at_zero_noise(solver: Solver) -> None:
    for sde in (VP, EDMSDE(), RectifiedSDE()):
        with pytest.raises(ValueError, match="Constant"):
            Sampler(solver, Constant(0.0, 3)).sample(gauss(sde=sde), (2, 1))
    levels = VP.level(0.01), VP.level(0.0)
    x = normal(3, 1)
    out, state = solver.step(gauss(sde=VP), x, *levels, None, SampleNoise(0))
    torch.testing.assert_close(out, gauss(sde=VP)(x, 0.01).x0)
    assert state is None


def test_bad_settings_are_refused() -> None:
    for make in (
        lambda: MALA(0.0),
        lambda: MALA(-1.0),
        lambda: MALA(0.1, temperature=0.0),
        lambda: HMC(0.1, leapfrog_steps=0),
        lambda: BAOAB(0.1, friction=-1.0),
        lambda: DualAveraging(MALA(0.1), 10, target=1.0),
        lambda: Langevin(0.1, temperature=-1.0),
        lambda: SGLD(0.1, rows=0),
        lambda: PolynomialDecay(0.1, power=2.0),
    ):
        with pytest.raises(ValueError):
            make()
    with pytest.raises(TypeError, match="accepts or rejects"):
        DualAveraging(Langevin(0.1), 10)  # type: ignore[arg-type]


def test_a_network_with_only_a_score_can_be_corrected() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ScoreNetwork(MLP((2,), hidden=16, depth=1), VP, Eps())
    for solver in (MALA(0.01), HMC(0.05, leapfrog_steps=2)):
        with Counted(model) as count:
            out = Sampler(solver, Constant(0.3, 3)).sample(model, (4, 2))
        leaps = getattr(solver, "leapfrog_steps", 1)
        assert count.rows == 4 * (1 + 3 * (leaps + 8))
        assert torch.isfinite(out).all()


@pytest.mark.slow
def test_dual_averaging_reaches_its_target_per_chain() -> None:
    model = Gaussian(STATIC, torch.zeros(10), torch.logspace(-1, 0, 10))
    for first in (1e-3, 1.0):
        solver = DualAveraging(MALA(first), 400, target=0.6)
        chains = run_chains(
            Sampler(solver, Constant(0.0, 1400)),
            model,
            model.sample(16).float(),
            noise=SampleNoise(0),
            warmup=400,
        )
        assert chains.acceptance is not None
        assert (chains.acceptance - 0.6).abs().max() < 0.12
        assert chains.step_size.shape == (16,)
        assert chains.step_size.std() / chains.step_size.mean() < 0.3


def test_divergence_is_reported() -> None:
    steep = Potential(lambda x: x.pow(4).sum(1))
    with pytest.raises(DivergenceError, match="smaller steps") as caught:
        Sampler(Langevin(1.0), Constant(0.0, 200)).sample(steep, (3, 2))
    assert caught.value.rows
    with pytest.raises(DivergenceError):
        run_chains(
            Sampler(Langevin(1.0), Constant(0.0, 100)),
            steep,
            3 * torch.ones(3, 2),
            noise=SampleNoise(0),
        )
    # Metropolis refuses the proposals, stays finite, and says so
    chains = run_chains(
        Sampler(HMC(3.0, leapfrog_steps=20), Constant(0.0, 150)),
        steep,
        torch.ones(3, 2),
        noise=SampleNoise(0),
    )
    assert torch.isfinite(chains.draws).all()
    text = " ".join(chain_report(chains).warnings)
    assert "diverged" in text
    assert "never accepted" in text
    # a step beyond 2 / L that has not overflowed yet
    slow = run_chains(
        Sampler(Langevin(2.4), Constant(0.0, 60)), gauss(), normal(4, 1), noise=SampleNoise(0)
    )
    assert "grew" in " ".join(chain_report(slow).warnings)
    free = run_chains(
        Sampler(MALA(1e-6), Constant(0.0, 150)), gauss(), normal(4, 1), noise=SampleNoise(0)
    )
    assert "always accepted" in " ".join(chain_report(free).warnings)


def test_good_run_has_no_warning() -> None:
    sampler = Sampler(HMC(1.0, leapfrog_steps=2), Constant(0.0, 600))
    chains = run_chains(sampler, gauss(), normal(8, 1), noise=SampleNoise(0), warmup=100, thin=2)
    assert chains.draws.shape == (8, 250, 1)
    found = chain_report(chains)
    assert found.warnings == ()
    assert chains.evaluations == 1000
    assert found.ess_per_evaluation == pytest.approx(found.ess / 8000)
    with pytest.raises(ValueError, match="warmup"):
        run_chains(sampler, gauss(), normal(8, 1), noise=SampleNoise(0), warmup=600)


# SGLD


def conjugate(rows: int = 50) -> tuple[PosteriorEnergy, Tensor]:
    data = 0.5 + normal(rows, seed=11)

    def prior(x: Tensor) -> Tensor:
        return x.square().sum(1) / 2

    def term(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square() / 2

    return PosteriorEnergy(prior, term, data), data


def test_sum_of_terms_and_its_minibatches() -> None:
    model, data = conjugate()
    x = normal(6, 1)
    exact = -x - (x - data).sum(1, keepdim=True)
    torch.testing.assert_close(model.score(x, 0.0).detach(), exact)
    every = torch.arange(50).expand(6, 50)
    torch.testing.assert_close(model.score(x, 0.0, rows=every).detach(), exact)
    with pytest.raises(TypeError, match="minibatch"):
        model(x, 0.0, minibatch=every)
    with pytest.raises(TypeError, match="PosteriorEnergy"):
        Sampler(SGLD(0.1), Constant(0.0, 2)).sample(gauss(), (2, 1))
    with pytest.raises(ValueError, match="one per row"):
        PosteriorEnergy(lambda x: x.sum(1), lambda x, y: y.sum(1), data)(x, 0.0)


def test_sgld_law_in_closed_form() -> None:
    """Mean and variance by recursion, gradient noise included; false alarm 1e-6 each."""
    model, data = conjugate()
    n, batch, count = 20_000, 5, len(data)
    decay = PolynomialDecay(0.008, delay=20.0, power=0.7)
    mean = spread = 0.0
    for k in range(30):
        h = decay(k)
        a = 1 - h * (1 + count)
        mean = a * mean + h * float(data.sum())
        # x - y_i over random rows: only y varies, variance N^2 / m var(y)
        spread = a**2 * spread + 2 * h + h**2 * count**2 / batch * float(data.var(correction=0))
    out = Sampler(SGLD(decay, batch), Constant(0.0, 30)).run(
        model, torch.zeros(n, 1, dtype=F64), noise=SampleNoise(2)
    )
    z = (float(out.mean()) - mean) / math.sqrt(spread / n)
    assert 2 * stats.norm.sf(abs(z)) > 1e-6
    # the gradient noise is nearly Gaussian: the variance of a variance is 2 v^2 / n, within 10 %
    z = (float(out.var()) / spread - 1) / math.sqrt(2.2 / n)
    assert 2 * stats.norm.sf(abs(z)) > 1e-6


def test_sgld_rows_are_uniform_and_per_chain() -> None:
    seen = []

    class Spy(PosteriorEnergy):
        def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
            seen.append(condition["rows"])
            return super().energy(x, t, **condition)

    spy = Spy(lambda x: x.square().sum(1), lambda x, y: (x - y).square(), normal(7))
    Sampler(SGLD(1e-4, 10), Constant(0.0, 50)).sample(spy, (40, 1), dtype=F64)
    rows = torch.stack(seen)
    counts = torch.bincount(rows.flatten(), minlength=7)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-6
    assert not torch.equal(rows[0, 0], rows[0, 1])
    assert not torch.equal(rows[0, 0], rows[1, 0])


# Diagnostics


def ar1(chains: int, n: int, r: float, seed: int = 0) -> Tensor:
    z = normal(chains, n, seed=seed)
    x = z.clone()
    for i in range(1, n):
        x[:, i] = r * x[:, i - 1] + math.sqrt(1 - r * r) * z[:, i]
    return x


@pytest.mark.parametrize("r", [-0.5, 0.0, 0.7, 0.95])
def test_autocorrelation_of_ar1(r: float) -> None:
    draws = ar1(8, 20_000, r)
    rho = autocorrelation(draws)
    assert rho.shape == (20_000,)
    wanted = r ** torch.arange(6, dtype=F64)
    assert (rho[:6] - wanted).abs().max() < 0.03
    tau = (1 + r) / (1 - r)
    assert float(autocorrelation_time(draws)) == pytest.approx(tau, rel=0.12)
    assert float(ess(draws)) == pytest.approx(160_000 / tau, rel=0.12)
    assert float(split_rhat(draws)) == pytest.approx(1.0, abs=0.01)


def test_rhat_sees_disagreement_and_drift() -> None:
    draws = ar1(4, 500, 0.0)
    apart = draws + torch.tensor([0.0, 0.0, 0.0, 2.0]).unsqueeze(1)
    assert split_rhat(apart) > 1.2
    assert ess(apart) < 50
    drifting = draws + torch.linspace(-1, 1, 500, dtype=F64)
    assert split_rhat(drifting) > 1.1
    # (n - 1) / n + B / W by hand, on two half chains of two draws
    tiny = torch.tensor([[0.0, 2.0, 3.0, 5.0]], dtype=F64)
    assert float(split_rhat(tiny)) == pytest.approx(math.sqrt(0.5 + 4.5 / 2))
    still = torch.zeros(2, 10, dtype=F64)
    assert ess(still).isnan()


def test_per_coordinate_and_shapes() -> None:
    draws = torch.stack([ar1(4, 400, 0.0), ar1(4, 400, 0.9)], 2)
    found = ess(draws)
    assert found.shape == (2,)
    assert found[0] > 5 * found[1]
    torch.testing.assert_close(found[1], ess(draws[..., 1]))
    torch.testing.assert_close(rank_normalised(draws)[..., 1], rank_normalised(draws[..., 1]))
    with pytest.raises(ValueError, match="4 draws"):
        ess(torch.zeros(4, 3))


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("r", [-0.5, 0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("chains", "n"), [(4, 1000), (3, 500), (2, 38), (8, 64)])
def test_diagnostics_equal_arviz(chains: int, n: int, r: float) -> None:
    arviz = pytest.importorskip("arviz")
    draws = ar1(chains, n, r)
    theirs = draws.numpy()
    assert float(ess(draws)) == pytest.approx(float(arviz.ess(theirs, method="mean")), rel=1e-9)
    ranked = rank_normalised(draws)
    assert float(ess(ranked)) == pytest.approx(float(arviz.ess(theirs, method="bulk")), rel=1e-9)
    assert float(split_rhat(draws)) == pytest.approx(float(arviz.rhat(theirs, method="split")))
    folded = rank_normalised((draws - draws.median()).abs())
    if n % 4 == 0:  # a torch median of an even count is its lower one
        mine = float(split_rhat(ranked))
        assert mine == pytest.approx(float(arviz.rhat(theirs, method="z_scale")), rel=1e-9)
        assert float(split_rhat(folded)) > 0


# Posteriors and products


def test_prior_times_likelihood_reaches_the_posterior() -> None:
    """A mixture prior and y = x + N(0, 0.5): the posterior is a mixture; false alarm 1e-6."""
    y, noise, n = 0.3, 0.5, 5000
    prior = double_hump()
    model = Product(prior, Potential(lambda x: (x - y).square().sum(1) / (2 * noise)))
    m, v = prior.means.flatten(), prior.variances.flatten()
    after = 1 / (1 / v + 1 / noise)
    log_w = prior.log_weights - 0.5 * ((y - m) ** 2 / (v + noise) + (v + noise).log())
    exact = GaussianMixture(
        STATIC, log_w.softmax(0), (after * (m / v + y / noise)).unsqueeze(1), after
    )
    for solver in (MALA(0.3), HMC(0.5, leapfrog_steps=3)):
        out = Sampler(solver, Constant(0.0, 60)).run(model, normal(n, 1), noise=SampleNoise(0))
        assert ks(out, mixture_cdf(exact)) < ks_bound(n)


def annealed(model: ScoreModel, n: int, seed: int) -> Tensor:
    """Annealed MALA from t_max to t_min, with a step that follows the noise."""

    def step(t: Level) -> float:
        return 0.4 * (0.12 * t.alpha**2 + t.sigma**2)

    sampler = Sampler(MALA(step), Staircase(12, 12))
    return sampler.sample(model, (n, 1), seed=seed, dtype=F64)


def test_naive_sum_of_scores_is_biased_and_mala_is_not_on_gaussians() -> None:
    """p_A p_B / N(0, 1) on a VP process, on which N(0, 1) never changes (Du et al. 2023)."""
    n = 5000
    model = Product(gauss(0.6, sde=VP), gauss(0.4, sde=VP), Negated(gauss(1.0, sde=VP)))
    low = VP.level(VP.t_min)
    va, vb = (low.alpha**2 * v + low.sigma**2 for v in (0.6, 0.4))
    exact = 1 / (1 / va + 1 / vb - 1)
    # the naive sampler is linear in x: its output variance is the square of its gain
    x = torch.ones(1, 1, dtype=F64)
    naive = Sampler(DDIM(), UniformLam(2000, stop=VP.t_min))
    gain = float(naive.run(model, x, noise=SampleNoise(0)))
    assert abs(gain**2 / exact - 1) > 0.1
    out = annealed(model, n, seed=1)
    assert chi_squared(out, exact) > 1e-6
    assert chi_squared(out * math.sqrt(gain**2 / exact), exact) < 1e-6  # and the bias would show


def test_naive_sum_of_scores_is_biased_and_mala_is_not_on_mixtures() -> None:
    n = 5000

    def two(means: list[float], variances: list[float]) -> GaussianMixture:
        rows = torch.tensor(means).unsqueeze(1)
        return GaussianMixture(VP, torch.tensor([0.5, 0.5]), rows, torch.tensor(variances))

    a, b = two([-0.9, 0.8], [0.3, 0.5]), two([-0.5, 1.0], [0.6, 0.3])
    model = Product(a, b)
    low = VP.level(VP.t_min)
    weights, means, variances = [], [], []
    for i in range(2):
        for j in range(2):
            m1, m2 = (low.alpha * float(p.means[k]) for p, k in ((a, i), (b, j)))
            s1, s2 = (
                low.alpha**2 * float(p.variances[k, 0]) + low.sigma**2 for p, k in ((a, i), (b, j))
            )
            variances.append(1 / (1 / s1 + 1 / s2))
            means.append(variances[-1] * (m1 / s1 + m2 / s2))
            weights.append(float(stats.norm.pdf(m1, m2, math.sqrt(s1 + s2))))
    exact = GaussianMixture(
        STATIC, torch.tensor(weights), torch.tensor(means).unsqueeze(1), torch.tensor(variances)
    )
    x = torch.randn(n, 1, generator=generator(2), dtype=F64)
    naive = Sampler(DDIM(), UniformLam(200, stop=VP.t_min)).run(
        model, x * math.sqrt(0.5), noise=SampleNoise(0)
    )
    assert ks(naive, mixture_cdf(exact)) > 3 * ks_bound(n)
    assert ks(annealed(model, n, seed=3), mixture_cdf(exact)) < ks_bound(n)


# log Z


class Exact(Kernel):
    """Perfect transitions of N(0, 1 / l(t)) with l = 1 / t^2: a fresh draw at every move."""

    invariant = True

    def transition(self, model: Any, x: Tensor, t: Level, state: Any, noise: Any) -> Any:
        return t.t * noise(x, t, t), None


class Precision(Potential):
    """E = l(t) x^2 / 2 with l = 1 / t^2, whose Z is t sqrt(2 pi)."""

    def __init__(self) -> None:
        super().__init__(lambda x: x.square().sum(1))

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        return x.square().sum(1) / (2 * t.t**2)


def hermite(count: int, dimensions: int) -> tuple[list[Tensor], Tensor]:
    """Nodes and weights of the standard normal on a tensor grid, one (n, 1) tensor per axis."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    grid = np.meshgrid(*[nodes] * dimensions, indexing="ij")
    weight = np.prod(np.meshgrid(*[weights / weights.sum()] * dimensions, indexing="ij"), axis=0)
    return [torch.tensor(g.reshape(-1, 1)) for g in grid], torch.tensor(weight.flatten())


def test_ais_weights_with_perfect_transitions() -> None:
    times = (1.0, 0.9, 0.8)
    (x, *draws), weight = hermite(24, 2)
    found = annealed_importance(Exact(), Times(*times), Precision(), x, noise=ReplayNoise([*draws]))
    first = float((weight * found.log_weights.exp()).sum())
    second = float((weight * (2 * found.log_weights).exp()).sum())
    ls = [1 / t**2 for t in times]
    assert first == pytest.approx(math.sqrt(ls[0] / ls[-1]), rel=1e-9)
    steps = pairwise(ls)
    assert second == pytest.approx(
        math.prod(math.sqrt(a / (2 * b - a)) for a, b in steps), rel=1e-9
    )


def test_ais_with_langevin_is_unbiased() -> None:
    times = (1.0, 0.9, 0.8, 0.72)
    (x, *draws), weight = hermite(24, 3)
    found = annealed_importance(
        Langevin(0.2), Times(*times), Precision(), x, noise=ReplayNoise([*draws])
    )
    mean = float((weight * found.log_weights.exp()).sum())
    assert mean == pytest.approx(0.72, rel=1e-8)
    plain = found.log_weights - 0.05
    assert float((weight * plain.exp()).sum()) != pytest.approx(0.72, rel=1e-3)


def test_integration_rule_is_of_fourth_order() -> None:
    """Exact draws by quantiles: what is left is the rule's own error, which falls like h^4."""
    n = 20_001
    nodes = torch.special.ndtri((torch.arange(n, dtype=F64) + 0.5) / n).unsqueeze(1)
    errors = []
    for times in ((1.0, 0.7), (1.0, math.sqrt(0.7 * 0.7 / (0.5 + 0.5 * 0.49)), 0.7)):
        draws = ReplayNoise([nodes] * 9)
        found = thermodynamic_integration(
            Exact(), Times(*times), Precision(), nodes, noise=draws, repeats=1
        )
        errors.append(abs(found.log_z - math.log(0.7)))
    # the precision goes from 1 to 2.04 and halfway: the plain trapezium is off by 0.023
    assert errors[0] < 0.007
    assert errors[1] < errors[0] / 10
    assert found.low < math.log(0.7) < found.high


def evidence_case(name: str) -> tuple[ScoreModel, Any, float, Callable[[int, int], Tensor]]:
    """(model, grid, exact log Z ratio, exact draws at the start)."""
    if name == "gaussian":
        path = GeometricPath(gauss(2.0), Potential(lambda x: (x - 0.5).square().sum(1) / 0.6))
        exact = 0.5 * math.log(2 * math.pi * 0.3)
        start = path.models[0]
        return path, UniformTime(8), exact, lambda n, seed: start.sample(n, generator=seed)  # type: ignore[operator]
    if name == "mixture":
        target = double_hump()
        path = GeometricPath(gauss(1.5), Potential(lambda x: 2.0 - target.log_prob(x, 0.0)))
        start = path.models[0]
        return path, UniformTime(8), -2.0, lambda n, seed: start.sample(n, generator=seed)  # type: ignore[operator]
    # noise levels: the product of two Gaussians, normalised at no level
    sde = EDMSDE(0.05, 3.0)
    model = Product(gauss(1.0, -0.5, sde), gauss(0.5, 0.5, sde))

    def log_z(t: float) -> float:
        return float(stats.norm.logpdf(1.0, 0.0, math.sqrt(1.5 + 2 * t**2)))

    va, vb = 1.0 + 9.0, 0.5 + 9.0
    v = 1 / (1 / va + 1 / vb)
    mean = v * (-0.5 / va + 0.5 / vb)

    def start_at(n: int, seed: int) -> Tensor:
        return mean + math.sqrt(v) * normal(n, 1, seed=seed)

    return model, UniformLam(12, start=3.0, stop=0.05), log_z(0.05) - log_z(3.0), start_at


@pytest.mark.parametrize(
    ("name", "method", "seeds"),
    [
        pytest.param(name, method, seeds, marks=pytest.mark.slow if seeds == 100 else ())
        for name, method, seeds in (
            ("gaussian", annealed_importance, 40),
            ("noise levels", thermodynamic_integration, 20),
            *itertools.product(
                ("gaussian", "mixture", "noise levels"),
                (annealed_importance, thermodynamic_integration),
                (100,),
            ),
        )
    ],
)
def test_log_z_within_its_interval(name: str, method: Any, seeds: int) -> None:
    model, grid, exact, start = evidence_case(name)

    def step(t: Level) -> float:
        return 0.4 * (0.4 + t.sigma**2)

    def leap(t: Level) -> float:
        return 0.6 * math.sqrt(0.4 + t.sigma**2)

    # integration needs draws at equilibrium; importance weights do not
    importance = method is annealed_importance
    kernel: Solver = (
        MALA(step) if importance else HMC(leap, leapfrog_steps=2 if name == "noise levels" else 3)
    )
    within, widths = 0, []
    for seed in range(seeds):
        noise = TorchNoise(generator(1000 + seed))
        repeats = 1 if importance else 4
        found = method(kernel, grid, model, start(150, seed), noise=noise, repeats=repeats)
        within += found.low < exact < found.high
        widths.append(found.high - found.low)
        assert found.low < found.log_z < found.high
    assert within >= 0.95 * seeds
    assert max(widths) < 1.5
    assert found.ess > 50


def test_log_z_needs_energies_and_a_kernel_that_stays() -> None:
    hidden = ScoreOnly(double_hump(VP))
    with pytest.raises(TypeError, match="energy"):
        annealed_importance(MALA(0.1), UniformTime(3), hidden, normal(9, 1), noise=SampleNoise(0))
    model = double_hump(VP)
    with pytest.raises(TypeError, match="fixed"):
        annealed_importance(DDIM(), UniformTime(3), model, normal(9, 1), noise=SampleNoise(0))
    with pytest.raises(ValueError, match="temperature 1"):
        thermodynamic_integration(
            MALA(0.1, 2.0), UniformTime(3), model, normal(9, 1), noise=SampleNoise(0)
        )
    assert energy_of(model, normal(2, 1), 0.1).shape == (2,)
    assert isinstance(Chains(torch.zeros(1, 4), None, None, None, 0.0, 4), tuple)
