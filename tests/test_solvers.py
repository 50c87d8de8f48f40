"""Solvers against closed forms: one move at a time, whole chains, limits and observed orders."""

from __future__ import annotations

import math

import pytest
import torch
from cases import (
    F64,
    SOLVERS,
    Fixed,
    Silent,
    Spy,
    gaussian,
    grid_for,
    ladder,
    mixture,
    name,
    normal,
    output_variance,
    response,
    slope,
    suits,
    tensor,
)
from hypothesis import given
from hypothesis import strategies as st

from scoregen import (
    DDIM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    Ancestral,
    Constant,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    Dopri5,
    DPMSolverPP,
    EulerMaruyama,
    Gaussian,
    KarrasHeun,
    Knots,
    Langevin,
    Level,
    ProbabilityFlow,
    RectifiedSDE,
    Sampler,
    ScoreModel,
    ScoreNetwork,
    Solver,
    Staircase,
    StaticSDE,
    SubVPSDE,
    Times,
    UniformLam,
    UniformTime,
)
from scoregen._ode import worst_row
from scoregen.mcmc import NCSNStep
from scoregen.models import LearnedVariance, Prediction
from scoregen.noise import ReplayNoise, SampleNoise
from scoregen.solvers import EULER, HEUN, MIDPOINT, RK4, ReverseDiffusion, Tableau

V, S, U = 0.37, 2.0, 0.6
CS, CU = V + S * S, V + U * U
DELTA = S * S - U * U


def one_move(solver: Solver, sde: SDE, times: tuple[float, ...], v: float = V):
    _, gain, gains = response(Sampler(solver, Times(*times)), gaussian(sde, v))
    return gain, float((gains**2).sum())


def heun(s: float, u: float, v: float = V) -> float:
    d = u - s
    slope_s = s / (v + s * s)
    return 1 + d / 2 * (slope_s + u / (v + u * u) * (1 + d * slope_s))


HIGH = S * 1.25
MAPS = [
    (DDIM(), 1 + (U - S) * S / CS, 0.0),
    (Ancestral("small"), CU / CS, U * U * DELTA / (S * S)),
    (Ancestral("large"), CU / CS, DELTA),
    (ReverseDiffusion(), CU / CS, DELTA),
    (
        DDIM(0.6),
        V / CS + math.sqrt(U * U - 0.36 * U * U * DELTA / (S * S)) * S / CS,
        0.36 * U * U * DELTA / (S * S),
    ),
    (EulerMaruyama(), 1 - 2 * S * (S - U) / CS, 2 * S * (S - U)),
    (KarrasHeun(), heun(S, U), 0.0),
    (KarrasHeun(churn=0.25), heun(HIGH, U), heun(HIGH, U) ** 2 * (HIGH**2 - S**2)),
    (
        KarrasHeun(churn=0.25, inflate=1.1),
        heun(HIGH, U),
        heun(HIGH, U) ** 2 * 1.21 * (HIGH**2 - S**2),
    ),
    (KarrasHeun(churn=0.25, r_max=1.9), heun(S, U), 0.0),
    (KarrasHeun(churn=0.25, r_min=2.1), heun(S, U), 0.0),
    (ProbabilityFlow(EULER), 1 + (U - S) * S / CS, 0.0),
    (ProbabilityFlow(HEUN), heun(S, U), 0.0),
    (DPMSolverPP(), U / S - (U / S - 1) * V / CS, 0.0),
    (Langevin(0.01), 1 - 0.01 / CS, 0.02),
]


@pytest.mark.parametrize(("solver", "gain", "variance"), MAPS, ids=[name(m[0]) for m in MAPS])
def test_one_move_on_a_gaussian(solver: Solver, gain: float, variance: float) -> None:
    got = one_move(solver, EDMSDE(), (S, U))
    assert got == pytest.approx((gain, variance), abs=1e-12)


def test_a_mean_is_carried_through_exactly_as_deviations_are() -> None:
    """x' - m = A (x - m): the offset of a move is (1 - A) m."""
    for solver, gain, _ in MAPS:
        model = gaussian(EDMSDE(), V, mean=0.8)
        offset, got, _ = response(Sampler(solver, Times(S, U)), model)
        assert got == pytest.approx(gain, abs=1e-12)
        assert offset == pytest.approx(0.8 * (1 - gain), abs=1e-12)


RATES = [
    (VPSDE(), lambda t: math.exp(-(0.1 * t + 9.95 * t * t) / 2), lambda t: 0.1 + 19.9 * t),
]


def vp_growth(t: float, v: float = V) -> float:
    """d log x / dt of the probability flow on VP: -beta/2 + beta/(2 C), C = 1 + alpha^2 (v - 1)."""
    beta = 0.1 + 19.9 * t
    bar = math.exp(-(0.1 * t + 9.95 * t * t))
    return -beta / 2 + beta / 2 / (bar * v + 1 - bar)


def rectified_growth(t: float, v: float = V) -> float:
    """(a a' v + s s') / C for a = 1 - t, s = t."""
    return (-(1 - t) * v + t) / ((1 - t) ** 2 * v + t * t)


@pytest.mark.parametrize(
    ("sde", "growth"), [(VPSDE(), vp_growth), (RectifiedSDE(), rectified_growth)]
)
def test_runge_kutta_moves_in_time(sde: SDE, growth) -> None:
    t, s = 0.7, 0.55
    h = s - t
    a, m, b = growth(t), growth((t + s) / 2), growth(s)
    k2 = m * (1 + h / 2 * a)
    k3 = m * (1 + h / 2 * k2)
    k4 = b * (1 + h * k3)
    for tableau, gain in (
        (EULER, 1 + h * a),
        (MIDPOINT, 1 + h * k2),
        (HEUN, 1 + h / 2 * (a + b * (1 + h * a))),
        (RK4, 1 + h / 6 * (a + 2 * k2 + 2 * k3 + k4)),
    ):
        got, _ = one_move(ProbabilityFlow(tableau), sde, (t, s))
        assert got == pytest.approx(gain, abs=1e-12), tableau.name


def test_euler_maruyama_on_vp_takes_the_coefficients_where_it_stands() -> None:
    t, s = 0.7, 0.65
    beta = 0.1 + 19.9 * t
    bar = math.exp(-(0.1 * t + 9.95 * t * t))
    drift = -beta / 2 + beta / (bar * V + 1 - bar)
    got = one_move(EulerMaruyama(), VPSDE(), (t, s))
    assert got == pytest.approx((1 + drift * (s - t), beta * (t - s)), abs=1e-12)


def test_reverse_diffusion_is_song_et_als_on_a_chain() -> None:
    sde = DiscreteVPSDE((0.1, 0.3, 0.2))
    beta, bar = 0.2, 0.9 * 0.7 * 0.8
    got = one_move(ReverseDiffusion(), sde, (1.0, 2 / 3))
    gain = 2 - math.sqrt(1 - beta) - beta / (bar * V + 1 - bar)
    assert got == pytest.approx((gain, beta), abs=1e-12)
    levels = DiscreteVESDE((0.1, 0.5, 2.0))
    got = one_move(ReverseDiffusion(), levels, (1.0, 2 / 3))
    assert got == pytest.approx((1 - 3.75 / (V + 4), 3.75), abs=1e-12)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_on_a_chain_is_ddpm(variance) -> None:
    betas = (0.1, 0.3, 0.2)
    bar, before = 0.9 * 0.7 * 0.8, 0.9 * 0.7
    c0 = math.sqrt(before) * 0.2 / (1 - bar)
    c1 = math.sqrt(0.8) * (1 - before) / (1 - bar)
    gain = c0 * math.sqrt(bar) * V / (bar * V + 1 - bar) + c1
    noise = 0.2 if variance == "large" else 0.2 * (1 - before) / (1 - bar)
    got = one_move(Ancestral(variance), DiscreteVPSDE(betas), (1.0, 2 / 3))
    assert got == pytest.approx((gain, noise), abs=1e-12)


@pytest.mark.parametrize(("a", "b", "c"), [(3.0, 1.1, 0.4), (60.0, 1.0, 0.02)])
def test_second_order_multistep_moves_follow_the_augmented_map(
    a: float, b: float, c: float
) -> None:
    """x' = (u/s) x - (e^-h - 1) [(1 + 1/2r) D - D_before / 2r] with r = h_before / h."""
    h0, h = math.log(a / b), math.log(b / c)
    r = h0 / h
    shrink = {s: V / (V + s * s) for s in (a, b)}
    first = b / a - math.expm1(-h0) * shrink[a]
    mixed = (1 + 1 / (2 * r)) * shrink[b] * first - 1 / (2 * r) * shrink[a]
    gain = c / b * first - math.expm1(-h) * mixed
    assert one_move(DPMSolverPP(), EDMSDE(), (a, b, c))[0] == pytest.approx(gain, abs=1e-13)
    # and the last move to 0 returns x0 there
    final = V / (V + c * c) * gain
    got = one_move(DPMSolverPP(), EDMSDE(), (a, b, c, 0.0))[0]
    assert got == pytest.approx(final, abs=1e-13)


@pytest.mark.parametrize("ratio", [3.0, 1 / 3])
def test_a_linear_denoiser_leaves_a_third_order_remainder(ratio: float) -> None:
    """x0 = lam exactly: the second order must come from the history, whatever its spacing."""
    sde = EDMSDE(t_min=1e-6)
    errors = []
    for h in (0.2, 0.1, 0.05):
        lams = [0.3 - ratio * h, 0.3, 0.3 + h]
        times = [math.exp(-lam) for lam in lams]
        model = Fixed(sde, lambda x, t: torch.full_like(x, t.lam))
        steps = list(
            Sampler(DPMSolverPP(), Times(*times)).iterate(
                model, torch.zeros(1, 1, dtype=F64), noise=Silent()
            )
        )
        start = float(steps[1].x)
        # x / sigma grows by the integral of e^lam lam, which is (lam - 1) e^lam
        grown = (lams[2] - 1) * math.exp(lams[2]) - (lams[1] - 1) * math.exp(lams[1])
        exact = times[2] * (start / times[1] + grown)
        errors.append(abs(float(steps[2].x) - exact))
    assert slope(errors[:2]) > 2.8
    assert slope(errors) > 2.8


def ddpm_std(steps: int, variance: str, last_noise: bool) -> float:
    """Std of DDPM's output on N(0, 0.1^2), by its own recursion in terms of eps."""
    scale = 1000 / steps
    betas = [scale * (1e-4 + (0.02 - 1e-4) * i / (steps - 1)) for i in range(steps)]
    bars = [1.0]
    for beta in betas:
        bars.append(bars[-1] * (1 - beta))
    spread = 1.0
    for i in range(steps, 0, -1):
        beta, bar, before = betas[i - 1], bars[i], bars[i - 1]
        total = bar * 0.01 + 1 - bar
        gain = (1 - beta / total) / math.sqrt(1 - beta)  # eps = sqrt(1 - bar) x / total
        added = beta if variance == "large" else beta * (1 - before) / (1 - bar)
        spread = gain**2 * spread + (added if i > 1 or last_noise else 0.0)
    return math.sqrt(spread)


@pytest.mark.parametrize(
    ("steps", "noisy", "large", "small"),
    [
        (1000, "0.1013", "0.1008", "0.0963"),
        (100, "0.1130", "0.1085", "0.0801"),
        (50, "0.1278", "0.1198", "0.0703"),
    ],
)
def test_standard_deviations_of_ddpm(steps: int, noisy: str, large: str, small: str) -> None:
    scale = 1000 / steps
    sde = DiscreteVPSDE.linear(steps, 1e-4 * scale, 0.02 * scale)
    model = gaussian(sde, 0.01)
    kept = output_variance(Sampler(Ancestral("large"), Knots()), model, 1.0)
    posterior = output_variance(Sampler(Ancestral("small"), Knots()), model, 1.0)
    assert math.sqrt(kept) == pytest.approx(ddpm_std(steps, "large", False), abs=1e-10)
    assert math.sqrt(posterior) == pytest.approx(ddpm_std(steps, "small", False), abs=1e-10)
    # Algorithm 2 adds none in its last step; samplers that do end with beta_1 more
    assert math.sqrt(kept + sde.betas[0]) == pytest.approx(
        ddpm_std(steps, "large", True), abs=1e-10
    )
    assert f"{math.sqrt(kept + sde.betas[0]):.4f}" == noisy
    assert f"{math.sqrt(kept):.4f}" == large
    assert f"{math.sqrt(posterior):.4f}" == small


@pytest.mark.parametrize("steps", [3, 50])
def test_ddim_over_every_knot_is_the_closed_product(steps: int) -> None:
    sde = DiscreteVPSDE.linear(steps, 0.01, 0.3)
    bars = [1.0]
    for beta in sde.betas:
        bars.append(bars[-1] * (1 - beta))
    gain = 1.0
    for i in range(steps, 0, -1):
        total = bars[i] * V + 1 - bars[i]
        x0, eps = math.sqrt(bars[i]) * V / total, math.sqrt(1 - bars[i]) / total
        gain *= math.sqrt(bars[i - 1]) * x0 + math.sqrt(1 - bars[i - 1]) * eps
    got = response(Sampler(DDIM(), Knots()), gaussian(sde, V))[1]
    assert got == pytest.approx(gain, rel=1e-12)


@pytest.mark.parametrize(
    ("solver", "constant"), [(DDIM(), -1 / 4), (Ancestral(), -1 / 2), (ReverseDiffusion(), 1 / 2)]
)
def test_asymptotic_dispersion(solver: Solver, constant: float) -> None:
    """On a grid uniform in log sigma the output std is off by constant x log(smax/smin) / n."""
    sde, n = EDMSDE(), 512
    for v in (0.05, 2.0):
        sampler = Sampler(solver, UniformLam(n, start=80.0, stop=0.002))
        std = math.sqrt(output_variance(sampler, gaussian(sde, v), v + 80.0**2))
        relative = std / math.sqrt(v + 0.002**2) - 1
        assert relative * n / math.log(80 / 0.002) == pytest.approx(constant, rel=0.03)


@given(
    weights=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=8),
    sde=st.sampled_from([VPSDE(), CosineVPSDE(), EDMSDE(t_max=3.0), SubVPSDE(), VESDE()]),
)
def test_ddim_with_all_its_noise_is_ancestral_sampling(weights: list[float], sde: SDE) -> None:
    walked = torch.tensor([0.0, *weights], dtype=F64).cumsum(0)
    times = sde.t_max * (0.9 - 0.8 * walked / walked[-1])
    grid = Times(*times.tolist(), 0.0)
    x = normal(3, 2) * sde.level(0.9 * sde.t_max).sigma
    a, b = (
        Sampler(solver, grid).run(mixture(sde), x, noise=SampleNoise(1))
        for solver in (DDIM(1.0), Ancestral("small"))
    )
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_ddim_is_eulers_method_in_sigma_over_alpha() -> None:
    sde = VPSDE()
    grid = UniformTime(7)(sde)
    model, x = mixture(sde), normal(3, 2)
    want = x / sde.level(1.0).alpha
    for t, s in zip(sde.levels(grid)[:-1], sde.levels(grid)[1:], strict=True):
        eps = model(want * t.alpha, t).eps
        want = want + (s.sigma / s.alpha - t.sigma / t.alpha) * eps
    got = Sampler(DDIM(), UniformTime(7)).run(model, x, noise=Silent())
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8, 1.0])
def test_ddim_keeps_the_mean_and_lacks_variance(eta: float) -> None:
    """On Gaussian data DDIM never over-disperses, for any eta in [0, 1]."""
    sde = VPSDE()
    sampler = Sampler(DDIM(eta), UniformLam(20, stop=0.01))
    for v in (0.05, 1.0, 4.0):
        start = sde.level(1.0)
        variance = output_variance(sampler, gaussian(sde, v), start.alpha**2 * v + start.sigma**2)
        end = sde.level(0.01)
        assert variance < (end.alpha**2 * v + end.sigma**2) * (1 + 1e-12)


SCALES = [VPSDE(), CosineVPSDE(s=0.0), SubVPSDE(), VESDE(), RectifiedSDE()]
INVARIANT = [
    DDIM(),
    DDIM(0.7),
    Ancestral("small"),
    KarrasHeun(),
    KarrasHeun(churn=0.2),
    DPMSolverPP(),
]


@pytest.mark.parametrize("solver", INVARIANT, ids=name)
def test_the_schedule_does_not_matter_but_for_scale(solver: Solver) -> None:
    """x / alpha depends on the values of sigma / alpha alone."""
    ratios = [3.0, 1.7, 0.6, 0.25, 0.1]
    edm = EDMSDE()
    points = normal(4, 2, seed=1)
    want = Sampler(solver, Times(*ratios)).run(mixture(edm), points, noise=SampleNoise(0))
    for sde in SCALES:
        times = [sde.level_at(-math.log(r)) for r in ratios]
        grid = Times(*(level.t for level in times))
        got = Sampler(solver, grid).run(mixture(sde), times[0].alpha * points, noise=SampleNoise(0))
        torch.testing.assert_close(got / times[-1].alpha, want, rtol=1e-7, atol=1e-7)


EQUIVARIANT = [*INVARIANT, Ancestral("large"), EulerMaruyama(), ReverseDiffusion(), Langevin(0.1)]


@pytest.mark.parametrize("solver", EQUIVARIANT, ids=name)
def test_rotations_pass_through(solver: Solver) -> None:
    """Sampling rotated data from a rotated start with rotated noise rotates the samples."""
    sde = EDMSDE(t_max=10.0)
    c, s = math.cos(0.7), math.sin(0.7)
    turn = tensor(c, -s, s, c).reshape(2, 2)
    shape = torch.tensor([[1.0, 0.3], [0.3, 0.2]], dtype=F64)
    mean = tensor(0.5, -1.0)
    straight, turned = (
        Gaussian(sde, mean, shape),
        Gaussian(sde, turn @ mean, turn @ shape @ turn.mT),
    )
    sampler = Sampler(solver, grid_for(solver, sde))
    draws = [normal(3, 2, seed=10 + k) for k in range(200)]
    x = 5 * normal(3, 2)
    a = sampler.run(straight, x, noise=ReplayNoise(draws))
    b = sampler.run(turned, x @ turn.mT, noise=ReplayNoise([z @ turn.mT for z in draws]))
    torch.testing.assert_close(b, a @ turn.mT, rtol=1e-9, atol=1e-9)


ORDERED = [s for s in SOLVERS if s.order is not None and s.direction == "both"]


@pytest.mark.parametrize("kind", ["time", "lam", "karras", "zigzag"])
@pytest.mark.parametrize("sde", [VPSDE(), RectifiedSDE()], ids=name)
@pytest.mark.parametrize("solver", [*ORDERED, KarrasHeun()], ids=name)
def test_observed_order_on_the_exact_flow(solver: Solver, sde: SDE, kind: str) -> None:
    first, last = 0.8, 0.15
    x = normal(4, 3)
    model = Gaussian(sde, tensor(0.3, -0.5, 1.0), tensor(0.05, 0.5, 2.0))
    exact = model.flow(x, first, last)
    errors: list[float] = []
    assert solver.order is not None
    for steps in (32, 64, 128, 256, 512):  # high orders show late
        got = Sampler(solver, ladder(sde, first, last, kind, steps)).run(model, x, noise=Silent())
        errors.append(float((got - exact).abs().max()))
        if errors[-1] < 1e-11 or (steps > 64 and slope(errors) > solver.order - 0.2):
            return
    pytest.fail(f"order {slope(errors):.2f} from errors {errors}, claimed {solver.order}")


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (DDIM(), 1),
        (ProbabilityFlow(EULER), 1),
        (ProbabilityFlow(HEUN), 2),
        (ProbabilityFlow(MIDPOINT), 2),
        (ProbabilityFlow(RK4), 4),
        (DPMSolverPP(), 2),
        (KarrasHeun(), 2),
    ],
    ids=lambda v: name(v) if isinstance(v, Solver) else str(v),
)
def test_claimed_orders(solver: Solver, order: int) -> None:
    assert solver.order == order


WEAK = [
    (Ancestral("small"), 1),
    (Ancestral("large"), 1),
    (DDIM(0.5), 1),
    (EulerMaruyama(), 1),
    (ReverseDiffusion(), 1),
    (KarrasHeun(), 2),
    (DPMSolverPP(), 2),
]


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(t_max=5.0)], ids=name)
@pytest.mark.parametrize(("solver", "order"), WEAK, ids=[name(w[0]) for w in WEAK])
def test_observed_order_of_the_law(solver: Solver, order: int, sde: SDE) -> None:
    assert solver.weak_order == order
    start, end = sde.level(0.8 * sde.t_max), sde.level(0.1 * sde.t_max)
    errors = []
    for steps in (40, 80, 160):
        sampler = Sampler(solver, UniformLam(steps, start=start.t, stop=end.t))
        got = output_variance(sampler, gaussian(sde, V), start.alpha**2 * V + start.sigma**2)
        errors.append(abs(got / (end.alpha**2 * V + end.sigma**2) - 1))
    assert slope(errors) > order - 0.2


def test_a_published_weak_claim_of_churn_is_first_order_in_law() -> None:
    """With the fraction fixed per move the noise added does not vanish with n: the law is kept."""
    sde = EDMSDE(t_max=5.0)
    errors = []
    for steps in (40, 80, 160):
        sampler = Sampler(KarrasHeun(churn=1 / steps), UniformTime(steps, start=4.0, stop=0.5))
        got = output_variance(sampler, gaussian(sde, V), V + 16.0)
        errors.append(abs(got / (V + 0.25) - 1))
    assert slope(errors) > 0.8


@pytest.mark.parametrize("sde", [VPSDE(), RectifiedSDE(), EDMSDE(t_max=10.0)], ids=name)
def test_encoding_inverts_decoding_at_the_order(sde: SDE) -> None:
    model = Gaussian(sde, tensor(0.3, -0.5), tensor(0.1, 2.0))
    first, last = 0.85 * sde.t_max, 0.1 * sde.t_max
    z = (sde.level(first).alpha + sde.level(first).sigma) * normal(3, 2)
    for solver, order in ((DDIM(), 1), (ProbabilityFlow(HEUN), 2), (ProbabilityFlow(RK4), 4)):
        errors = []
        for steps in (32, 64):
            there = ladder(sde, first, last, "time", steps)
            times = there(sde).tolist()
            x = Sampler(solver, there).run(model, z, noise=Silent())
            back = Sampler(solver, Times(*times[::-1])).run(model, x, noise=Silent())
            assert not torch.allclose(x, z, rtol=1e-2)
            errors.append(float((back - z).abs().max()))
        assert slope(errors) > order - 0.3


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedSDE(), SubVPSDE()], ids=name)
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_one_to_twenty_steps_to_clean_data_are_finite(solver: Solver, sde: SDE) -> None:
    if solver.direction not in ("down", "both") or not suits(solver, sde):
        pytest.skip("needs another kind of grid")
    model = gaussian(sde, 0.25, event=(2,))
    x = sde.prior_std(sde.t_max) * normal(3, 2)
    for steps in (2,) if solver.nfe is None else (1, 2, 3, 4, 5, 7, 10, 20):
        for rule in (UniformTime, UniformLam) if solver.nfe else (UniformTime,):
            try:
                out = Sampler(solver, rule(steps)).run(model, x, noise=SampleNoise(0))
            except ValueError as reason:
                if "a little below t_max" not in str(reason):
                    raise
                late = rule(steps, start=0.99 * sde.t_max)
                out = Sampler(solver, late).run(model, x, noise=SampleNoise(0))
            assert bool(torch.isfinite(out).all())
            assert out.shape == x.shape


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_the_move_to_clean_data_returns_x0(solver: Solver) -> None:
    # a population is drawn again by its weights at the end
    if solver.direction not in ("down", "both") or solver.nfe is None or solver.population:
        pytest.skip("needs another kind of grid, or steps where it likes")
    sde = VPSDE()
    model, x = mixture(sde), normal(3, 2)
    got = Sampler(solver, Times(sde.t_min, 0.0)).run(model, x, noise=SampleNoise(0))
    if not isinstance(solver, KarrasHeun) or not solver.churn:
        torch.testing.assert_close(got, model(x, sde.t_min).x0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "solver", [DDIM(), DPMSolverPP(), ProbabilityFlow(HEUN), ProbabilityFlow(RK4)], ids=name
)
def test_straight_paths_are_walked_from_end_to_end_and_back(solver: Solver) -> None:
    sde = RectifiedSDE()
    model, z = gaussian(sde, 0.25, 0.4, (2,)), normal(3, 2)
    out = Sampler(solver, UniformTime(64)).run(model, z, noise=Silent())
    torch.testing.assert_close(out, 0.4 + 0.5 * z, rtol=0.05, atol=0.05)
    if not isinstance(solver, DPMSolverPP | DDIM):
        back = Sampler(solver, Times(*UniformTime(64)(sde).flip(0).tolist())).run(
            model, out, noise=Silent()
        )
        torch.testing.assert_close(back, z, rtol=0.01, atol=0.01)
    up = Sampler(solver, Times(0.05, *[0.1 * k for k in range(1, 10)], 1.0))
    encoded = up.run(model, model.flow(z, 1.0, 0.05), noise=Silent())
    torch.testing.assert_close(encoded, z, rtol=0.2, atol=0.2)


def test_the_reverse_sde_refuses_pure_noise() -> None:
    with pytest.raises(ValueError, match="start the grid a little below t_max"):
        Sampler(EulerMaruyama(), UniformTime(4)).sample(gaussian(RectifiedSDE()), (2, 1))


@pytest.mark.parametrize(("v", "h"), [(1.0, 0.1), (1.0, 0.5), (0.3, 0.2), (2.0, 3.0)])
def test_langevin_is_stationary_at_the_known_variance(v: float, h: float) -> None:
    gain, added = one_move(Langevin(h), StaticSDE(), (0.5, 0.5), v)
    assert added / (1 - gain**2) == pytest.approx(v / (1 - h / (2 * v)), rel=1e-12)
    if (v, h) == (1.0, 0.1):
        assert f"{math.sqrt(added / (1 - gain**2)):.3f}" == "1.026"
    many = output_variance(Sampler(Langevin(h), Constant(0.5, 200)), gaussian(StaticSDE(), v), 5.0)
    if abs(gain) < 0.9:
        assert many == pytest.approx(v / (1 - h / (2 * v)), rel=1e-9)


def test_annealed_langevin_is_the_product_over_levels() -> None:
    sde = DiscreteVESDE((0.1, 0.5, 2.0))
    rule = NCSNStep(0.02, 0.1)
    sampler = Sampler(Langevin(rule), Staircase(3, 4, denoise=True))
    gain, variance = 1.0, 0.0
    for sigma in (2.0, 0.5, 0.1):
        h = 0.02 * (sigma / 0.1) ** 2 / 2
        for _ in range(4):
            a = 1 - h / (V + sigma**2)
            gain, variance = a * gain, a * a * variance + 2 * h
    shrink = V / (V + 0.01)
    _, got, gains = response(sampler, gaussian(sde, V))
    assert got == pytest.approx(shrink * gain, abs=1e-12)
    assert float((gains**2).sum()) == pytest.approx(shrink**2 * variance, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sde", [VPSDE(), RectifiedSDE(), EDMSDE(), SubVPSDE()], ids=name)
def test_dopri5_follows_the_exact_flow(sde: SDE, dtype: torch.dtype) -> None:
    model = Gaussian(sde, tensor(0.3, -0.5), tensor(0.1, 2.0))
    x = (sde.prior_std(sde.t_max) * normal(4, 2)).to(dtype)
    last = sde.t_min if sde.t_min > 0 else 1e-3
    tight = 1e-5 if dtype == torch.float32 else 1e-9
    got = Sampler(Dopri5(tight, tight), Times(sde.t_max, last)).run(model, x, noise=Silent())
    assert got.dtype == dtype
    exact = model.flow(x, sde.t_max, last)
    torch.testing.assert_close(got, exact, rtol=500 * tight, atol=500 * tight)
    back = Sampler(Dopri5(tight, tight), Times(last, sde.t_max)).run(model, got, noise=Silent())
    torch.testing.assert_close(back, x, rtol=5e4 * tight, atol=5e4 * tight)
    clean = Sampler(Dopri5(tight, tight), Times(sde.t_max, 0.0)).run(model, x, noise=Silent())
    torch.testing.assert_close(clean, model.flow(x, sde.t_max, 0.0), rtol=0.02, atol=0.02)


def test_every_row_meets_the_tolerance_whatever_its_mates_do() -> None:
    """A batch mean of the error would let one row in many fail."""
    sde = VPSDE()
    model = mixture(sde)
    x = torch.cat([normal(1, 2), torch.zeros(200, 2, dtype=F64)])
    loose = Sampler(Dopri5(1e-4, 1e-4), Times(1.0, 0.01))
    exact = Sampler(Dopri5(1e-10, 1e-10), Times(1.0, 0.01)).run(model, x[:1], noise=Silent())
    alone = loose.run(model, x[:1], noise=Silent())
    among = loose.run(model, x, noise=Silent())[:1]
    bound = 20 * float((alone - exact).abs().max()) + 1e-4
    assert float((among - exact).abs().max()) < bound
    error = torch.zeros(3, 2)
    error[1] = tensor(3.0, 4.0).float()
    assert float(worst_row(error)) == pytest.approx(math.sqrt(12.5))


def test_dopri5_says_when_it_gives_up() -> None:
    model = Fixed(VPSDE(), lambda x, t: torch.sin(1e6 * x))
    with pytest.raises(RuntimeError, match="max_steps"):
        Sampler(Dopri5(1e-10, 1e-10, max_steps=5), Times(1.0, 0.1)).run(
            model, normal(2, 1), noise=Silent()
        )


class Spread(ScoreModel):
    def __init__(self, model: ScoreModel, spread: float) -> None:
        super().__init__()
        self.model, self.sde, self.spread = model, model.sde, spread

    def predict(self, x: torch.Tensor, t: Level, **condition: object) -> Prediction:
        p = self.model.predict(x, t)
        return Prediction(self.sde, t, x, x0=p.x0, spread=torch.full_like(x, self.spread))


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_learned_variance_interpolates_logarithms_for_the_actual_move(spread: float) -> None:
    sde = DiscreteVPSDE.linear(1000)
    t, s = 0.5, 0.4  # a hundred knots in one move
    bar, before = sde.level(t).alpha ** 2, sde.level(s).alpha ** 2
    large = 1 - bar / before
    small = large * (1 - before) / (1 - bar)
    model = Spread(gaussian(sde, V), spread)
    _, _, gains = response(Sampler(Ancestral("learned"), Times(t, s)), model)
    assert float((gains**2).sum()) == pytest.approx(
        large**spread * small ** (1 - spread), rel=1e-10
    )
    with pytest.raises(ValueError, match="spread"):
        Sampler(Ancestral("learned"), Times(t, s)).sample(gaussian(sde), (2, 1))


def test_learned_variance_runs_through_a_network() -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
            return torch.cat([0.1 * x, torch.zeros_like(x)], 1)

    model = ScoreNetwork(Twice(), VPSDE(), LearnedVariance())
    out = Sampler(Ancestral("learned"), UniformTime(5)).sample(model, (2, 3, 4, 4), seed=0)
    assert out.shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("act", "error", "word"),
    [
        (lambda: Ancestral("medium"), ValueError, "'small', 'large', 'learned'"),
        (lambda: DDIM(eta=1.1), ValueError, r"eta must lie in \[0, 1\]"),
        (lambda: DDIM(eta=-0.1), ValueError, "eta"),
        (lambda: DDIM(eta=float("nan")), ValueError, "eta"),
        (lambda: DDIM(stepsize=0.1), TypeError, "stepsize"),
        (lambda: KarrasHeun(churn=0.5), ValueError, "churn"),
        (lambda: KarrasHeun(r_min=2.0, r_max=1.0), ValueError, "r_max"),
        (lambda: KarrasHeun(inflate=0.0), ValueError, "inflate"),
        (lambda: Langevin(0.0), ValueError, "step"),
        (lambda: Langevin(-1.0), ValueError, "step"),
        (lambda: NCSNStep(0.0, 1.0), ValueError, "eps"),
        (lambda: Dopri5(rtol=0.0), ValueError, "rtol"),
        (lambda: Dopri5(atol=-1.0), ValueError, "atol"),
        (lambda: Dopri5(max_steps=0), ValueError, "max_steps"),
    ],
)
def test_wrong_options_are_refused(act, error, word: str) -> None:
    with pytest.raises(error, match=word):
        act()


def test_your_own_tableau() -> None:
    ralston = Tableau("Ralston", (0.0, 2 / 3), ((), (2 / 3,)), (0.25, 0.75), 2)
    solver = ProbabilityFlow(ralston)
    assert (solver.order, solver.nfe) == (2, 2)
    t, s, h = 0.7, 0.55, -0.15
    a, b = vp_growth(t), vp_growth(t + 2 / 3 * h)
    gain = 1 + h * (a / 4 + 3 / 4 * b * (1 + 2 / 3 * h * a))
    assert one_move(solver, VPSDE(), (t, s))[0] == pytest.approx(gain, abs=1e-12)


@pytest.mark.parametrize(
    "solver", [DDIM(), Ancestral(), EulerMaruyama(), DPMSolverPP(), ReverseDiffusion()], ids=name
)
@given(weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=10))
def test_models_are_asked_at_the_grids_points_in_order(
    solver: Solver, weights: list[float]
) -> None:
    walked = torch.tensor([0.0, *weights], dtype=F64).cumsum(0)
    times = (0.95 - 0.9 * walked / walked[-1]).tolist()
    spy = Spy(gaussian(VPSDE()))
    Sampler(solver, Times(*times, 0.0)).run(spy, normal(1, 1), noise=SampleNoise(0))
    assert spy.times == times


@pytest.mark.parametrize("solver", [ProbabilityFlow(HEUN), KarrasHeun()], ids=name)
def test_heun_asks_at_both_ends_of_a_move(solver: Solver) -> None:
    spy = Spy(gaussian(VPSDE()))
    Sampler(solver, Times(0.9, 0.4, 0.1, 0.0)).run(spy, normal(1, 1), noise=Silent())
    assert spy.times == [0.9, 0.4, 0.4, 0.1, 0.1]
