"""Multistep solvers: weights against quadrature, one-step exactness, orders, starts and ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import F64, Fixed, ladder, normal, slope, tensor, zigzag
from scipy.integrate import quad
from torch import Tensor

from scoregen import (
    DDIM,
    EDMSDE,
    SDE,
    VPSDE,
    CosineVPSDE,
    Gaussian,
    Level,
    ProbabilityFlow,
    RectifiedSDE,
    Reversed,
    Sampler,
    ScoreModel,
    Times,
    UniformLam,
    UniformTime,
)
from scoregen.analysis import PolynomialModel, last_move_defect
from scoregen.models import Counted, Prediction
from scoregen.noise import ReplayNoise
from scoregen.sampling import Solver
from scoregen.solvers import (
    DEIS,
    HEUN,
    IPNDM,
    LMS,
    PNDM,
    RK4,
    DPMSolver,
    DPMSolver3MAsPublished,
    DPMSolverPP,
    EulerStart,
    ExponentialAB,
    GammaAveraging,
    History,
    Multistep,
    UniPC,
    VelocityAB,
)
from scoregen.solvers.exponential import moment_weights, phi

NONE = ReplayNoise([])  # the noise of solvers that draw none
VP, EDM, FLOW = VPSDE(), EDMSDE(), RectifiedSDE()
CASES = {"vp": (VP, 0.8, 0.1), "edm": (EDM, 2.0, 0.5)}
CLAIMED: list[Solver] = [
    DPMSolverPP(2),
    DPMSolverPP(3),
    DPMSolver(2),
    DPMSolver(3),
    DPMSolver3MAsPublished("x0"),
    DPMSolver3MAsPublished("eps"),
    EulerStart(ExponentialAB(4, "eps")),
    *[ExponentialAB(k, form) for k in (2, 3, 4) for form in ("x0", "eps")],
    *[method(k) for k in (2, 3, 4) for method in (LMS, DEIS, VelocityAB)],
    *[UniPC(p, form) for p in (1, 2, 3) for form in ("x0", "eps")],
    *[UniPC(p, "x0", v) for p in (1, 2, 3) for v in ("bh1", "bh2")],
    IPNDM(),
    GammaAveraging(1.5),
    PNDM("runge-kutta"),
    PNDM("heun"),
]


class FromLevel(ScoreModel):
    """A model whose eps or velocity is a function of the level alone."""

    def __init__(self, sde: SDE, kind: str, rule: Callable[[Level], float]) -> None:
        super().__init__()
        self.sde, self.kind, self.rule = sde, kind, rule

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        value = {self.kind: torch.full_like(x, self.rule(t))}
        return Prediction(self.sde, t, x, **value)


def data(sde: SDE) -> Gaussian:
    return Gaussian(sde, tensor(0.5, -0.3), tensor(1.2, 0.3))


def errors(
    solver: Solver, sde: SDE, first: float, last: float, kind: str, steps: Any
) -> list[float]:
    model = data(sde)
    x = model.sample(16, first, generator=torch.Generator().manual_seed(0))
    exact = model.flow(x, first, last)
    found = []
    for n in steps:
        out = Sampler(solver, ladder(sde, first, last, kind, n)).run(model, x, noise=NONE)
        found.append(float((out - exact).square().mean().sqrt()))
    return found


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("w", [-30.0, -2.5, -2.0, -1.3, -1e-7, 0.0, 1e-12, 0.4, 1.99, 2.01, 12.0])
def test_phi_is_its_integral(k: int, w: float) -> None:
    def integrand(v: float) -> float:
        return math.exp((1 - v) * w) * v ** (k - 1) / math.factorial(k - 1)

    assert phi(k, w) == pytest.approx(quad(integrand, 0, 1, epsabs=0, epsrel=1e-13)[0], rel=1e-12)


@pytest.mark.parametrize("rate", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("h", [1e-9, 1e-4, 0.3, 1.7, 5.0, -0.4])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_weights_integrate_polynomials_exactly(rate: float, h: float, count: int) -> None:
    nodes = (0.0, -1.7 * h, -2.1 * h, 0.4 * h)[:count]
    weights = moment_weights(rate, h, nodes)
    for power in range(count):
        exact, _ = quad(lambda v, k=power: math.exp(rate * h * (v - 1)) * v**k, 0, 1, epsrel=1e-13)
        terms = [w / h * (u / h) ** power for w, u in zip(weights, nodes, strict=True)]
        assert math.fsum(terms) == pytest.approx(exact, abs=1e-12 * sum(map(abs, terms)))


TIMES = {"vp": (0.9, 0.7, 0.55, 0.5, 0.3, 0.28), "edm": (9.0, 4.0, 3.0, 1.0, 0.9, 0.3)}


@pytest.mark.parametrize("place", CASES)
@pytest.mark.parametrize("form", ["x0", "eps"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_exponential_ab_is_exact_for_lower_powers(place: str, form: Any, order: int) -> None:
    sde = CASES[place][0]
    defects = [
        last_move_defect(ExponentialAB(order, form), sde, power, TIMES[place], form=form)
        for power in range(order + 1)
    ]
    assert max(defects[:order]) < 1e-12
    assert defects[order] > 1e-7


@pytest.mark.parametrize(("method", "form"), [(DPMSolverPP, "x0"), (DPMSolver, "eps")])
def test_third_order_dpm_solver_is_exact_for_parabolas(method: Any, form: Any) -> None:
    for power in range(3):
        assert last_move_defect(method(3), EDM, power, TIMES["edm"], form=form) < 1e-12
    # with two values, as after an Euler start, straight lines
    assert last_move_defect(EulerStart(method(3)), EDM, 1, (4.0, 3.0, 1.0), form=form) < 1e-12
    assert last_move_defect(DPMSolver3MAsPublished(form), EDM, 1, TIMES["edm"], form=form) < 1e-12
    assert last_move_defect(DPMSolver3MAsPublished(form), EDM, 2, TIMES["edm"], form=form) > 1e-3


@pytest.mark.parametrize("inverse", [False, True], ids=["short-long", "long-short"])
@pytest.mark.parametrize(("method", "form"), [(DPMSolverPP, "x0"), (DPMSolver, "eps")])
def test_second_order_dpm_solver_has_its_local_error(method: Any, form: Any, inverse: bool) -> None:
    """Third order in one step on a straight line: with the ratio of steps inverted it is second."""
    defects = []
    for h in (0.025, 0.0125):
        lams = (0.0, 3 * h, 4 * h) if inverse else (0.0, h, 4 * h)
        times = [EDM.level_at(lam).t for lam in lams]
        defects.append(last_move_defect(method(2), EDM, 1, times, form=form))
    assert math.log2(defects[0] / defects[1]) > 2.8


def test_2m_is_the_papers_formula() -> None:
    model, x = data(VP), normal(3, 2)
    levels = VP.levels([0.8, 0.6, 0.3])
    start, mid, end = levels
    x0 = model(x, start).x0
    y = mid.sigma / start.sigma * x - mid.alpha * math.expm1(start.lam - mid.lam) * x0
    x1 = model(y, mid).x0
    r = (mid.lam - start.lam) / (end.lam - mid.lam)
    d = (1 + 1 / (2 * r)) * x1 - 1 / (2 * r) * x0
    z = end.sigma / mid.sigma * y - end.alpha * math.expm1(mid.lam - end.lam) * d
    got = Sampler(DPMSolverPP(), Times(0.8, 0.6, 0.3)).run(model, x, noise=NONE)
    torch.testing.assert_close(got, z, rtol=1e-12, atol=1e-12)


def test_the_published_3m_is_the_papers_code() -> None:
    """phi-functions and differences written out, with the second difference as published."""
    sde, outs = EDM, [tensor(0.7), tensor(-0.2), tensor(1.1)]
    *past, t, s = (sde.level(v) for v in (9.0, 4.0, 3.0, 1.0))
    model = Fixed(sde, lambda x, level: torch.zeros_like(x) + outs[0])
    x = tensor(0.4).reshape(1, 1)
    state = History((past[1], past[0]), (outs[1].reshape(1, 1), outs[2].reshape(1, 1)))
    got, _ = DPMSolver3MAsPublished().step(model, x, t, s, state, NONE)
    h = s.lam - t.lam
    r0, r1 = (t.lam - past[1].lam) / h, (past[1].lam - past[0].lam) / h
    d0, d1 = (outs[0] - outs[1]) / r0, (outs[1] - outs[2]) / r1
    first, second = d0 + r0 / (r0 + r1) * (d0 - d1), (d0 - d1) / (r0 + r1)
    p1 = math.expm1(-h)
    p2 = p1 / h + 1
    p3 = p2 / h - 0.5
    want = s.sigma / t.sigma * x - s.alpha * (p1 * outs[0] - p2 * first + p3 * second)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("power", [0, 1, 2, 3])
def test_adams_bashforth_is_exact_in_its_own_coordinate(order: int, power: int) -> None:
    sde, times = VP, TIMES["vp"]
    t, s = sde.level(times[-2]), sde.level(times[-1])

    def ratio(level: Level) -> float:
        return level.sigma / level.alpha

    def last(solver: Solver, kind: str, rule: Callable[[Level], float]) -> tuple[Tensor, Tensor]:
        model = FromLevel(sde, kind, rule)
        run = Sampler(solver, Times(*times)).iterate(
            model, torch.zeros(1, 1, dtype=F64), noise=NONE
        )
        *_, before, after = run
        return before.x, after.x

    n = power + 1
    cases = []
    x, y = last(LMS(order), "eps", lambda level: ratio(level) ** power)
    cases.append((y, s.alpha * (x / t.alpha + (ratio(s) ** n - ratio(t) ** n) / n)))
    x, y = last(VelocityAB(order), "velocity", lambda level: level.t**power)
    cases.append((y, x + (s.t**n - t.t**n) / n))
    x, y = last(DEIS(order), "eps", lambda level: level.t**power)

    def slope_of_ratio(time: float) -> float:
        level, rates = sde.level(time), sde.rates_at(time)
        return time**power * (rates[1] - level.sigma * rates[0] / level.alpha) / level.alpha

    gain, _ = quad(slope_of_ratio, t.t, s.t, epsabs=0, epsrel=1e-12)
    cases.append((y, s.alpha * (x / t.alpha + gain)))
    for got, want in cases:
        if power < order:
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
        else:
            assert float((got - want).abs()) > 1e-9


@pytest.mark.parametrize("form", ["x0", "eps"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc_corrects_the_last_move_before_the_next(p: int, form: Any) -> None:
    """On polynomials of degree p only the predictor errs, and the corrector mends it wholly."""
    model = PolynomialModel(EDM, p, form)
    levels = [EDM.level(t) for t in (9.0, 7.0, 4.0, 3.0, 1.0)][3 - p :]
    *past, before, t, s = levels
    outs = [model(torch.zeros(1, 1, dtype=F64), level).__getattribute__(form) for level in levels]
    history = History((before, *past[::-1]), tuple(outs[:p][::-1]))
    older = History(history.levels[1:], history.outs[1:])
    exact = model.flow(tensor(0.3).reshape(1, 1), before, t)
    predictor = ExponentialAB(p, form)
    guess, _ = predictor.step(model, tensor(0.3).reshape(1, 1), before, t, older, NONE)
    assert float((guess - exact).abs()) > 1e-4
    got, _ = UniPC(p, form).step(model, guess, t, s, history, NONE)
    want, _ = predictor.step(model, exact, t, s, history, NONE)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_unipc_variants_differ_only_where_one_difference_is_used() -> None:
    model, x = data(VP), normal(4, 2)
    grid = Times(0.8, 0.7, 0.5, 0.45, 0.3)

    def run(p: int, variant: Any) -> Tensor:
        return Sampler(UniPC(p, "x0", variant), grid).run(model, x, noise=NONE)

    for p in (1, 2):
        for a, b in (("bh1", "bh2"), ("bh2", "exact")):
            assert float((run(p, a) - run(p, b)).abs().max()) > 1e-6
    state = History(tuple(VP.levels([0.7, 0.75, 0.8])), (x, x + 1, 2 * x))
    t, s = VP.levels([0.6, 0.5])
    outs = [UniPC(3, "x0", v).step(model, x, t, s, state, NONE)[0] for v in ("bh1", "bh2", "exact")]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[1], outs[2])


@pytest.mark.parametrize("solver", CLAIMED, ids=repr)
@pytest.mark.parametrize("place", CASES)
def test_order_is_claimed_order(solver: Solver, place: str) -> None:
    for kind in ("time", "karras", "zigzag"):
        found = errors(solver, *CASES[place], kind, (64, 128))
        assert solver.order is not None
        assert slope(found) > solver.order - 0.2, kind


@pytest.mark.parametrize("form", ["x0", "eps"])
def test_the_published_3m_is_of_second_order(form: Any) -> None:
    for place in CASES.values():
        assert slope(errors(DPMSolver3MAsPublished(form), *place, "zigzag", (64, 128))) < 2.3
        assert slope(errors(ExponentialAB(3, form), *place, "zigzag", (64, 128))) > 2.8


def test_an_euler_start_costs_an_order() -> None:
    for place in CASES.values():
        assert slope(errors(EulerStart(ExponentialAB(4)), *place, "zigzag", (64, 128))) < 2.4
        assert slope(errors(ExponentialAB(4), *place, "zigzag", (64, 128))) > 3.8


@pytest.mark.parametrize(
    "solver",
    [
        ExponentialAB(1, "x0"),
        ExponentialAB(1, "eps"),
        DPMSolverPP(1),
        DPMSolver(1),
        LMS(1),
        DEIS(1),
        IPNDM(1),
        GammaAveraging(1.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("sde", [VP, EDM, CosineVPSDE(), FLOW], ids=repr)
def test_first_order_members_are_ddim(solver: Solver, sde: SDE) -> None:
    model, x = data(sde), normal(5, 2)
    grid = UniformTime(6)
    want = Sampler(DDIM(), grid).run(model, x, noise=NONE)
    got = Sampler(solver, grid).run(model, x, noise=NONE)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_ipndm_is_lms_on_equal_steps_of_sigma(points: int) -> None:
    model, x = data(EDM), normal(5, 2)
    grid = UniformTime(8, start=5.0, stop=1.0)
    want = Sampler(EulerStart(LMS(points)), grid).run(model, x, noise=NONE)
    got = Sampler(IPNDM(points), grid).run(model, x, noise=NONE)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_gamma_averaging_at_three_halves_is_two_point_ipndm() -> None:
    model, x = data(VP), normal(5, 2)
    want = Sampler(IPNDM(2), UniformLam(8)).run(model, x, noise=NONE)
    got = Sampler(GammaAveraging(), UniformLam(8)).run(model, x, noise=NONE)
    assert torch.equal(got, want)
    other = Sampler(GammaAveraging(2.0), UniformLam(8)).run(model, x, noise=NONE)
    assert float((other - want).abs().max()) > 1e-3


def test_pndm_starts_as_its_paper() -> None:
    """On eps that does not look at x the starts are Simpson's and the trapezoidal rule."""
    x = torch.zeros(1, 1, dtype=F64)
    for start, power in (("runge-kutta", 3), ("heun", 1)):
        model = FromLevel(EDM, "eps", lambda level, k=power: level.t**k)  # type: ignore[misc]
        got = Sampler(PNDM(start), Times(5.0, 2.0)).run(model, x, noise=NONE)
        assert float(got) == pytest.approx(
            (2.0**4 - 5.0**4) / 4 if power == 3 else -10.5, rel=1e-12
        )
    model, x = data(VP), normal(3, 2)
    past = tuple(normal(3, 2, seed=k) for k in (1, 2, 3))
    t, s = VP.levels([0.5, 0.4])
    want, _ = IPNDM().step(model, x, t, s, History((t, t, t), past), None)
    got, state = PNDM().step(model, x, t, s, past, NONE)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    assert len(state) == 4


def test_pndm_starts_with_runge_kutta_where_time_is_sigma() -> None:
    model, x = data(EDM), normal(3, 2)
    for start, tableau, times in (
        ("runge-kutta", RK4, (5.0, 3.0, 2.5, 1.0)),
        ("heun", HEUN, (5.0, 3.0)),
    ):
        want = Sampler(ProbabilityFlow(tableau), Times(*times)).run(model, x, noise=NONE)
        got = Sampler(PNDM(start), Times(*times)).run(model, x, noise=NONE)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_pndm_counts_its_start() -> None:
    model, x = data(VP), normal(2, 2)
    for start, extra in (("runge-kutta", 9), ("heun", 1)):
        with Counted(model) as count:
            Sampler(PNDM(start), UniformLam(8)).run(model, x, noise=NONE)
        assert count.rows / 2 == 8 + extra


@pytest.mark.parametrize("solver", [s for s in CLAIMED if isinstance(s, Multistep)], ids=repr)
def test_evaluations_are_counted_honestly(solver: Multistep) -> None:
    model, x = data(VP), normal(2, 2)
    for moves in (1, 2, 7):
        with Counted(model) as count:
            Sampler(solver, UniformTime(moves, stop=0.1)).run(model, x, noise=NONE)
        assert count.rows / 2 == solver.start_nfe + (moves - 1) * (solver.nfe or 0)
        with Counted(model) as count:
            Sampler(EulerStart(solver), UniformTime(moves, stop=0.1)).run(model, x, noise=NONE)
        assert count.rows / 2 == moves


@pytest.mark.parametrize("solver", CLAIMED, ids=repr)
@pytest.mark.parametrize("sde", [VP, EDM, CosineVPSDE(t_max=1.0), FLOW], ids=repr)
def test_whole_domain_is_walked(solver: Solver, sde: SDE) -> None:
    """From pure noise, where lam may be -inf, to data, for any number of moves."""
    if isinstance(solver, VelocityAB) and sde == EDM:
        return  # polynomials in time have nothing to hold on to across four decades of it
    model, x = data(sde), sde.prior_std(sde.t_max) * normal(4, 2)
    exact = model.flow(x, sde.t_max, 0.0)
    rule = UniformTime if math.isinf(sde.level(sde.t_max).lam) else UniformLam
    for moves in (1, 2, 3, 4, 40):
        out = Sampler(solver, rule(moves)).run(model, x, noise=NONE)
        assert bool(torch.isfinite(out).all())
    assert float((out - exact).square().mean().sqrt()) < 0.1


@pytest.mark.parametrize("solver", CLAIMED, ids=repr)
def test_last_move_to_clean_data_returns_x0(solver: Solver) -> None:
    model, x = data(EDM), 3 * normal(4, 2)
    *_, before, after = Sampler(solver, Times(5.0, 4.0, 2.0, 1.0, 0.5, 0.0)).iterate(
        model,
        x,
        noise=NONE,
    )
    assert torch.equal(after.x, model(before.x, before.t).x0)


@pytest.mark.parametrize("solver", CLAIMED, ids=repr)
def test_the_state_is_kept_whole_and_a_restart_begins_anew(solver: Solver) -> None:
    model, x = data(VP), normal(4, 2)
    t, m, s, e = VP.levels([0.8, 0.6, 0.5, 0.3])
    y, state = solver.step(model, x, t, m, None, NONE)
    once, later = solver.step(model, y, m, s, state, NONE)
    solver.step(model, once, s, e, later, NONE)
    again, _ = solver.step(model, y, m, s, state, NONE)
    assert torch.equal(once, again)
    fresh, _ = solver.step(model, y, m, s, None, NONE)
    alone = Sampler(solver, Times(0.6, 0.5)).run(model, y, noise=NONE)
    assert torch.equal(fresh, alone)


@pytest.mark.parametrize("solver", [ExponentialAB(3), UniPC(2), LMS(3), VelocityAB(3)], ids=repr)
def test_encoding_is_undone_at_the_order(solver: Solver) -> None:
    model, x = data(VP), normal(8, 2)
    found = []
    for n in (40, 80):
        grid = zigzag(VP, 0.8, 0.1, n)
        noisy = Sampler(solver, Reversed(grid)).run(model, x, noise=NONE)
        assert float((noisy - x).abs().max()) > 0.1
        back = Sampler(solver, grid).run(model, noisy, noise=NONE)
        found.append(float((back - x).abs().max()))
    assert slope(found) > 2.8


def test_arguments_are_checked() -> None:
    for method in (ExponentialAB, LMS, DEIS, VelocityAB):
        for order in (0, 5, 2.5, True):
            with pytest.raises((ValueError, TypeError)):
                method(order)
    for wrong in (
        lambda: DPMSolverPP(4),
        lambda: UniPC(4),
        lambda: IPNDM(5),
        lambda: ExponentialAB(2, "v"),
        lambda: UniPC(2, "x0", "bh3"),
        lambda: GammaAveraging(0.5),
        lambda: PNDM("euler"),
        lambda: EulerStart(DDIM()),
    ):
        with pytest.raises((ValueError, TypeError)):
            wrong()
