"""Every solver keeps the orders and the cost that it claims, and the page says what is measured."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import APART, SOLVERS, benchmark

from scoregen import (
    DDIM,
    EDMSDE,
    VPSDE,
    GaussianMixture,
    KarrasHeun,
    Sampler,
    ScoreModel,
    Solver,
    Times,
    UniformLam,
    solvers,
)
from scoregen.analysis import (
    Order,
    ZigZag,
    exact_flow,
    gaussian_model,
    observed_order,
    output_law,
    strong_error,
)
from scoregen.noise import SampleNoise
from scoregen.solvers import DPMSolver3MAsPublished, DPMSolverPP, EulerStart, ExponentialAB

ROOT = Path(__file__).resolve().parents[1]


PAGE = benchmark("samplers/samplers_page")
EVERY: list[Solver] = PAGE.instances()
EVERY += [s for s in SOLVERS if s not in EVERY and not s.population]
CLAIMING = [s for s in EVERY if s.weak_order is not None or s.order is not None]
DETERMINISTIC = [s for s in CLAIMING if s.order is not None]
GRIDS = ("uniform", "karras", "zigzag")


def shortfalls(solver: Solver, processes: tuple[str, ...]) -> list[str]:
    """Where a measured order lies below the claim minus 0.2, or an orderless solver has one."""
    found = []
    for kind, claim in (("flow", solver.order), ("law", solver.weak_order)):
        if claim is None:
            continue
        for process in processes:
            for grid in GRIDS:
                slope = PAGE.slope(solver, process, kind, grid)
                if not slope >= claim - 0.2:
                    found.append(f"{kind} on {process}, {grid}: {slope:.2f}, claimed {claim}")
    return found


@pytest.mark.parametrize("solver", CLAIMING, ids=PAGE.label)
def test_measured_orders_reach_the_claims(solver: Solver) -> None:
    assert shortfalls(solver, ("VP",)) == []


@pytest.mark.slow
@pytest.mark.parametrize("solver", CLAIMING, ids=PAGE.label)
def test_measured_orders_reach_the_claims_on_other_processes(solver: Solver) -> None:
    assert shortfalls(solver, ("EDM", "VE", "rectified", "DDPM cosine")) == []


# Rates jump at a chain's knots: those whose polynomials are of time lost their order there.
BY_TIME = [
    solvers.ProbabilityFlow(solvers.MIDPOINT),
    solvers.ProbabilityFlow(solvers.HEUN),
    solvers.ProbabilityFlow(solvers.RK4),
    *[solvers.VelocityAB(k) for k in (2, 3, 4)],
    *[solvers.DEIS(k) for k in (3, 4)],
]
OTHERS = [s for s in CLAIMING if s not in BY_TIME]


@pytest.mark.parametrize("solver", BY_TIME, ids=PAGE.label)
def test_measured_orders_reach_the_claims_on_a_chain(solver: Solver) -> None:
    assert shortfalls(solver, ("DDPM linear",)) == []


@pytest.mark.slow
@pytest.mark.parametrize("solver", OTHERS, ids=PAGE.label)
def test_measured_orders_reach_the_claims_on_a_chain_too(solver: Solver) -> None:
    assert shortfalls(solver, ("DDPM linear",)) == []


CORRECTED = [
    *[solvers.UniPC(k, form) for k in (1, 2, 3) for form in ("x0", "eps")],
    *[solvers.AngularAB(k) for k in (1, 2, 3)],
]


@pytest.mark.parametrize("solver", CORRECTED, ids=PAGE.label)
def test_a_corrector_adds_one_order(solver: Solver) -> None:
    grid = PAGE.grids(VPSDE())["zigzag"]
    found = observed_order(Sampler(solver, grid), VPSDE(), steps=(64, 128, 256), kind="flow")
    assert solver.order is not None
    assert found.last >= solver.order + 0.8


@pytest.mark.slow
def test_the_rates_of_a_chain_do_cost_an_order() -> None:
    """The same tableau on dx / dt, as on every other process: what the angle is for."""

    @dataclass(frozen=True)
    class InTime(Solver):
        order = 4
        weak_order = 4

        def step(self, model: ScoreModel, x: Any, t: Any, s: Any, state: Any, noise: Any) -> Any:
            h, m = s.t - t.t, model.sde.level((t.t + s.t) / 2)
            k1 = model(x, t).velocity
            k2 = model(x + h / 2 * k1, m).velocity
            k3 = model(x + h / 2 * k2, m).velocity
            k4 = model(x + h * k3, s).velocity
            return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    assert shortfalls(InTime(), ("VP",)) == []
    assert len(shortfalls(InTime(), ("DDPM linear",))) == 6


@dataclass(frozen=True)
class Boaster(Solver):
    """DDIM that claims to be of order 2."""

    order = 2
    weak_order = 2

    def step(self, model: ScoreModel, x: Any, t: Any, s: Any, state: Any, noise: Any) -> Any:
        return DDIM().step(model, x, t, s, state, noise)


@dataclass(frozen=True)
class LateSlope(Solver):
    """Heun's method with the first slope taken twice: a one-letter bug that stays consistent."""

    order = 2
    weak_order = 2

    def step(self, model: ScoreModel, x: Any, t: Any, s: Any, state: Any, noise: Any) -> Any:
        step = s.alpha * (s.sigma / s.alpha - t.sigma / t.alpha)
        slope = model(x, t).eps
        x = s.alpha / t.alpha * x
        ahead = model(x + step * slope, t).eps
        return x + step * (slope + ahead) / 2, None


@pytest.mark.parametrize("solver", [Boaster(), LateSlope()], ids=repr)
def test_a_claim_that_is_not_kept_is_found(solver: Solver) -> None:
    found = shortfalls(solver, ("VP", "EDM"))
    assert len(found) == 12  # two kinds, two processes, three grids


PRICED = [s for s in EVERY if s.nfe is not None and type(s).__name__ not in APART]


@pytest.mark.parametrize("solver", PRICED, ids=PAGE.label)
def test_a_move_costs_the_claimed_evaluations(solver: Solver) -> None:
    # two lengths of run: what a start costs once drops out
    model = gaussian_model(EDMSDE(), (1.0, 2.0))
    counts = []
    for n in (8, 16):
        grid = Times(*[1.0] * (n + 1)) if solver.direction == "fixed" else UniformLam(n, 4.0, 0.2)
        with PAGE.Counted(model) as count:
            x = torch.ones(2, 2, dtype=torch.float64)
            Sampler(solver, grid).run(model, x, noise=SampleNoise(0))
        counts.append(count.rows / 2)
    assert counts[1] - counts[0] == 8 * (solver.nfe or 0)
    assert counts[0] - 8 * (solver.nfe or 0) >= 0


# Gaussian data are linear: a method may be right on them alone


@cache
def nonlinear() -> tuple[GaussianMixture, torch.Tensor, torch.Tensor, ZigZag]:
    sde = EDMSDE()
    covariances = torch.tensor([[[0.5, 0.1], [0.1, 0.4]], [[0.3, 0.0], [0.0, 0.6]]])
    model = GaussianMixture(sde, torch.tensor([1.0, 2.0]), torch.eye(2) * 2, covariances)
    x = model.sample(8, 4.0)
    return model, x, exact_flow(model, x, 4.0, 0.3, rtol=1e-12, atol=1e-13), ZigZag(8, 4.0, 0.3)


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=PAGE.label)
def test_orders_hold_on_a_mixture(solver: Solver) -> None:
    model, x, truth, grid = nonlinear()
    assert solver.order is not None
    slope = -math.inf
    for pair in ((32, 64), (64, 128), (128, 256)):
        samplers = [Sampler(solver, replace(grid, steps=n)) for n in pair]
        slope = Order.of(pair, [strong_error(s, model, x, truth=truth) for s in samplers]).last
        if slope >= solver.order - 0.2:
            break
    assert slope >= solver.order - 0.2


# Weak order on a mixture, by cubature: every draw takes the three values of Gauss and Hermite,
# exact for polynomials of degree five, which keeps weak order 2; all 3^K paths are one batch.

WEAK_SDE = EDMSDE()
WEAK_ENDS = (1.0, 0.8)
MODES = ((0.4, -1.0, 0.3), (0.6, 1.0, 0.2))  # weight, mean, variance


class Cubature:
    """Draw k of row r is digit k of r in base 3; zeros, counted, when the number is unknown."""

    def __init__(self, total: int | None):
        self.total, self.count = total, 0

    def __call__(self, like: torch.Tensor, t: Any, s: Any) -> torch.Tensor:
        index, self.count = self.count, self.count + 1
        if self.total is None:
            return torch.zeros_like(like)
        points = torch.tensor([-math.sqrt(3), 0.0, math.sqrt(3)], dtype=like.dtype)
        digits = points.repeat_interleave(3 ** (self.total - 1 - index)).repeat(3**index)
        return digits.repeat(len(like) // len(digits)).view(like.shape)


def mixture_nodes(sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and weights that integrate against the exact law at noise level sigma."""
    z, w = np.polynomial.hermite_e.hermegauss(20)
    points = [m + math.sqrt(v + sigma**2) * z for _, m, v in MODES]
    weights = [share * w / w.sum() for share, _, _ in MODES]
    return torch.from_numpy(np.concatenate(points)), torch.from_numpy(np.concatenate(weights))


def weak_error(solver: Solver, n: int) -> float:
    """Largest error of E f(x) over a few smooth f, begun at the exact law of the mixture."""
    shares, means, variances = (
        torch.tensor(c, dtype=torch.float64) for c in zip(*MODES, strict=True)
    )
    model = GaussianMixture(WEAK_SDE, shares, means.unsqueeze(1), variances)
    sampler = Sampler(solver, ZigZag(n, *WEAK_ENDS))
    dry = Cubature(None)
    sampler.run(model, torch.zeros(1, 1, dtype=torch.float64), noise=dry)
    chance = torch.ones(1, dtype=torch.float64)
    for _ in range(dry.count):
        chance = torch.outer(chance, torch.tensor([1 / 6, 2 / 3, 1 / 6]).double()).flatten()
    points, weights = mixture_nodes(WEAK_ENDS[0])
    x = points.repeat_interleave(len(chance)).unsqueeze(1)
    out = sampler.run(model, x, noise=Cubature(dry.count)).flatten()
    paths = torch.outer(weights, chance).flatten()
    exact, true_weights = mixture_nodes(WEAK_ENDS[1])
    tests = (lambda y: y, torch.square, lambda y: y**3, lambda y: y**4, torch.cos)
    return max(abs(float((paths * f(out)).sum() - (true_weights * f(exact)).sum())) for f in tests)


@cache
def first_order_error(n: int) -> float:
    return weak_error(DDIM(eta=1.0), n)


def keeps_weak_order(solver: Solver) -> bool:
    """At most eight draws a path, so few moves: the slope, or far below a first-order method."""
    assert solver.weak_order is not None
    draws = len(output_law(Sampler(solver, UniformLam(4, 4.0, 0.3)), WEAK_SDE, (1.0,)).draws) // 4
    steps = (2, 4, 8) if draws <= 1 else (1, 2, 4)
    errors = [weak_error(solver, n) for n in steps]
    slope = math.log2(errors[1] / errors[2])
    small = solver.weak_order <= 2 and errors[2] < first_order_error(steps[2]) / 20
    return slope > solver.weak_order - 0.25 or small


STOCHASTIC = [s for s in CLAIMING if s.order is None and s.weak_order is not None]


@pytest.mark.parametrize("solver", STOCHASTIC, ids=PAGE.label)
def test_weak_orders_hold_on_a_mixture(solver: Solver) -> None:
    assert keeps_weak_order(solver)


@dataclass(frozen=True)
class IndependentStages(Solver):
    """Two stages with independent draws where they should share a Brownian path."""

    weak_order = 2

    def step(self, model: ScoreModel, x: Any, t: Any, s: Any, state: Any, noise: Any) -> Any:
        m = model.sde.level_at((t.lam + s.lam) / 2)
        y, _ = DDIM(eta=1.0).step(model, x, t, m, None, noise)
        x0, tau = model(y, m).x0, s.sigma * math.sqrt(1 - math.exp(2 * (t.lam - s.lam)))
        eps = (x - t.alpha * x0) / t.sigma
        x = s.alpha * x0 + math.sqrt(s.sigma**2 - tau**2) * eps
        return x + tau * noise(x, t, s), None


@pytest.mark.slow
def test_a_lost_brownian_path_is_found() -> None:
    assert not keeps_weak_order(IndependentStages())
    assert shortfalls(IndependentStages(), ("EDM",)) != []


# What the literature's variants cost


def test_the_published_third_order_method_is_of_second_order() -> None:
    grid = ZigZag(32, 4.0, 0.3)
    published, right = (
        Sampler(solver, grid) for solver in (DPMSolver3MAsPublished(), DPMSolverPP(order=3))
    )
    wrong = observed_order(published, EDMSDE(), steps=(64, 128, 256), kind="flow")
    found = observed_order(right, EDMSDE(), steps=(64, 128, 256), kind="flow")
    assert wrong.last < 2.3
    assert found.last > 2.8
    assert found.errors[-1] < wrong.errors[-1] / 10


def test_an_euler_start_costs_an_order() -> None:
    grid = UniformLam(32, 4.0, 0.3)
    method = ExponentialAB(4, "eps")
    late = Sampler(EulerStart(method), grid)
    lost = observed_order(late, EDMSDE(), steps=(64, 128, 256), kind="flow")
    kept = observed_order(Sampler(method, grid), EDMSDE(), steps=(64, 128, 256), kind="flow")
    assert lost.last < 3 < 3.8 < kept.last


def test_churn_keeps_order_two_only_if_it_falls_with_the_steps() -> None:
    def error(churn: float, n: int) -> float:
        sampler = Sampler(KarrasHeun(churn=churn), UniformLam(n, 4.0, 0.3))
        return output_law(sampler, EDMSDE(), PAGE.VARIANCES).w2

    falling = [error(3 / n, n) for n in (64, 128, 256)]
    assert math.log2(falling[0] / falling[1]) > 1.9 < math.log2(falling[1] / falling[2])
    fixed = [error(0.1, n) for n in (256, 512)]
    assert fixed[1] > 0.65 * fixed[0]
    assert KarrasHeun(churn=0.1).weak_order is None


def test_super_convergence_on_gaussians_is_a_floor_and_no_promise() -> None:
    # the midpoint rule shows order 3 on EDM with equal log steps, and claims 2
    midpoint = solvers.ProbabilityFlow(solvers.MIDPOINT)
    assert midpoint.order == 2
    assert PAGE.slope(midpoint, "EDM", "flow", "uniform") > 2.8
    assert PAGE.slope(midpoint, "VP", "flow", "uniform") < 2.3


# The page


FIRST = 4  # cells before those of measured orders
REMAKE = "docs/reference/samplers.md is out of date: run benchmarks/samplers/samplers_page.py"


def section(heading: str) -> list[str]:
    """The rows of the table below a heading of docs/reference/samplers.md."""
    text = (ROOT / "docs" / "reference" / "samplers.md").read_text()
    (part,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
    return [line for line in part.splitlines() if line.startswith(("| `", "| {"))]


def table_rows() -> dict[str, list[str]]:
    """Cells of the table of orders, by the first of them."""
    cut = [[cell.strip() for cell in line.strip("|").split("|")] for line in section("Orders")]
    return {cells[0]: cells for cells in cut}


def test_the_page_names_every_solver_and_its_claims() -> None:
    rows = table_rows()
    lines = [PAGE.row(solver).line(["#"] * len(PAGE.PROCESSES)) for solver in PAGE.instances()]
    cut = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {cells[0]: rows[cells[0]][:FIRST] for cells in cut} == {
        cells[0]: cells[:FIRST] for cells in cut
    }, REMAKE
    assert set(rows) == {cells[0] for cells in cut} | {
        line.split(" | ")[0].strip("| ") for line in PAGE.unbuilt()
    }, REMAKE
    assert section("Methods") == list(PAGE.methods()), REMAKE
    shown = {name.strip("`").split("(")[0] for name in rows}
    exported = {
        name
        for name in solvers.__all__
        if isinstance(getattr(solvers, name), type) and issubclass(getattr(solvers, name), Solver)
    }
    abstract = {name for name in exported if getattr(solvers, name).__abstractmethods__}
    assert exported - abstract <= shown, REMAKE


def test_the_page_shows_no_broken_promise() -> None:
    for cells in table_rows().values():
        claims = [math.nan if c == "–" else float(c) for c in cells[2:FIRST]]
        for measured in cells[FIRST:]:
            if measured == "–":
                continue
            for claim, figure in zip(claims, measured.split("/"), strict=True):
                if not math.isnan(claim) and figure.strip() not in ("–", "exact"):
                    assert float(figure) >= claim - 0.21, cells


def test_distances_on_the_page_are_those_measured_now() -> None:
    text = (ROOT / "docs" / "reference" / "samplers.md").read_text()
    for solver in (DDIM(), KarrasHeun()):
        cells = " | ".join(PAGE.distances(solver))
        assert f"| `{PAGE.label(solver)}` | {cells} |" in text
    law = output_law(Sampler(DDIM(), UniformLam(8, stop=0.02)), EDMSDE(), PAGE.VARIANCES)
    assert PAGE.distances(DDIM())[0] == f"{law.w2:.1e}"


def test_differences_of_the_page_are_found_beyond_the_last_digit() -> None:
    old = "| `DDIM()` | 1.0 / 1.0 | 3.6e-01 |"
    assert PAGE.differences(old, old) == []
    assert PAGE.differences(old, old.replace("1.0 /", "0.9 /").replace("3.6", "3.7")) == []
    assert PAGE.differences(old, old.replace("3.6", "5.6")) != []
    assert PAGE.differences(old, old.replace("1.0 /", "2.0 /")) != []
    assert PAGE.differences(old, old.replace("DDIM", "DDPM")) != []
    assert PAGE.differences(old, old + "\nmore") != []


@pytest.mark.slow
def test_the_whole_page_is_what_is_measured_now() -> None:
    assert PAGE.differences(PAGE.PAGE.read_text(), PAGE.page()) == []
