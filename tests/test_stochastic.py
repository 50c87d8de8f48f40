"""Stochastic solvers: orders in law, members of the families, corners, and that nothing hangs."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import scipy.stats
import torch
from cases import F64, Fixed, Silent, gaussian, mixture, normal, response, slope
from torch import Tensor

import scoregen.solvers.sde_dpm as sde_dpm
from scoregen import (
    DDIM,
    EDMSDE,
    VPSDE,
    Ancestral,
    DPMSolverPP,
    EulerMaruyama,
    Gaussian,
    Karras,
    KarrasHeun,
    Langevin,
    Level,
    RectifiedSDE,
    Sampler,
    Solver,
    Times,
    UniformLam,
)
from scoregen._checks import DivergenceError
from scoregen.analysis import ZigZag, last_move_defect, observed_order, output_law
from scoregen.grids import RestartGrid
from scoregen.models import Counted
from scoregen.noise import ReplayNoise, SampleNoise
from scoregen.solvers import (
    SEEDS2,
    AdaptiveSDE,
    AncestralODE,
    DPMSolverSingle,
    EulerStart,
    ExponentialAB,
    ExponentialEuler,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    SASolver,
    SDEDPMSolverPP,
    SDEDPMSolverPP2S,
    SNRLangevin,
    Status,
    StochasticHeun,
    TauInterval,
)

FIXED: list[Solver] = [
    *(SDEDPMSolverPP(k, eta) for k in (1, 2, 3) for eta in (0.0, 0.5, 1.0)),
    *(SDEDPMSolverPP2S(eta) for eta in (0.0, 0.5, 1.0)),
    SDEDPMSolverPP2S(1.0, r=0.7),
    *(ExponentialEuler(eta) for eta in (0.0, 0.5, 1.0)),
    *(StochasticHeun(eta) for eta in (0.0, 0.5, 1.0)),
    *(SEEDS2(eta, form) for eta in (0.0, 1.0) for form in ("x0", "eps")),
    *(SASolver(tau, p, c) for tau in (0.0, 1.0) for p, c in ((1, 0), (1, 1), (2, 2), (3, 3))),
    SASolver(1.0, 3, 0),
    SASolver(TauInterval()),
    AncestralODE(DDIM(), 0.5),
    AncestralODE(KarrasHeun()),
    AncestralODE(DPMSolverSingle(2, "eps")),
    AncestralODE(DPMSolverSingle(2, "x0")),
]
PLACES = [
    (VPSDE(), UniformLam(8, start=0.6, stop=0.05)),
    (EDMSDE(), ZigZag(8, start=2.0, stop=0.2)),
    (EDMSDE(), Karras(8, start=2.0, stop=0.2)),
]
each = pytest.mark.parametrize("solver", FIXED, ids=str)


def same(a: Sampler, b: Sampler, sde: Any, tol: float = 1e-11, draws: int = 40) -> None:
    """Equal outputs for equal inputs, on a mixture: nothing linear about it."""
    x = normal(4, 2) * sde.prior_std(a.levels(sde)[0].t)
    z = [normal(4, 2, seed=10 + i) for i in range(draws)]
    out = a.run(mixture(sde), x, noise=ReplayNoise(z))
    torch.testing.assert_close(
        out, b.run(mixture(sde), x, noise=ReplayNoise(z)), rtol=tol, atol=tol
    )


# ---- orders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(3), ids=["VP-lam", "EDM-zigzag", "EDM-karras"])
@each
def test_the_order_in_law_is_the_claimed_one(solver: Solver, place: int) -> None:
    sde, grid = PLACES[place]
    assert solver.weak_order is not None
    orders = []
    for steps in ((32, 64), (64, 128)):  # high orders show late
        orders.append(observed_order(Sampler(solver, grid), sde, steps=steps).last)
        if orders[-1] >= solver.weak_order - 0.2:
            return
    pytest.fail(f"orders {orders}, claimed {solver.weak_order}")


@pytest.mark.parametrize("place", [1, 2], ids=["zigzag", "karras"])
@pytest.mark.parametrize("solver", [s for s in FIXED if s.order], ids=str)
def test_the_deterministic_order_is_the_claimed_one(solver: Solver, place: int) -> None:
    sde, grid = PLACES[place]
    order = observed_order(Sampler(solver, grid), sde, steps=(64, 128), kind="flow")
    assert order.last >= solver.order - 0.2  # type: ignore[operator]


@pytest.mark.parametrize(
    "solver", [SDEDPMSolverPP(1), ExponentialEuler(), SASolver(1.0, 1, 0)], ids=str
)
def test_first_order_methods_are_not_better_than_they_claim(solver: Solver) -> None:
    sde, grid = PLACES[2]
    assert observed_order(Sampler(solver, grid), sde, steps=(32, 64, 128)).last < 1.2


def test_two_stages_need_one_brownian_path(monkeypatch: pytest.MonkeyPatch) -> None:
    sde, grid = PLACES[2]
    good = observed_order(Sampler(SDEDPMSolverPP2S(), grid), sde, steps=(32, 64, 128))

    def apart(x: Tensor, t: Level, m: Level, s: Level, noise: Any) -> tuple[Tensor, Tensor]:
        return noise(x, t, m), noise(x, t, s)

    monkeypatch.setattr(sde_dpm, "brownian", apart)
    bad = observed_order(Sampler(SDEDPMSolverPP2S(), grid), sde, steps=(32, 64, 128))
    assert good.last > 1.8
    assert bad.last < 1.2
    assert bad.errors[-1] > 20 * good.errors[-1]


@each
def test_evaluations_are_the_declared_ones(solver: Solver) -> None:
    model = gaussian(EDMSDE())
    with Counted(model) as count:
        grid = Karras(7, start=5.0, stop=0.1)
        Sampler(solver, grid).run(model, normal(3, 1), noise=SampleNoise(0))
    assert count.rows == 3 * 7 * solver.nfe  # type: ignore[operator]


# ---- moment conditions: a model whose x0 is lam^j ------------------------------------------------


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("power", [0, 1, 2])
def test_three_points_are_exact_for_parabolas(power: int, tau: float) -> None:
    times = (6.0, 3.1, 2.6, 1.1)
    for solver in (SDEDPMSolverPP(3, eta=tau**2), SASolver(tau, 3, 0)):
        assert last_move_defect(solver, EDMSDE(), power, times, tau=tau) < 1e-12


@pytest.mark.parametrize("solver", FIXED, ids=str)
def test_constants_are_reproduced(solver: Solver) -> None:
    """x0 = 1 (eps = 1 for the eps forms) at every level: the weights of a move sum to one."""
    form = "eps" if "eps" in repr(solver) or "Heun" in repr(solver) else "x0"
    form = "eps" if isinstance(solver, ExponentialEuler) else form
    if isinstance(solver, AncestralODE) or callable(getattr(solver, "tau", None)):
        pytest.skip("integrates another SDE")
    if isinstance(solver, SDEDPMSolverPP2S) and solver.eta not in (0.0, 1.0):
        pytest.skip("eta is DDIM's here")
    eta = getattr(solver, "eta", None)
    tau = getattr(solver, "tau", None) if eta is None else math.sqrt(eta)
    defect = last_move_defect(solver, EDMSDE(), 0, (6.0, 3.1, 2.6, 1.1), form=form, tau=tau or 0.0)
    assert defect < 1e-12


# ---- members of the families -----------------------------------------------------------------


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedSDE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("solver", "other"),
    [
        (SDEDPMSolverPP(1), Ancestral("small")),
        (SDEDPMSolverPP(1), DDIM(1.0)),
        (SASolver(1.0, 1, 0), DDIM(1.0)),
        (SDEDPMSolverPP(1, 0.0), DDIM()),
        (SDEDPMSolverPP(2, 0.0), EulerStart(DPMSolverPP(2))),
        (SDEDPMSolverPP(3, 0.0), EulerStart(DPMSolverPP(3))),
        (SASolver(0.0, 2, 0), EulerStart(ExponentialAB(2, "x0"))),
        (SASolver(1.0, 3, 0), SDEDPMSolverPP(3)),
        (SDEDPMSolverPP2S(0.0), DPMSolverSingle(2, "x0")),
        (SEEDS2(0.0, "eps"), DPMSolverSingle(2, "eps")),
        (SEEDS2(0.0, "x0"), DPMSolverSingle(2, "x0")),
        (ExponentialEuler(0.0), DDIM()),
        (StochasticHeun(0.0), KarrasHeun()),
        (AncestralODE(KarrasHeun(), 0.0), KarrasHeun()),
        (AncestralODE(DDIM(), 0.7), DDIM(0.7)),
        (AncestralODE(DDIM(), 1.0), Ancestral("small")),
        (Restart(DPMSolverPP()), DPMSolverPP()),
    ],
    ids=str,
)
def test_members_are_the_methods_they_contain(sde: Any, solver: Solver, other: Solver) -> None:
    if "DPMSolverSingle" in repr(other):  # its order 2 may use the short weights of the papers
        grid: Any = Times(*(f * sde.t_max for f in (0.9, 0.6, 0.25, 0.1)))
    else:
        grid = Times(*(f * sde.t_max for f in (0.9, 0.6, 0.25, 0.1)), 0.0)
    same(Sampler(solver, grid), Sampler(other, grid), sde)


def test_one_move_of_each_has_its_closed_form() -> None:
    """On VE data N(0, v): x_s = A x + N(0, Q), with k = v / (v + r^2), f = r / (v + r^2)."""
    v, r, u = 0.4, 3.0, 1.2
    m = math.sqrt(r * u)
    model = gaussian(EDMSDE(), v)

    def k(r: float) -> float:
        return v / (v + r * r)

    def f(r: float) -> float:
        return r / (v + r * r)

    def moved(solver: Solver) -> tuple[float, float]:
        _, gain, draws = response(Sampler(solver, Times(r, u)), model)
        return gain, float(draws.square().sum())

    delta = r * r - u * u
    for eta in (0.3, 1.0):
        euler = 1 - (1 + eta) * (r - u) * f(r)
        assert moved(ExponentialEuler(eta)) == pytest.approx((euler, eta * delta), rel=1e-12)
        half = (1 + eta) * (r - u) / 2
        want = 1 - half * (f(r) + f(u) * euler), eta * delta * (1 - half * f(u)) ** 2
        assert moved(StochasticHeun(eta)) == pytest.approx(want, rel=1e-12)
        c, q = (u / r) ** (1 + eta), u * u * (1 - (u / r) ** (2 * eta))
        assert moved(SDEDPMSolverPP(1, eta)) == pytest.approx((c + (1 - c) * k(r), q), rel=1e-12)
    # two-stage: DDIM(1) to m, then to s with the denoiser there; W(t, m) enters both
    b, c = (m / r) ** 2, (u / r) ** 2
    gain = c + (1 - c) * k(m) * (b + (1 - b) * k(r))
    spread_m, spread_s = m * math.sqrt(1 - b), u * math.sqrt(1 - c)
    share = math.sqrt((r * r - m * m) / delta)
    first = spread_s * share + (1 - c) * k(m) * spread_m
    want = gain, first**2 + spread_s**2 * (1 - share**2)
    assert moved(SDEDPMSolverPP2S()) == pytest.approx(want, rel=1e-12)
    # SEEDS-2 in x0: the noise of the first half is carried on by (u / m)^2
    first = (u / m) ** 2 * spread_m + (1 - c) * k(m) * spread_m
    want = gain, first**2 + u * u * (1 - (u / m) ** 2)
    assert moved(SEEDS2()) == pytest.approx(want, rel=1e-12)


def test_ancestral_noise_leaves_an_exact_flow_exact() -> None:
    """Past s along the flow, then noise: N(0, v) data keep their law to the flow's own error."""
    sde, grid = EDMSDE(), Times(3.0, 1.0, 0.4)
    law = output_law(Sampler(AncestralODE(_Exact()), grid), sde, (0.3, 2.0))
    assert law.w2 < 1e-12


class _Exact(Solver):
    order = 1

    def step(
        self, model: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any
    ) -> tuple[Tensor, Any]:
        return model.flow(x, t.t, s.t), None


def test_ancestral_refuses_noise_and_memory() -> None:
    with pytest.raises(TypeError, match="noise-free"):
        AncestralODE(DDIM(1.0))
    with pytest.raises(ValueError, match="remembers"):
        Sampler(AncestralODE(DPMSolverPP()), Karras(4)).sample(gaussian(EDMSDE()), (1, 1), seed=0)


def test_the_corrector_improves_and_shares_its_noise() -> None:
    sde, grid = EDMSDE(), Karras(64, start=20.0, stop=0.05)
    plain, mended = (
        output_law(Sampler(SASolver(1.0, 2, c), grid), sde, (0.05, 0.5, 2.0)) for c in (0, 2)
    )
    assert mended.w2 < 0.5 * plain.w2
    assert len(mended.draws) == len(plain.draws) == 64


# ---- restart, predictor and corrector ------------------------------------------------------------


def test_a_move_up_is_the_forward_process() -> None:
    for sde in (VPSDE(), EDMSDE(), RectifiedSDE()):
        grid = Times(0.2 * sde.t_max, 0.8 * sde.t_max)
        law = output_law(Sampler(Restart(), grid), sde, (0.3, 2.0), 0.5)
        assert law.w2 < 1e-12
        assert law.nfe == 0


def test_restart_without_rounds_is_the_plain_sampler() -> None:
    grid = Karras(8)
    none = RestartGrid(grid, low=0.3, high=2.0, repeats=0)
    same(Sampler(Restart(), none), Sampler(KarrasHeun(), grid), EDMSDE())


def test_restart_forgets_a_wrong_start_and_costs_its_rounds() -> None:
    """The start is 10 % too wide; each round contracts what is left of that."""
    sde, model = EDMSDE(), gaussian(EDMSDE(), 1.0)
    errors, costs = [], []
    for repeats in (0, 1, 3):
        grid = RestartGrid(Karras(40, start=5.0, stop=0.1), 0.5, 3.0, repeats=repeats, inner=30)
        sampler = Sampler(Restart(), grid)
        _, gain, draws = response(sampler, model)
        spread = math.sqrt(1.21 * 26 * gain**2 + float(draws.square().sum()))
        errors.append(abs(spread - math.sqrt(1.01)))
        costs.append(output_law(sampler, sde, (1.0,)).nfe)
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]
    assert costs == [80, 140, 260]


def test_the_order_of_predictor_and_corrector() -> None:
    sde, (t, m) = EDMSDE(), (2.0, 0.7)
    corrector, predictor = Langevin(0.05), ReverseDiffusion()
    model, x, z = mixture(sde), 2 * normal(3, 2), [normal(3, 2, seed=i) for i in range(1, 6)]
    high, low, data = (sde.level(v) for v in (t, m, 0.0))

    def by_hand(*moves: tuple[Solver, Level, Level]) -> Tensor:
        y, noise = x, ReplayNoise(z)
        for solver, a, b in moves:
            y, _ = solver.step(model, y, a, b, None, noise)
        return y

    p_first = by_hand(
        (predictor, high, low), (corrector, low, low), (corrector, low, low), (predictor, low, data)
    )
    c_first = by_hand(
        *[(corrector, high, high)] * 2,
        (predictor, high, low),
        *[(corrector, low, low)] * 2,
        (predictor, low, data),
    )
    for first, want, nfe in (("predictor", p_first, 4), ("corrector", c_first, 6)):
        solver = PredictorCorrector(predictor, corrector, 2, first)  # type: ignore[arg-type]
        with Counted(model) as count:
            out = Sampler(solver, Times(t, m, 0.0)).run(model, x, noise=ReplayNoise(z))
        torch.testing.assert_close(out, want)
        assert count.rows == 3 * nfe
        assert solver.nfe == 3
    assert not torch.allclose(p_first, c_first)


def test_corrections_keep_the_predictors_memory() -> None:
    """With corrections that do nothing a multistep predictor goes on as if alone."""

    class Idle(Solver):
        direction = "fixed"

        def step(
            self, model: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any
        ) -> tuple[Tensor, Any]:
            return x, "mine"

    for first in ("predictor", "corrector"):
        solver = PredictorCorrector(DPMSolverPP(), Idle(), first=first)  # type: ignore[arg-type]
        same(Sampler(solver, Karras(6)), Sampler(DPMSolverPP(), Karras(6)), EDMSDE())


def test_predictor_and_corrector_must_be_what_they_are_called() -> None:
    with pytest.raises(TypeError, match="must move"):
        PredictorCorrector(Langevin(0.1))
    with pytest.raises(TypeError, match="must stay"):
        PredictorCorrector(corrector=DDIM())
    with pytest.raises(TypeError, match="must move"):
        Restart(Langevin(0.1))


def test_the_signal_to_noise_step() -> None:
    sde = EDMSDE()
    x, z, level = normal(4, 5, seed=3), normal(4, 5, seed=4), sde.level(1.5)
    model = Gaussian(sde, torch.zeros(5, dtype=F64), 0.5)
    out, _ = SNRLangevin(0.1).step(model, x, level, level, None, ReplayNoise([z]))
    for row in range(4):
        score = -x[row] / 2.75
        h = 2 * (0.1 * float(z[row].norm() / score.norm())) ** 2
        h = min(h, 2 * 0.01 * 3.25)
        torch.testing.assert_close(out[row], x[row] + h * score + math.sqrt(2 * h) * z[row])
    # at the mode the score vanishes, and the step stays bounded
    out, _ = SNRLangevin(0.1).step(model, 0 * x, level, level, None, ReplayNoise([z]))
    assert float(out.abs().max()) < 3


# ---- corners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedSDE()], ids=lambda s: type(s).__name__)
@each
def test_the_last_move_returns_x0_and_draws_nothing(solver: Solver, sde: Any) -> None:
    model, x, t = mixture(sde), normal(3, 2), sde.level(0.1 * sde.t_max)
    silent = Silent()
    out, _ = solver.step(model, x, t, sde.level(0.0), None, silent)
    torch.testing.assert_close(out, model(x, t).x0)
    assert silent.draws == 0


@each
def test_pure_noise_is_a_place_to_start(solver: Solver) -> None:
    """alpha = 0 on rectified flow: no infinity reaches the state."""
    model = mixture(RectifiedSDE())
    out = Sampler(solver, Times(1.0, 0.7, 0.4, 0.2, 0.0)).sample(model, (200, 2), seed=0)
    assert bool(torch.isfinite(out).all())
    assert float(out.abs().max()) < 10


@pytest.mark.parametrize("solver", [s for s in FIXED if s.order], ids=str)
def test_noise_free_members_draw_none_and_walk_up(solver: Solver) -> None:
    silent = Silent()
    grid = Times(0.1, 0.5, 2.0)
    Sampler(solver, grid).run(mixture(EDMSDE()), normal(3, 2), noise=silent)
    assert silent.draws == 0


@pytest.mark.parametrize("bad", [-0.1, math.nan, "1"])
def test_eta_is_checked(bad: Any) -> None:
    for solver in (SDEDPMSolverPP, StochasticHeun, SEEDS2, ExponentialEuler, AdaptiveSDE):
        with pytest.raises((ValueError, TypeError), match="eta"):
            solver(eta=bad)


# ---- adaptive -----------------------------------------------------------------------------------


def run_adaptive(
    solver: AdaptiveSDE, model: Any, x: Tensor, grid: Any, seed: int = 0
) -> tuple[Tensor, Any]:
    *_, last = Sampler(solver, grid).iterate(model, x, noise=SampleNoise(seed, draw=1))
    return last.x, last.state


def test_adaptive_errors_fall_with_the_tolerance_on_one_path() -> None:
    model, x = gaussian(EDMSDE(), event=(8,)), 5 * normal(8, 8)
    grid = Times(5.0, 0.5, 0.2)
    fine, _ = run_adaptive(AdaptiveSDE(3e-3, 7.5e-4), model, x, grid)
    errors, costs = [], []
    for tol in (0.3, 0.1, 0.03):
        out, state = run_adaptive(AdaptiveSDE(tol, tol / 4), model, x, grid)
        errors.append(float((out - fine).square().mean().sqrt()))
        costs.append(float(state.accepted.double().mean()))
        assert bool((state.status == Status.ARRIVED).all())
        assert float((state.t - 0.2).abs().max()) < 1e-12
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]
    assert costs[0] < costs[1] < costs[2]


def test_adaptive_without_noise_finds_the_flow() -> None:
    sde, v = EDMSDE(), 0.5
    model, x = gaussian(sde, v), 10 * normal(8, 1)
    out, _ = run_adaptive(AdaptiveSDE(1e-4, 1e-5, eta=0.0), model, x, Times(10.0, 0.2))
    want = x * math.sqrt((v + 0.04) / (v + 100))
    torch.testing.assert_close(out, want, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_an_adaptive_step_is_the_stochastic_heun_step(eta: float) -> None:
    """Where anything is accepted, the whole move is one step, with the move's own draw."""
    for sde, (t, s) in ((EDMSDE(), (2.0, 0.7)), (VPSDE(), (0.6, 0.3))):
        model, x = mixture(sde), normal(5, 2)
        loose, grid = AdaptiveSDE(1e9, 1e9, eta, first=100.0), Times(t, s)
        out = Sampler(loose, grid).run(model, x, noise=SampleNoise(2))
        want = Sampler(StochasticHeun(eta), grid).run(model, x, noise=SampleNoise(2))
        torch.testing.assert_close(out, want, rtol=1e-10, atol=1e-10)


def test_adaptive_law_is_not_bent_by_refused_steps() -> None:
    """Variance of 10,000 values against chi-square; false alarm 1e-7, and 1 % of bias allowed."""
    sde, v, n = EDMSDE(), 1.0, 250
    model = gaussian(sde, v, event=(40,))
    x = math.sqrt(v + 25) * SampleNoise(5)(torch.zeros(n, 40), sde.level(1.0), sde.level(1.0))
    out, state = run_adaptive(AdaptiveSDE(0.05, 0.05), model, x, Times(5.0, 0.3), seed=6)
    assert float(state.rejected.double().mean()) > 1
    ratio = float(out.double().square().sum()) / (v + 0.09)
    low, high = (scipy.stats.chi2.ppf(q, 40 * n) for q in (5e-8, 1 - 5e-8))
    assert 0.99 * low < ratio < 1.01 * high


def test_adaptive_rows_do_not_see_each_other() -> None:
    model, x, grid = mixture(EDMSDE()), 5 * normal(6, 2), Times(5.0, 1.0, 0.3, 0.0)
    whole, state = run_adaptive(AdaptiveSDE(), model, x, grid)
    sampler = Sampler(AdaptiveSDE(), grid)
    *_, tail = sampler.iterate(model, x[4:], noise=SampleNoise(0, first=4, draw=1))
    torch.testing.assert_close(tail.x, whole[4:], rtol=1e-12, atol=1e-12)
    assert torch.equal(tail.state.accepted, state.accepted[4:])
    assert len(set(state.accepted.tolist())) > 1


def broken(x: Tensor, t: Level) -> Tensor:
    """NaN for the first sample once the noise is below 2."""
    sigma = torch.as_tensor(t.sigma, dtype=x.dtype).expand(len(x), 1)
    rows = torch.arange(len(x)).unsqueeze(1) == 0
    return torch.where((sigma < 2) & rows, math.nan, 0.5 * x / (1 + sigma))


def test_adaptive_ends_where_the_model_breaks() -> None:
    model = Fixed(EDMSDE(), broken)
    x = 5 * normal(3, 1)
    out, state = run_adaptive(AdaptiveSDE(), model, x, Times(5.0, 1.0, 0.5))
    assert state.status.tolist() == [Status.STEP_TOO_SMALL, Status.ARRIVED, Status.ARRIVED]
    assert bool(out[0].isnan())
    assert bool(torch.isfinite(out[1:]).all())
    assert bool(torch.isfinite(state.reached).all())
    assert 1.9 < float(state.t[0]) < 2.3
    with pytest.raises(DivergenceError) as error:
        Sampler(AdaptiveSDE(), Times(5.0, 1.0, 0.5)).run(model, x, noise=SampleNoise(0))
    assert error.value.rows == [0]


def test_adaptive_stops_at_its_budget_and_says_how_far_it_came() -> None:
    model, x = mixture(EDMSDE()), 5 * normal(3, 2)
    out, state = run_adaptive(AdaptiveSDE(1e-5, 1e-6, max_steps=20), model, x, Times(5.0, 0.1))
    assert bool((state.status == Status.OUT_OF_STEPS).all())
    assert bool(((state.accepted + state.rejected) == 20).all())
    assert bool(((state.t > 0.1) & (state.t < 5.0)).all())
    assert bool(out.isnan().all())
    _, state = run_adaptive(AdaptiveSDE(), model, x * math.nan, Times(5.0, 0.1))
    assert bool((state.status == Status.NOT_FINITE).all())


def test_adaptive_refuses_pure_noise() -> None:
    with pytest.raises(ValueError, match="a little below t_max"):
        Sampler(AdaptiveSDE(), Times(1.0, 0.0)).sample(mixture(RectifiedSDE()), (2, 2), seed=0)


# ---- nonlinear truth ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [SDEDPMSolverPP(2), SDEDPMSolverPP2S(), StochasticHeun(), SEEDS2(), SASolver()],
    ids=str,
)
def test_second_order_methods_beat_first_on_a_mixture(solver: Solver) -> None:
    """Mean of |x|^2 over 200,000 samples on a mixture, against Euler-Maruyama's error."""
    sde, n = EDMSDE(), 200_000
    model = mixture(sde)
    grid = Karras(24, start=5.0, stop=0.1)
    x = model.sample(n, 5.0, generator=1)
    want = float(model.sample(n, 0.1, generator=2).square().sum(1).mean())
    errors = []
    for one in (EulerMaruyama(), solver):
        out = Sampler(one, grid).run(model, x, noise=SampleNoise(3))
        errors.append(abs(float(out.square().sum(1).mean()) - want))
    # the standard error of both means is 0.005: five of them
    assert errors[1] < 0.5 * errors[0] + 0.025


def test_slope_of_a_nonlinear_law() -> None:
    """E cos(x) under a potential with no linear part, through Gauss-Hermite nodes in every draw."""
    sde, grid = EDMSDE(), (2.0, 1.0)
    model = Fixed(sde, lambda x, t: torch.tanh(x))
    nodes, weights = (torch.from_numpy(a) for a in _hermite(12))

    def mean(solver: Solver, n: int) -> float:
        """The law after n moves, every combination of nodes followed: n is small."""
        levels = sde.levels(UniformLam(n, start=grid[0], stop=grid[1])(sde))
        x, w = torch.tensor([[0.3]], dtype=F64), torch.ones(1, dtype=F64)
        for t, s in pairwise(levels):
            x = x.repeat_interleave(len(nodes), 0)
            z = nodes.repeat(len(x) // len(nodes)).unsqueeze(1)
            w = (w.unsqueeze(1) * weights).flatten()
            x, _ = solver.step(model, x, t, s, None, ReplayNoise([z]))
        return float((w * x.flatten().cos()).sum())

    # reference by Richardson on Heun's second-order values at n = 2, 4
    truth = (4 * mean(StochasticHeun(), 4) - mean(StochasticHeun(), 2)) / 3
    heun = [abs(mean(StochasticHeun(), n) - truth) for n in (1, 2)]
    euler = [abs(mean(ExponentialEuler(), n) - truth) for n in (1, 2, 4)]
    assert slope(heun) > 1.7
    assert 0.7 < slope(euler) < 1.4


def _hermite(n: int) -> tuple[Any, Any]:
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


def test_the_inner_point_may_lie_at_the_end_of_the_move() -> None:
    """r = 1: Euler to s, then the mean of x0 before and after it, on one draw."""
    sde = VPSDE()
    t, s = sde.level(0.6), sde.level(0.4)
    z, x = torch.tensor([[0.7]], dtype=F64), torch.tensor([[1.3]], dtype=F64)
    model = Gaussian(sde, torch.tensor([0.2], dtype=F64), 0.5)
    got, _ = SDEDPMSolverPP2S(r=1.0).step(model, x, t, s, None, ReplayNoise([z]))
    kept = math.exp(t.lam - s.lam)
    carry, pull = s.sigma / t.sigma * kept, s.alpha * (1 - kept**2)
    spread = s.sigma * math.sqrt(1 - kept**2) * z
    y = carry * x + pull * model(x, t).x0 + spread
    want = carry * x + pull * (model(x, t).x0 + model(y, s).x0) / 2 + spread
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="r must lie in"):
        SDEDPMSolverPP2S(r=1.001)
