"""Inverse problems on Gaussian data, where the exact posterior is known."""

from __future__ import annotations

import math

import pytest
import torch
from cases import benchmark
from hypothesis import given
from hypothesis import strategies as st

from scoregen import (
    DDIM,
    EDMSDE,
    VPSDE,
    Ancestral,
    DiscreteVPSDE,
    DPMSolverPP,
    Gaussian,
    GaussianMixture,
    Knots,
    RectifiedSDE,
    Sampler,
    UniformLam,
    UniformTime,
)
from scoregen.densities import gaussian_w2
from scoregen.inverse import (
    DPS,
    TMPD,
    DiffPIR,
    GuidedAncestral,
    LinearMeasurement,
    PiGDM,
    RePaint,
    Replacement,
    TwistedSMC,
)
from scoregen.noise import BrownianNoise, ReplayNoise, SampleNoise
from scoregen.solvers.ancestral import posterior as transition

problems = benchmark("figures/inverse_problems")

F64 = torch.float64
MATRIX = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.3, 0.7, 1.0]], dtype=F64)
Y = torch.tensor([0.8, -0.6], dtype=F64)
X = torch.linspace(-2, 2, 12, dtype=F64).reshape(3, 4)


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedSDE()])
@given(t=st.floats(0.05, 0.95), noise=st.floats(0.05, 3.0))
def test_tweedie_guidance_is_the_score_of_the_noised_posterior(sde, t: float, noise: float) -> None:
    """grad log p(y | x_t) + the prior's score = the score of p_t(x | y), for any covariance."""
    model = problems.data(sde)
    seen = LinearMeasurement(MATRIX, Y, noise)
    exact = Gaussian(sde, *problems.posterior(model, seen))
    said = TMPD(model, seen)(X, t)
    for form in ("score", "x0", "eps"):
        torch.testing.assert_close(
            getattr(said, form), getattr(exact(X, t), form), rtol=1e-7, atol=1e-7
        )


@given(t=st.floats(0.05, 0.95), v=st.floats(0.1, 5.0), noise=st.floats(0.05, 3.0))
def test_pseudo_inverse_guidance_is_exact_for_isotropic_data(t, v, noise) -> None:
    model = Gaussian(VPSDE(), problems.MEAN, v)
    seen = LinearMeasurement(MATRIX, Y, noise)
    exact = Gaussian(VPSDE(), *problems.posterior(model, seen))
    said = PiGDM(model, seen, prior_variance=v)(X, t).score
    torch.testing.assert_close(said, exact(X, t).score, rtol=1e-7, atol=1e-7)
    wrong = PiGDM(model, seen, prior_variance=2 * v)(X, t).score
    assert float((wrong - exact(X, t).score).abs().max()) > 1e-6


def test_times_of_their_own_and_measurements_of_their_own() -> None:
    model = problems.data(VPSDE())
    times = torch.tensor([0.2, 0.5, 0.8], dtype=F64)
    y = torch.stack([Y, -Y, 2 * Y])
    for make in (TMPD, PiGDM):
        whole = make(model, LinearMeasurement(MATRIX, y, 0.3))(X, times).x0
        for i in range(3):
            one = make(model, LinearMeasurement(MATRIX, y[i], 0.3))(X[i : i + 1], float(times[i]))
            torch.testing.assert_close(whole[i : i + 1], one.x0)
    with pytest.raises(ValueError, match="one y for all"):
        PiGDM(model, LinearMeasurement(MATRIX, y, 0.3))(X[:2], 0.5)


def test_any_event_shape_passes() -> None:
    model = Gaussian(VPSDE(), torch.zeros(1, 2, 2).double(), 1.0)
    seen = LinearMeasurement(MATRIX, Y, 0.3)
    x = X.reshape(3, 1, 2, 2)
    flat = Gaussian(VPSDE(), torch.zeros(4).double(), 1.0)
    for make in (TMPD, PiGDM):
        said = make(model, seen)(x, 0.4).x0
        torch.testing.assert_close(said.reshape(3, 4), make(flat, seen)(X, 0.4).x0)
        assert make(model, seen)(x[:0], 0.4).x0.shape == (0, 1, 2, 2)
    for solver in (DPS(seen, Y), DiffPIR(seen)):
        sampler = Sampler(solver, UniformTime(4))
        assert sampler.sample(model, (2, 1, 2, 2), seed=0).shape == (2, 1, 2, 2)
        assert sampler.sample(model, (0, 1, 2, 2), seed=0).shape == (0, 1, 2, 2)


@pytest.mark.slow
def test_exact_guidance_converges_to_the_posterior_at_the_solvers_order() -> None:
    problem = problems.noisy(VPSDE())
    model = TMPD(problem.model, problem.seen)
    errors = []
    for steps in (50, 100, 200):
        law = problems.affine_law(Sampler(Ancestral(), UniformLam(steps)), model, 4)
        errors.append(problems.w2(law, problem))
    assert errors[2] < 0.035
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.15)
    second = Sampler(DPMSolverPP(), UniformLam(200, stop=1e-3))
    assert problems.w2(problems.affine_law(second, model, 4), problem) < 6e-3


@pytest.mark.slow
def test_every_method_errs_as_the_table_says() -> None:
    """The approximate methods err by more than their moves do; how they rank among themselves."""
    sde = VPSDE()
    for problem, known in ((problems.noisy(sde), False), (problems.inpainting(sde), True)):
        found, repeated = {}, []
        for name, model, solver in problems.affine_methods(problem, known):
            repeats = isinstance(solver, RePaint)
            if repeats and solver.resample > 5:
                continue
            sampler = Sampler(solver, UniformLam(30 if repeats else 100))
            error = problems.w2(problems.affine_law(sampler, model, 4), problem)
            repeated.append(error) if repeats else found.update({name: error})
        best = found.pop("exact posterior score")
        assert found.pop("TMPD") == pytest.approx(best, rel=1e-6)
        assert all(error > 2 * best for error in found.values()), found
        if known:  # more repeats agree better with what is known
            assert repeated[1] < repeated[0] < found["replacement"]


def test_replacement_and_repaint_keep_what_is_known() -> None:
    model = problems.data(VPSDE())
    mask = torch.tensor([True, False, True, False])
    known = torch.tensor([1.0, math.pi, 0.2, -math.e], dtype=F64)

    def solvers(values):
        return (
            Replacement(Ancestral(), mask, values),
            Replacement(DPMSolverPP(), mask, values),
            RePaint(mask, values, 3),
            DiffPIR(LinearMeasurement.mask(mask, values, 0.0)),
        )

    other = torch.where(mask, known, 77.0)  # what the mask hides must not matter
    for solver, twin in zip(solvers(known), solvers(other), strict=True):
        x, y = (
            Sampler(s, UniformLam(10)).sample(model, (5, 4), seed=0, dtype=F64)
            for s in (solver, twin)
        )
        torch.testing.assert_close(x[:, mask], known[mask].expand(5, 2), rtol=0, atol=1e-9)
        assert torch.equal(x, y)


def test_the_known_region_stands_at_the_level_of_every_state() -> None:
    """The start included: alpha known + sigma z, mean and variance over a large batch."""
    model = problems.data(VPSDE())
    mask = torch.tensor([True, False, False, False])
    known = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=F64)
    start = 50 + torch.zeros(20000, 4, dtype=F64)
    asked = []

    class Spy(Gaussian):
        def predict(self, x, t, **condition):
            asked.append((t, x[:, 0].mean(), x[:, 0].std()))
            return super().predict(x, t, **condition)

    spy = Spy(model.sde, model.mean, 1.0)
    sampler = Sampler(Replacement(DDIM(), mask, known), UniformTime(5))
    sampler.run(spy, start, noise=SampleNoise(0))
    assert len(asked) == 5
    for t, mean, std in asked:
        assert float(mean) == pytest.approx(2 * t.alpha, abs=6 * t.sigma / math.sqrt(20000))
        assert float(std) == pytest.approx(t.sigma, rel=0.03)


def test_one_round_of_repaint_is_replacement() -> None:
    model = problems.data(VPSDE())
    mask, known = torch.tensor([True, False, True, False]), torch.ones(4, dtype=F64)
    runs = [
        Sampler(solver, UniformLam(10)).sample(model, (3, 4), seed=0, dtype=F64)
        for solver in (RePaint(mask, known, 1), Replacement(Ancestral(), mask, known))
    ]
    assert torch.equal(*runs)


def test_repaint_moves_up_by_the_forward_kernel() -> None:
    """With the whole sample known and a clean model, the last state forgets everything else."""
    model = problems.data(VPSDE())
    mask = torch.ones(4, dtype=torch.bool)
    known = torch.full((2000, 4), 0.5, dtype=F64)
    t, s = model.sde.level(0.5), model.sde.level(0.4)
    asked = []

    class Spy(Gaussian):
        def predict(self, x, t, **condition):
            asked.append(x)
            return super().predict(x, t, **condition)

    spy = Spy(model.sde, model.mean, 1.0)
    RePaint(mask, known, 2).step(spy, known, t, s, (), SampleNoise(0))
    again = asked[1]  # alpha_t / alpha_s (alpha_s known + sigma_s z) + z' sqrt(...)
    assert float(again.mean()) == pytest.approx(0.5 * t.alpha, abs=6 * t.sigma / math.sqrt(8000))
    assert float(again.std()) == pytest.approx(t.sigma, rel=0.05)


def test_dps_takes_the_gradient_of_the_norm() -> None:
    model = GaussianMixture(VPSDE(), torch.ones(2), torch.tensor([[1.0, 0.0], [-1.0, 2.0]]),
                            torch.tensor([0.2, 0.5]))  # fmt: skip
    x = torch.tensor([[0.4, 1.0], [-2.0, 0.1]], dtype=F64, requires_grad=True)
    y = torch.tensor([0.5], dtype=F64)
    t, s = model.sde.level(0.4), model.sde.level(0.3)

    def measure(x0):
        return x0[:, :1] * x0[:, 1:]

    norm = (y - measure(model.predict(x, t).x0)).norm(dim=1)
    (slope,) = torch.autograd.grad(norm.sum(), x)
    z = torch.tensor([[0.1, -1.0], [0.7, 0.3]], dtype=F64)
    plain, _ = Ancestral().step(model, x.detach(), t, s, None, ReplayNoise([z]))
    found, _ = DPS(measure, y, 0.7).step(model, x.detach(), t, s, None, ReplayNoise([z]))
    torch.testing.assert_close(found, plain - 0.7 * slope)
    agrees = measure(model.predict(x, t).x0).detach()  # nothing to correct, and no 0 / 0
    found, _ = DPS(measure, agrees, 0.7).step(model, x.detach(), t, s, None, ReplayNoise([z]))
    torch.testing.assert_close(found, plain)


def test_the_scale_of_dps_is_twice_the_papers() -> None:
    """Algorithm 1, line 7: x - zeta' / |y - A(x0)| grad |y - A(x0)|^2, with zeta' = scale / 2."""
    model = problems.data(VPSDE())
    t, s = model.sde.level(0.4), model.sde.level(0.3)
    x = X.clone().requires_grad_()
    square = (Y - model.predict(x, t).x0 @ MATRIX.mT).square().sum(1)
    (slope,) = torch.autograd.grad(square.sum(), x)
    z = torch.ones(3, 4, dtype=F64)
    plain, _ = Ancestral().step(model, X, t, s, None, ReplayNoise([z]))
    zeta = 0.35 / square.detach().sqrt()
    seen = LinearMeasurement(MATRIX, Y, 0.1)
    found, _ = DPS(seen, Y, scale=2 * 0.35).step(model, X, t, s, None, ReplayNoise([z]))
    torch.testing.assert_close(found, plain - zeta[:, None] * slope)


@pytest.mark.parametrize("solve", [lambda m, k: Replacement(DDIM(), m, k), RePaint])
def test_masks_broadcast_and_may_be_per_image(solve) -> None:
    model = Gaussian(VPSDE(), torch.zeros(3, 4, 4), 1.0)
    known = torch.full((2, 3, 4, 4), 0.7)
    known[1] = -0.2
    rows = torch.zeros(1, 4, 4, dtype=torch.bool)
    rows[:, :2] = True
    masks = torch.stack([rows, ~rows])  # (2, 1, 4, 4): one per image, the same for all channels
    pairs = [(rows, known), (masks, known), (masks[:1], known), (rows, known[0])]
    pairs += [(masks, known[0]), (rows, known[:, :1]), (rows, known[0, :1])]
    for mask, values in pairs:
        x = Sampler(solve(mask, values), UniformLam(4)).sample(model, (2, 3, 4, 4), seed=0)
        wide, shown = mask.expand_as(x), values.expand_as(x)
        assert torch.equal(x[wide], shown[wide])
        assert not torch.isclose(x[~wide], shown[~wide]).any()
    full = solve(rows.expand(3, 4, 4), known)
    x = Sampler(full, UniformLam(4)).sample(model, (2, 3, 4, 4), seed=0)
    assert torch.equal(x, Sampler(solve(rows, known), UniformLam(4)).sample(
        model, (2, 3, 4, 4), seed=0))  # fmt: skip
    hidden = torch.where(rows, known, math.nan)  # what the mask hides is not read
    y = Sampler(solve(rows, hidden), UniformLam(4)).sample(model, (2, 3, 4, 4), seed=0)
    assert torch.equal(x, y)
    for mask in (rows[0], torch.ones(3, 1, 4, 4, dtype=torch.bool), torch.ones(2, 4, 4) > 0):
        with pytest.raises(ValueError, match="shape of one sample"):
            Sampler(solve(mask, known), UniformLam(4)).sample(model, (2, 3, 4, 4), seed=0)
    seen = LinearMeasurement.mask(rows, known[0], 0.1)
    assert seen(known).shape == (2, 24)


def test_particles_take_a_brownian_path() -> None:
    """Its draws at t == t are independent, so the population reaches the same posterior."""
    model, grid = problems.data(VPSDE()), UniformLam(12)
    seen = LinearMeasurement(MATRIX, Y, 0.5)
    law = chain_law(model, grid, "small")
    target = problems.posterior(Gaussian(VPSDE(), law.mean, law.covariance), seen)
    sampler = Sampler(TwistedSMC(seen), grid)
    start = SampleNoise(5)(torch.empty(6000, 4, dtype=F64), *[model.sde.level(1.0)] * 2)
    x = sampler.run(model, start, noise=BrownianNoise(3))
    assert float(gaussian_w2(x.mean(0), x.mT.cov(), *target)) < 0.08
    assert TwistedSMC(seen).population


def test_diffpir_solves_its_proximal_problem() -> None:
    seen = LinearMeasurement(MATRIX, Y, 0.3)
    for ridge in (0.01, 1.0, 30.0):
        x = seen.proximal(X, ridge)
        slope = 2 * (x @ MATRIX.mT - Y) @ MATRIX + 2 * ridge * (x - X)
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-11)
    exact = LinearMeasurement(MATRIX, Y, 0.0).proximal(X, 0.0)
    torch.testing.assert_close(exact @ MATRIX.mT, Y.expand(3, 2))
    model = problems.data(VPSDE())
    t, s = model.sde.level(0.5), model.sde.level(0.4)
    z = torch.ones(3, 4, dtype=F64)
    found, _ = DiffPIR(seen, 2.0, 0.4).step(model, X, t, s, None, ReplayNoise([z]))
    x0 = seen.proximal(model(X, t).x0, 2 * (0.3 * t.alpha / t.sigma) ** 2)
    eps = (X - t.alpha * x0) / t.sigma
    expected = s.alpha * x0 + s.sigma * (math.sqrt(0.6) * eps + math.sqrt(0.4) * z)
    torch.testing.assert_close(found, expected)


def test_the_likelihood_of_a_measurement() -> None:
    seen = LinearMeasurement(MATRIX, Y, 0.3)
    for spread2 in (0.0, 0.7):
        covariance = spread2 * MATRIX @ MATRIX.mT + 0.09 * torch.eye(2, dtype=F64)
        law = torch.distributions.MultivariateNormal(X @ MATRIX.mT, covariance)
        torch.testing.assert_close(seen.log_prob(X, spread2), law.log_prob(Y))
        u = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
        torch.testing.assert_close(
            seen.solve(u, spread2, 0.09), torch.linalg.solve(covariance, u.mT).mT
        )


@pytest.mark.parametrize("at", ["mean", "x_t"])
def test_a_classifier_at_the_mean_of_the_move(at: str) -> None:
    """Unit Gaussian data, exact kernels (large), a linear classifier: N(m + a, I) at any length."""
    for steps in (4, 40):
        sde = DiscreteVPSDE.exact(VPSDE(), steps)
        tilt = torch.tensor([1.5, -0.7], dtype=F64)
        model = Gaussian(sde, torch.tensor([0.3, 0.0]), 1.0)
        start = sde.level(1.0)

        def log_prob(x, level, tilt=tilt):
            return level.alpha * x @ tilt

        sampler = Sampler(GuidedAncestral(log_prob, at=at), Knots())
        law = problems.affine_law(sampler, model, 2)
        # by hand: mu_s = kernel mean + beta grad, the gradient at the level of s or of t
        mean = torch.zeros(2, dtype=F64)
        levels = sde.levels((0.0, *sde.knots))
        for i in range(steps, 0, -1):
            t, s = levels[i], levels[i - 1]
            c0, c1, _, large = transition(t, s)
            x0 = model.mean + t.alpha * (mean - t.alpha * model.mean)
            where = s.alpha if at == "mean" else t.alpha
            mean = x0 if i == 1 else c0 * x0 + c1 * mean + large * where * tilt
        torch.testing.assert_close(law.mean, mean, rtol=0, atol=1e-10)
        if at == "mean":
            # exact but for the start, N(0, I) for N(alpha (m + a), I), and the last move
            gap = start.alpha * levels[1].alpha
            first = levels[1]
            expected = model.mean + first.alpha**2 * tilt - gap * start.alpha * tilt / first.alpha
            torch.testing.assert_close(law.mean, expected, rtol=0, atol=1e-3)


def chain_law(model: Gaussian, times, variance: str):
    """Mean and covariance that Ancestral(variance) gives on these knots, by the affine law."""
    return problems.affine_law(Sampler(Ancestral(variance), times), model, len(model.mean))


@pytest.mark.parametrize("variance", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_particles_reach_the_posterior_of_their_chain(variance: str) -> None:
    """On a coarse chain, whose own law is far from the data's: the target is that law given y."""
    model, grid = problems.data(VPSDE()), UniformLam(12)
    seen = LinearMeasurement(MATRIX, Y, 0.5)
    law = chain_law(model, grid, variance)
    target = problems.posterior(Gaussian(VPSDE(), law.mean, law.covariance), seen)
    ideal = problems.posterior(model, seen)
    assert float(gaussian_w2(*target, *ideal)) > 0.1
    errors = []
    for particles in (8, 20000):
        sampler = Sampler(TwistedSMC(seen, variance=variance), grid)
        runs = [sampler.sample(model, (particles, 4), seed=s, dtype=F64)
                for s in range(40 if particles == 8 else 3)]  # fmt: skip
        x = torch.cat(runs)
        errors.append(float(gaussian_w2(x.mean(0), x.mT.cov(), *target)))
    assert errors[1] < 0.03
    assert errors[1] < errors[0]


def test_particles_estimate_the_evidence() -> None:
    model, grid = problems.data(VPSDE()), UniformLam(12)
    seen = LinearMeasurement(MATRIX, Y, 0.5)
    law = chain_law(model, grid, "small")
    total = MATRIX @ law.covariance @ MATRIX.mT + 0.25 * torch.eye(2, dtype=F64)
    exact = torch.distributions.MultivariateNormal(MATRIX @ law.mean, total).log_prob(Y)
    for threshold in (0.0, 0.5, 1.0):
        sampler = Sampler(TwistedSMC(seen, threshold=threshold), grid)
        noise = SampleNoise(1)
        like = torch.empty(20000, 4, dtype=F64)
        level = model.sde.level(1.0)
        *_, last = sampler.iterate(model, noise(like, level, level), noise=noise)
        assert float(last.state.log_z) == pytest.approx(float(exact), abs=0.05)
        assert 0 < float(last.state.effective) <= 20000 * (1 + 1e-9)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="matrix"):
        LinearMeasurement(MATRIX[0], Y, 0.1)
    with pytest.raises(ValueError, match="one entry per row"):
        LinearMeasurement(MATRIX, torch.zeros(3), 0.1)
    with pytest.raises(ValueError, match="noise"):
        LinearMeasurement(MATRIX, Y, -0.1)
    with pytest.raises(ValueError, match="NaN"):
        LinearMeasurement(MATRIX * math.nan, Y, 0.1)
    with pytest.raises(ValueError, match="independent"):
        LinearMeasurement(MATRIX[[0, 0]], Y, 0.0)
    with pytest.raises(ValueError, match="4 coordinates"):
        PiGDM(Gaussian(VPSDE(), torch.zeros(3), 1.0), LinearMeasurement(MATRIX, Y, 0.1))(
            torch.zeros(2, 3), 0.5
        )
    with pytest.raises(ValueError, match="mask"):
        LinearMeasurement.mask(torch.ones(3), torch.zeros(3), 0.0)
    mask = torch.tensor([True, False])
    for bad, error in [(Y * math.nan, ValueError), (Y + 1j, TypeError), ([0.0, 0.0], TypeError)]:
        with pytest.raises(error, match="y"):
            LinearMeasurement(MATRIX, bad, 0.1)
        with pytest.raises(error, match="measurement y"):
            DPS(lambda x: x, bad)
    for make in (TwistedSMC, DiffPIR, lambda m: PiGDM(problems.data(VPSDE()), m)):
        with pytest.raises(TypeError, match="LinearMeasurement"):
            make(MATRIX)
    with pytest.raises(TypeError, match="boolean"):
        Replacement(DDIM(), mask.float(), torch.zeros(2))
    with pytest.raises(ValueError, match="one sample"):
        Replacement(DDIM(), mask, torch.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        RePaint(mask, torch.tensor([math.nan, 0.0]))
    sampler = Sampler(Replacement(DDIM(), mask, torch.zeros(2)), UniformTime(3))
    with pytest.raises(ValueError, match="shape of one sample"):
        sampler.sample(Gaussian(VPSDE(), torch.zeros(3), 1.0), (2, 3))
    with pytest.raises(ValueError, match="resample"):
        RePaint(mask, torch.zeros(2), 0)
    with pytest.raises(TypeError, match="solver"):
        Replacement(UniformTime(3), mask, torch.zeros(2))
    seen = LinearMeasurement(MATRIX, Y, 0.1)
    with pytest.raises(ValueError, match="one posterior"):
        TwistedSMC(LinearMeasurement(MATRIX, Y, 0.0))
    with pytest.raises(ValueError, match="one posterior"):
        TwistedSMC(LinearMeasurement(MATRIX, Y.expand(3, 2), 0.1))
    for bad in (lambda: DPS(seen, Y, -1.0), lambda: DiffPIR(seen, 0.0), lambda: DiffPIR(seen, 1, 2),
                lambda: TwistedSMC(seen, threshold=2.0), lambda: GuidedAncestral(seen, at="end"),
                lambda: PiGDM(problems.data(VPSDE()), seen, 0.0)):  # fmt: skip
        with pytest.raises(ValueError, match="must"):
            bad()
