"""Adams' method in the angle, and the grid that goes with it, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoregen import EDMSDE, SDE, VPSDE, Gaussian, Level, RectifiedSDE, Sampler, ScoreModel, Times
from scoregen.grids import SinhLam
from scoregen.models import Prediction
from scoregen.noise import ReplayNoise
from scoregen.solvers import AngularAB, EulerStart

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


ANGLES = [1.5, 1.35, 1.0, 0.8, 0.5, 0.45, 0.2]


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
