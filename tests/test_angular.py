"""Adams' method in the angle, and the grid that goes with it, against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from scoregen import (
    DDIM,
    EDMSDE,
    SDE,
    VPSDE,
    Gaussian,
    Level,
    RectifiedSDE,
    Sampler,
    ScoreModel,
    Solver,
    Times,
    UniformLam,
)
from scoregen.grids import SinhLam
from scoregen.models import Prediction
from scoregen.noise import ReplayNoise
from scoregen.solvers import AngularAB, EulerStart
from scoregen.solvers.angular import angle_weights

F64 = torch.float64
PROCESSES = [VPSDE(), EDMSDE(), RectifiedSDE()]


class Polynomial(ScoreModel):
    """cos(theta) eps - sin(theta) x0 = theta^power, whatever the state."""

    def __init__(self, sde: SDE, power: int) -> None:
        super().__init__()
        self.sde, self.power = sde, power

    def predict(self, x: Tensor, t: Level, **condition: object) -> Prediction:
        theta = math.atan2(t.sigma, t.alpha)
        out = torch.full_like(x, theta**self.power)
        return Prediction(self.sde, t, x, form=(-math.sin(theta), math.cos(theta), out))


def at_angles(sde: SDE, *angles: float) -> list[float]:
    return [sde.level_at(-math.log(math.tan(a))).t for a in angles]


def path(sde: SDE, p: int, power: int, angles: list[float]) -> list[float]:
    """w at every angle, from 0."""
    start = torch.zeros(1, 1, dtype=F64)
    sampler = Sampler(EulerStart(AngularAB(p)), Times(*at_angles(sde, *angles)))
    steps = sampler.iterate(Polynomial(sde, power), start, noise=ReplayNoise([]))
    return [float(step.x) / math.hypot(step.t.alpha, step.t.sigma) for step in steps]


def integral(a: float, b: float, power: int) -> float:
    return (b ** (power + 1) - a ** (power + 1)) / (power + 1)


# steps that do not grow and lie apart from pure noise: no move drops a value
ANGLES = [1.0, 0.92, 0.83, 0.75, 0.7, 0.62, 0.55]


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_polynomials_of_the_angle_are_integrated_exactly(sde: SDE, p: int) -> None:
    """Once the history is full: the predictor of degree p - 1, the corrected move of degree p."""
    for power in range(p):
        w = path(sde, p, power, ANGLES)
        last = w[-1] - w[-2]
        assert last == pytest.approx(integral(*ANGLES[-2:], power), abs=1e-12)
    # two moves together: the first one corrected, the second one predicted with an error that is
    # Adams-Bashforth's own
    w = path(sde, p, p, ANGLES)
    own = error_of_bashforth(ANGLES, p, len(ANGLES) - 2)
    before = error_of_bashforth(ANGLES, p, len(ANGLES) - 3)
    assert w[-1] - w[-2] == pytest.approx(integral(*ANGLES[-2:], p) - own + before, abs=1e-12)


def error_of_bashforth(angles: list[float], p: int, at: int) -> float:
    """int of prod (theta - node) over the move from angles[at]: exact minus predicted, theta^p."""
    nodes = angles[at - p + 1 : at + 1]
    product = torch.tensor([1.0], dtype=F64)
    for node in nodes:  # coefficients, lowest power first
        product = torch.cat([-node * product, product.new_zeros(1)]) + torch.cat(
            [product.new_zeros(1), product]
        )
    low, high = angles[at], angles[at + 1]
    return sum(float(c) * integral(low, high, k) for k, c in enumerate(product))


class OneError(ScoreModel):
    """Exact for N(0, variance), but eps of row i + 1 is wrong by 1 in evaluation i."""

    def __init__(self, sde: SDE, variance: float) -> None:
        super().__init__()
        self.sde, self.variance, self.evaluations = sde, variance, 0

    def predict(self, x: Tensor, t: Level, **condition: object) -> Prediction:
        eps = t.sigma * x / (t.alpha**2 * self.variance + t.sigma**2)
        error = torch.zeros_like(x)
        error[self.evaluations + 1] = 1.0
        self.evaluations += 1
        return Prediction(self.sde, t, x, eps=eps + error)


def gain(solver: Solver, grid: Any, variance: float = 0.25) -> float:
    """Largest change of the output by a unit error of eps in one evaluation, on VP."""
    model = OneError(VPSDE(), variance)
    out = Sampler(solver, grid).run(model, torch.zeros(64, 1, dtype=F64), noise=ReplayNoise([]))
    return float(out.abs().max())


def test_ddim_gains_are_the_closed_form() -> None:
    """G_i = (r_s - r_t) prod over later moves of 1 + (r' - r) r / (v + r^2), r = sigma / alpha."""
    levels = VPSDE().levels(UniformLam(10)(VPSDE()))
    r, gains = [level.sigma / level.alpha for level in levels], []
    for i in range(10):
        later = [1 + (b - a) * a / (0.25 + a * a) for a, b in pairwise(r[i + 1 :])]
        gains.append(abs(r[i + 1] - r[i]) * math.prod(later))
    assert gain(DDIM(), UniformLam(10)) == pytest.approx(max(gains), rel=1e-9)
    assert max(gains) == pytest.approx(0.728, abs=1e-3)


FAMILY = [
    *[EulerStart(AngularAB(k)) for k in (1, 2, 3, 4)],
    EulerStart(AngularAB(4, smooth_end=True)),
    AngularAB(4),
]


@pytest.mark.parametrize("solver", FAMILY, ids=repr)
def test_errors_of_an_eps_network_are_not_amplified(solver: Solver) -> None:
    """At most 1 from 10 evaluations on; without the bound 271 at 10 on UniformLam.

    On SinhLam from t_max the very first move, which has one value and nothing to drop, goes from
    sigma / alpha = 150 to 10 and multiplies errors by 3.5 alone: no larger gain may follow it,
    beyond 1.2. From sigma / alpha = 20 on it does not.
    """
    late = VPSDE().level_at(-math.log(20.0)).t
    for steps in (10, 12, 15, 20, 30, 40):
        assert gain(solver, UniformLam(steps)) <= 1
        assert gain(solver, SinhLam(steps, start=late)) <= (1 if solver.order != 1 else 1.1)
        assert gain(solver, SinhLam(steps)) <= max(1.2, 1.1 * gain(FAMILY[0], SinhLam(steps)))


def test_no_value_is_dropped_where_steps_are_small() -> None:
    """The bound is one of coarse grids: as steps shrink every weight is Adams' own."""
    sde = VPSDE()
    levels = tuple(sde.levels(UniformLam(200, start=0.9, stop=0.1)(sde))[100:106][::-1])
    s, t, past = levels[0], levels[1], levels[1:5]
    _, weights = AngularAB(4).stage_plan(sde, t, s, past)
    want = angle_weights(t, s, past)
    assert weights == pytest.approx([math.hypot(s.alpha, s.sigma) * w for w in want], rel=1e-14)
    assert all(weights)


def test_a_move_drops_its_oldest_values_first() -> None:
    sde = VPSDE()
    levels = sde.levels(UniformLam(10)(sde))
    t, s, past = levels[3], levels[4], tuple(levels[3::-1])
    kept = [w != 0 for w in AngularAB(4).stage_plan(sde, t, s, past)[1]]
    assert kept == sorted(kept, reverse=True)
    assert 1 <= sum(kept) < 4


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE()], ids=repr)
def test_smooth_end_follows_the_flow_to_its_end(sde: SDE) -> None:
    """From the last positive level of the process to sigma = 0, where x0 stops short."""
    model = Gaussian(sde, torch.tensor([0.4], dtype=F64), torch.tensor([[0.01]], dtype=F64))
    x = sde.prior_std(sde.t_max) * torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    truth = model.flow(x, sde.t_max, 0.0)

    def error(solver: AngularAB) -> float:
        sampler = Sampler(EulerStart(solver), SinhLam(100))
        return float((sampler.run(model, x, noise=ReplayNoise([])) - truth).abs().max())

    assert error(AngularAB(4, smooth_end=True)) < 1e-6
    floor = (sde.level(sde.t_min).sigma / 0.1) ** 2 / 2 * 0.1  # x0 shrinks by 1/2 (sigma / std)^2
    assert 0.5 * floor < error(AngularAB(4)) < 3 * floor


@pytest.mark.parametrize("p", [2, 3, 4])
def test_order_on_every_process_is_one_and_the_same(p: int) -> None:
    """In the angle and in w no process is left: the same angles give the same samples."""
    angles = torch.linspace(1.5, 0.05, 12, dtype=F64).tolist()
    ends = []
    for sde in PROCESSES:
        model = Gaussian(sde, torch.tensor([0.4, -1.0], dtype=F64), 0.3)
        times = at_angles(sde, *angles)
        w = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
        first, last = sde.level(times[0]), sde.level(times[-1])
        x = Sampler(AngularAB(p), Times(*times)).run(
            model, w * math.hypot(first.alpha, first.sigma), noise=ReplayNoise([])
        )
        ends.append(x / math.hypot(last.alpha, last.sigma))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-9)


def test_focused_is_sinh_around_its_centre() -> None:
    sde = EDMSDE(t_min=0.01)
    grid = SinhLam(400, centre=0.5, width=0.8)
    lam = -sde.lam(grid(sde)[:-1])
    u = torch.asinh((lam - math.log(0.5)) / 0.8)
    torch.testing.assert_close(u.diff(), u.diff().mean().expand(399), rtol=1e-9, atol=0)
    smallest = int(lam.diff().abs().argmin())
    assert float(lam[smallest]) == pytest.approx(math.log(0.5), abs=0.05)
    assert float(grid(sde)[0]) == 80.0
    assert float(grid(sde)[-2]) == 0.01
