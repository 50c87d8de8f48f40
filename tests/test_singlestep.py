"""DPM-Solver in single steps: closed forms, exactness, orders."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import gaussian, ladder, normal, slope, tensor

from scoregen import DDIM, EDMSDE, VPSDE, Gaussian, RectifiedSDE, Sampler, Times, UniformTime
from scoregen.analysis import last_move_defect
from scoregen.models import Counted
from scoregen.noise import ReplayNoise
from scoregen.solvers import DPMSolverSingle

NONE = ReplayNoise([])  # the noise of solvers that draw none
FORMS = ["x0", "eps"]


def test_2s_is_its_closed_form() -> None:
    """One move on N(0, v): u/s - (exp(-h) - 1) k_m (m/s - (exp(-h/2) - 1) k_s), k = v/(v + s^2)."""
    v, s, u = 0.25, 3.0, 1.2
    model, x = gaussian(EDMSDE(), v), tensor(0.7).reshape(1, 1)
    m, h = math.sqrt(s * u), math.log(s / u)
    k = {sigma: v / (v + sigma**2) for sigma in (s, m)}
    gain = u / s - math.expm1(-h) * k[m] * (m / s - math.expm1(-h / 2) * k[s])
    got = Sampler(DPMSolverSingle(2, "x0"), Times(s, u)).run(model, x, noise=NONE)
    assert float(got) == pytest.approx(0.7 * gain, rel=1e-12)


def test_dpm_solver_2_is_the_midpoint_rule_in_sigma() -> None:
    """x + (u - s) eps at sqrt(s u), reached by Euler's method."""
    v, s, u = 0.25, 3.0, 1.2
    model, x = gaussian(EDMSDE(), v), tensor(0.7).reshape(1, 1)
    m = math.sqrt(s * u)
    gain = 1 + (u - s) * m / (v + m**2) * (1 + (m - s) * s / (v + s**2))
    got = Sampler(DPMSolverSingle(2), Times(s, u)).run(model, x, noise=NONE)
    assert float(got) == pytest.approx(0.7 * gain, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_one_step_is_exact_for_polynomials(form: Any) -> None:
    times = (3.0, 2.0, 0.7)
    assert last_move_defect(DPMSolverSingle(2, form), EDMSDE(), 0, times, form=form) < 1e-13
    for power in (0, 1):
        assert last_move_defect(DPMSolverSingle(3, form), EDMSDE(), power, times, form=form) < 1e-13
    assert last_move_defect(DPMSolverSingle(3, form), EDMSDE(), 2, times, form=form) > 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("sde", "first", "last"), [(VPSDE(), 0.8, 0.1), (EDMSDE(), 2.0, 0.5)], ids=["vp", "edm"]
)
def test_order_is_claimed_order(sde: Any, first: float, last: float, order: int, form: Any) -> None:
    model = Gaussian(sde, tensor(0.5, -0.3), tensor(1.2, 0.3))
    x = model.sample(16, first, generator=torch.Generator().manual_seed(0))
    exact = model.flow(x, first, last)
    for kind in ("time", "karras", "zigzag"):
        errors = []
        for n in (32, 64):
            sampler = Sampler(DPMSolverSingle(order, form), ladder(sde, first, last, kind, n))
            out = sampler.run(model, x, noise=NONE)
            errors.append(float((out - exact).square().mean().sqrt()))
        assert slope(errors) > order - 0.2, kind


@pytest.mark.parametrize("form", FORMS)
def test_first_order_is_ddim(form: Any) -> None:
    for sde in (VPSDE(), EDMSDE(), RectifiedSDE()):
        model, x = gaussian(sde, mean=0.4, event=(2,)), normal(5, 2)
        want = Sampler(DDIM(), UniformTime(5)).run(model, x, noise=NONE)
        got = Sampler(DPMSolverSingle(1, form), UniformTime(5)).run(model, x, noise=NONE)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_evaluations_are_declared(order: int) -> None:
    model, x = gaussian(VPSDE()), normal(4, 1)
    with Counted(model) as count:
        Sampler(DPMSolverSingle(order), UniformTime(5, stop=0.1)).run(model, x, noise=NONE)
    assert count.rows / 4 == 5 * (DPMSolverSingle(order).nfe or 0)
    with Counted(model) as count:  # the last move, to clean data, takes one
        Sampler(DPMSolverSingle(order), UniformTime(5)).run(model, x, noise=NONE)
    assert count.rows / 4 == 4 * order + 1


def test_arguments_are_checked() -> None:
    for wrong in (0, 4):
        with pytest.raises(ValueError, match="order must be at"):
            DPMSolverSingle(wrong)
    with pytest.raises(ValueError, match="form must be one of"):
        DPMSolverSingle(2, "v")  # type: ignore[arg-type]
