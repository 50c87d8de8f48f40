"""Grids: n + 1 points by count, ends verbatim, strictly monotone, on every process they suit."""

from __future__ import annotations

import math

import pytest
import torch
from cases import F64, GRIDS, NOISY, SDES, name, tensor
from hypothesis import given
from hypothesis import strategies as st

import scoregen
from scoregen import (
    DDIM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    Constant,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    DPMSolverPP,
    Gaussian,
    Karras,
    Knots,
    Langevin,
    ProbabilityFlow,
    RectifiedSDE,
    Reversed,
    Sampler,
    ScoreNetwork,
    Staircase,
    StaticSDE,
    Strided,
    Times,
    UniformLam,
    UniformTime,
)
from scoregen._checks import check_grid
from scoregen.grids import Quadratic, Shifted
from scoregen.models import clocks, parameterization
from scoregen.noise import SampleNoise
from scoregen.solvers import RK4

SPACED = [UniformTime, Quadratic, UniformLam, Karras]
each_spaced = pytest.mark.parametrize("rule", SPACED, ids=lambda r: r.__name__)
each_noisy = pytest.mark.parametrize("sde", NOISY, ids=name)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 17, 100])
@each_noisy
@each_spaced
def test_points_ends_and_order(rule, sde: SDE, steps: int) -> None:
    times = rule(steps)(sde)
    assert times.dtype == F64
    assert times.shape == (steps + 1,)
    assert float(times[0]) == sde.t_max
    assert float(times[-1]) == 0.0
    assert bool((times.diff() < 0).all())
    if sde.t_min > 0 and steps > 1 + (sde.level(sde.t_max).alpha == 0):
        assert sde.t_min in times.tolist()
        assert bool((times[:-1] >= sde.t_min).all())
    check_grid(times, sde.t_max, sde.t_min, "down")


@each_spaced
def test_given_ends_are_kept_verbatim(rule) -> None:
    for sde in (VPSDE(), EDMSDE(), RectifiedSDE(), VESDE()):
        start, stop = 0.7 * sde.t_max, 0.1 * sde.t_max
        times = rule(4, start=start, stop=stop)(sde).tolist()
        assert len(times) == 5
        assert (times[0], times[-1]) == (start, stop)
        assert times == sorted(times, reverse=True)
        to_zero = rule(4, start=start)(sde).tolist()
        assert (to_zero[0], to_zero[-1], len(to_zero)) == (start, 0.0, 5)


def test_uniform_times_are_equally_far_apart() -> None:
    assert UniformTime(4)(RectifiedSDE()).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert UniformTime(3)(VPSDE()).tolist() == [1.0, 0.5005, 0.001, 0.0]


def test_quadratic_roots_are_equally_far_apart() -> None:
    roots = Quadratic(7, start=0.8, stop=0.05)(VPSDE()).sqrt()
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(7), rtol=1e-12, atol=0)


@each_noisy
def test_log_ratios_are_equally_far_apart(sde: SDE) -> None:
    times = UniformLam(6, start=0.9 * sde.t_max, stop=max(sde.t_min, 0.05 * sde.t_max))(sde)
    gaps = sde.lam(times).diff()
    torch.testing.assert_close(gaps, gaps[:1].expand(6), rtol=1e-8, atol=0)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("sde", [EDMSDE(), VPSDE(), DiscreteVPSDE.linear(1000)], ids=name)
def test_karras_powers_are_equally_far_apart(sde: SDE, rho: float) -> None:
    times = Karras(9, rho=rho)(sde)[:-1]
    ratios = torch.exp(-sde.lam(times))
    steps = (ratios ** (1 / rho)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(8), rtol=1e-8, atol=0)


def test_karras_is_the_published_formula() -> None:
    n = 18
    root = [80.0 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80.0 ** (1 / 7)) for i in range(n)]
    want = [r**7 for r in root] + [0.0]
    assert Karras(18)(EDMSDE()).tolist() == pytest.approx(want, rel=1e-12)


def test_logarithmic_grids_reach_the_ends_of_straight_paths_by_one_move_each() -> None:
    for rule in (UniformLam, Karras):
        times = rule(6)(RectifiedSDE()).tolist()
        assert (times[0], times[1], times[-2], times[-1]) == (1.0, 0.999, 0.001, 0.0)
        cosine = rule(6)(CosineVPSDE(t_max=1.0)).tolist()
        assert (cosine[0], cosine[1], cosine[-2], cosine[-1]) == (1.0, 0.999, 0.001, 0.0)
        wide = rule(6, margin=0.1)(RectifiedSDE()).tolist()
        assert (wide[1], wide[-2]) == (0.9, 0.1)


@given(steps=st.integers(1, 60), rule=st.sampled_from(SPACED), sde=st.sampled_from(NOISY))
def test_the_first_point_does_not_depend_on_the_count(steps: int, rule, sde: SDE) -> None:
    times = rule(steps)(sde)
    assert len(times) == steps + 1
    assert float(times[0]) == float(rule(1)(sde)[0])
    # the moves cover the whole way, neither more nor less
    assert float(-times.diff().sum()) == pytest.approx(sde.t_max, rel=1e-15)


def test_knots_of_a_chain() -> None:
    assert Knots()(DiscreteVPSDE.linear(4)).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    times = Knots()(DiscreteVPSDE.linear(1000))
    assert len(times) == 1001
    assert times[:3].tolist() == [1.0, 0.999, 0.998]


@pytest.mark.parametrize(
    ("spacing", "steps", "index"),
    [
        ("trailing", 5, [9, 7, 5, 3, 1]),
        ("leading", 5, [8, 6, 4, 2, 0]),
        ("linspace", 5, [9, 7, 4, 2, 0]),
        ("trailing", 3, [9, 6, 2]),
        ("leading", 3, [6, 3, 0]),
        ("linspace", 3, [9, 4, 0]),
        ("trailing", 1, [9]),
        ("leading", 1, [0]),
        ("linspace", 1, [9]),
        ("trailing", 9, [9, 8, 7, 6, 5, 3, 2, 1, 0]),
        ("trailing", 10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("leading", 10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("linspace", 10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ],
)
def test_strided_knots_listed(spacing: str, steps: int, index: list[int]) -> None:
    times = Strided(steps, spacing)(DiscreteVPSDE.linear(10)).tolist()
    assert times == [*((i + 1) / 10 for i in index), 0.0]


@given(
    length=st.integers(1, 300),
    part=st.floats(0, 1),
    spacing=st.sampled_from(["trailing", "leading", "linspace"]),
)
def test_strided_knots_never_repeat(length: int, part: float, spacing) -> None:
    sde = DiscreteVPSDE.linear(length)
    steps = max(1, round(part * length))
    times = Strided(steps, spacing)(sde)
    assert len(times) == steps + 1
    assert bool((times.diff() < 0).all())
    assert set(times[:-1].tolist()) <= set(sde.knots)
    if spacing != "leading":
        assert float(times[0]) == 1.0


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_leading_with_an_offset_is_every_stride_behind_a_later_knot(steps: int) -> None:
    times = Strided(steps, "leading", offset=1)(DiscreteVPSDE.linear(1000)).tolist()
    stride = 1000 // steps
    assert times == [*((k * stride + 2) / 1000 for k in reversed(range(steps))), 0.0]


def test_strided_from_a_later_start_is_the_grid_of_the_shorter_chain() -> None:
    long, short = DiscreteVPSDE.linear(100), DiscreteVPSDE.linear(60)
    for spacing in ("trailing", "leading", "linspace"):
        part = Strided(7, spacing, start=0.6)(long) * 100
        torch.testing.assert_close(part, Strided(7, spacing)(short) * 60, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 17.0])
def test_shifted_times_multiply_the_noise_to_signal_ratio(shift: float) -> None:
    sde = RectifiedSDE()
    plain, moved = (grid(sde)[1:-1] for grid in (UniformTime(9), Shifted(UniformTime(9), shift)))
    want = shift * plain / (1 - plain)
    torch.testing.assert_close(moved / (1 - moved), want, rtol=1e-13, atol=0)
    whole = Shifted(UniformTime(9), shift)(sde).tolist()
    assert (whole[0], whole[-1], len(whole)) == (1.0, 0.0, 10)
    assert Shifted(UniformTime(9), 1.0)(sde).tolist() == UniformTime(9)(sde).tolist()
    assert float(Shifted(Karras(5), shift)(EDMSDE())[0]) == 80.0


def test_shifted_has_the_count_of_its_grid() -> None:
    sampler = Sampler(DDIM(), Shifted(UniformTime(9), 3.0))
    assert sampler.grid.steps == 9
    assert sampler.with_steps(4) == Sampler(DDIM(), Shifted(UniformTime(4), 3.0))
    assert len(sampler.with_steps(4).grid(RectifiedSDE())) == 5
    fixed = Shifted(Times(1.0, 0.5, 0.0), 3.0)
    assert fixed(RectifiedSDE()).tolist() == [1.0, 0.75, 0.0]
    with pytest.raises(ValueError, match="no count of steps"):
        Sampler(DDIM(), fixed).with_steps(3)


class Eps(torch.nn.Module):
    """The noise in N(0, variance I) on a chain, for a network that reads the chain's index."""

    def __init__(self, sde: DiscreteVPSDE, variance: torch.Tensor) -> None:
        super().__init__()
        self.sde, self.variance = sde, variance

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        level = self.sde.level(self.sde.knots[int(index[0])])
        total = level.alpha**2 * self.variance + level.sigma**2
        return level.sigma * x / total


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP(), ProbabilityFlow()], ids=name)
def test_inversion_of_clean_data_makes_the_first_move(solver) -> None:
    sde = DiscreteVPSDE.linear(1000)
    variance = tensor(0.01, 0.05, 0.5)
    x0 = variance.sqrt() * torch.randn(
        4000, 3, dtype=F64, generator=torch.Generator().manual_seed(0)
    )
    # no network has an answer at t = 0: the clock of this one refuses it
    model = ScoreNetwork(Eps(sde, variance), sde, parameterization.Eps(), clocks.Index())
    noise = SampleNoise(0)
    up = Sampler(solver, Reversed(Strided(50), clean=True))
    first = next(step.x for step in up.iterate(model, x0, noise=noise) if step.index == 1)
    t1 = sde.level(0.02)
    hand = t1.alpha * x0 + t1.sigma**2 * x0 / (t1.alpha**2 * variance + t1.sigma**2)
    torch.testing.assert_close(first, hand, rtol=1e-12, atol=1e-12)
    if isinstance(solver, ProbabilityFlow):
        return  # its order on a chain is another matter
    up_from_t1 = Sampler(solver, Reversed(Strided(50)))
    encoded = up.run(model, x0, noise=noise)
    skipped = up_from_t1.run(model, x0, noise=noise)
    down = Sampler(solver, Strided(50))
    error = [
        ((down.run(model, y, noise=noise) - x0).square().mean(0) / variance).sqrt()
        for y in (encoded, skipped)
    ]
    # one factor for each move: the ratio of DDIM's errors is 0.63959 whatever the draws
    ratio = float(error[0][1] / error[1][1])
    assert ratio == pytest.approx(0.63959, abs=1e-5) if solver == DDIM() else ratio < 0.25
    if isinstance(solver, DPMSolverPP):
        assert float(error[0][1]) < 0.05


def test_inversion_on_straight_paths_starts_at_the_data_itself() -> None:
    sde = RectifiedSDE()
    exact = Gaussian(sde, tensor(0.3, -0.2), 0.5)
    x0 = tensor(0.1, 0.2)[None]
    out = Sampler(ProbabilityFlow(RK4), Reversed(UniformTime(200), clean=True)).run(
        exact, x0, noise=SampleNoise(0)
    )
    mean = tensor(0.3, -0.2)  # quantile to quantile: N(mean, 1/2) to N(0, 1)
    torch.testing.assert_close(out[0], (x0[0] - mean) / math.sqrt(0.5), rtol=1e-7, atol=1e-7)


def test_staircase_visits_every_level_the_same_number_of_times() -> None:
    sde = EDMSDE(t_min=1.0, t_max=8.0)
    times = Staircase(4, 3)(sde)
    assert len(times) == 4 * 3 + 1
    assert times.tolist() == pytest.approx([8.0] * 3 + [4.0] * 3 + [2.0] * 3 + [1.0] * 4, rel=1e-12)
    assert (float(times[0]), float(times[-1])) == (8.0, 1.0)
    denoised = Staircase(4, 3, denoise=True)(sde)
    assert denoised[:-1].tolist() == times.tolist()
    assert float(denoised[-1]) == 0.0
    assert Staircase(1, 2)(sde).tolist() == [8.0, 8.0, 8.0]


def test_staircase_on_a_chain_stands_on_its_knots() -> None:
    sde = DiscreteVESDE((0.1, 0.5, 2.0))
    assert Staircase(3, 2)(sde).tolist() == [1.0, 1.0, 2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3]


def test_given_constant_and_reversed_times() -> None:
    assert Times(80.0, 0.8, 0.0)(EDMSDE()).tolist() == [80.0, 0.8, 0.0]
    assert Constant(0.3, 2)(VPSDE()).tolist() == [0.3, 0.3, 0.3]
    there = Reversed(UniformTime(4))(VPSDE())
    back = UniformTime(4)(VPSDE())
    assert there.tolist() == back[:-1].flip(0).tolist()
    assert Reversed(UniformTime(2, stop=0.5))(VPSDE()).tolist() == [0.5, 0.75, 1.0]


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_every_grid_on_every_process_suits_or_says_why(grid, sde: SDE) -> None:
    try:
        times = grid(sde)
    except (ValueError, TypeError) as reason:
        if len(str(reason)) < 20:
            raise
        return
    moves = "fixed" if isinstance(grid, Constant | Staircase) else "both"
    if not bool((times.diff() <= 0).all() | (times.diff() >= 0).all()):
        moves = "any"  # restarts
    check_grid(times, max(sde.t_max, float(times.max())), min(sde.t_min, 1e-9), moves)


def test_grids_compare_hash_and_print() -> None:
    for grid in GRIDS:
        again = eval(repr(grid), vars(scoregen.grids))
        assert hash(grid) == hash(again)
        assert grid == again
    assert Times(1.0, 0.0) != Times(1.0, 0.5)
    assert UniformTime(3) != UniformTime(4)
    assert len({Karras(3), Karras(3), Karras(3, rho=5.0)}) == 2


def test_other_counts_on_the_same_grid() -> None:
    sampler = Sampler(DDIM(), Karras(5, rho=3.0, stop=0.1))
    assert sampler.with_steps(9) == Sampler(DDIM(), Karras(9, rho=3.0, stop=0.1))
    assert sampler.grid == Karras(5, rho=3.0, stop=0.1)
    assert Sampler(DDIM(), Strided(3, "leading")).with_steps(2).grid == Strided(2, "leading")
    for grid in (Knots(), Times(1.0, 0.0), Staircase(3, 2), Reversed(UniformTime(3))):
        with pytest.raises(ValueError, match="no count of steps"):
            Sampler(Langevin(0.1), grid).with_steps(3)
    with pytest.raises(ValueError, match="steps"):
        sampler.with_steps(0)


REFUSED = [
    (lambda: UniformTime(0), ValueError, "steps must be at least 1, got 0"),
    (lambda: UniformTime(-3), ValueError, "steps"),
    (lambda: Karras(10.5), TypeError, "steps"),
    (lambda: Karras(True), TypeError, "steps"),
    (lambda: Karras(5, rho=0.0), ValueError, "rho"),
    (lambda: UniformTime(5, start=0.0), ValueError, "start"),
    (lambda: UniformTime(5, stop=-0.1), ValueError, "stop"),
    (lambda: UniformTime(5, start=2.0)(VPSDE()), ValueError, "start"),
    (lambda: UniformTime(5, start=0.1, stop=0.2)(VPSDE()), ValueError, "start"),
    (lambda: UniformTime(5, start=1e-3)(VPSDE()), ValueError, "last move"),
    (lambda: UniformLam(5)(StaticSDE()), ValueError, "t_min = 0"),
    (lambda: Karras(5)(EDMSDE(t_min=0.0)), ValueError, "t_min = 0"),
    (lambda: UniformLam(5)(VESDE(t_min=0.0)), ValueError, "t_min = 0"),
    (lambda: Staircase(3, 1)(RectifiedSDE()), ValueError, "noise and signal"),
    (lambda: Staircase(0, 1), ValueError, "levels"),
    (lambda: Staircase(1, 0), ValueError, "repeats"),
    (lambda: Constant(-1.0, 3), ValueError, "t must"),
    (lambda: Constant(0.5, 0), ValueError, "steps"),
    (lambda: Times(1.0), ValueError, "at least two"),
    (lambda: Times(1.0, math.nan), ValueError, "time"),
    (lambda: Times(1.0, -0.5), ValueError, "time"),
    (lambda: Knots()(VPSDE()), TypeError, "knots"),
    (lambda: Strided(5)(VPSDE()), TypeError, "knots"),
    (lambda: Strided(11)(DiscreteVPSDE.linear(10)), ValueError, "at most the number of knots, 10"),
    (lambda: Strided(5, "trailing", offset=1), ValueError, "leading"),
    (lambda: Strided(5, "leading", offset=-1), ValueError, "offset"),
    (lambda: Strided(10, "leading", offset=1)(DiscreteVPSDE.linear(10)), ValueError, "last one"),
    (lambda: Strided(2, start=0.55)(DiscreteVPSDE.linear(10)), ValueError, "knot of the chain"),
    (lambda: Strided(2, start=1.1)(DiscreteVPSDE.linear(10)), ValueError, "knot of the chain"),
    (lambda: Strided(2, start=0.0), ValueError, "start"),
    (lambda: Strided(4, start=0.3)(DiscreteVPSDE.linear(10)), ValueError, "at most the number"),
    (lambda: Shifted(UniformTime(5), 0.0), ValueError, "shift"),
    (lambda: Shifted(5, 3.0), TypeError, "grid"),
    (lambda: Shifted(Knots(), 3.0, 5), ValueError, "no count of steps"),
    (lambda: Strided(5, "middle"), ValueError, "'trailing', 'leading', 'linspace'"),
]


@pytest.mark.parametrize(("act", "error", "word"), REFUSED)
def test_wrong_grids_are_refused_with_the_reason(act, error, word: str) -> None:
    with pytest.raises(error, match=word):
        act()


WALKS = [
    ((1.0, 0.5, 0.6, 0.0), "down", r"times\[1\] = 0.5 is followed by 0.6"),
    ((1.0, 0.5, 0.5, 0.0), "down", "fall strictly"),
    ((0.5, 1.0), "down", "fall strictly"),
    ((1.0, 0.5, 0.5), "both", "strictly monotone"),
    ((0.2, 0.5, 0.4), "both", "strictly monotone"),
    ((0.2, 0.2, 0.4), "fixed", "repeat or fall"),
    ((0.2, 0.2, 0.1), "any", "change at every move"),
    ((1.2, 0.5), "down", r"\[0, 1\]"),
    ((0.5, 1e-5), "down", "t_min"),
]


@pytest.mark.parametrize(("times", "moves", "word"), WALKS)
def test_a_solver_refuses_a_grid_that_does_not_suit_it(times, moves: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        check_grid(tensor(*times), 1.0, 1e-3, moves)


def test_shapes_and_types_of_grids_are_checked() -> None:
    with pytest.raises(TypeError, match="list"):
        check_grid([1.0, 0.0], 1.0, 0.0, "down")
    for wrong in (tensor(1.0), torch.zeros(2, 2, dtype=F64)):
        with pytest.raises(ValueError, match="two times in one axis"):
            check_grid(wrong, 1.0, 0.0, "down")
    with pytest.raises(ValueError, match="finite"):
        check_grid(tensor(1.0, math.nan, 0.0), 1.0, 0.0, "down")
    assert check_grid(tensor(1.0 + 5e-16, 0.5, 0.0), 1.0, 0.0, "down").tolist() == [1.0, 0.5, 0.0]
