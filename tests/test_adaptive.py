"""Adaptive solvers: error against tolerance, independence of samples, and an end to every run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import F64, normal, tensor
from torch import Tensor

from scoregen import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVPSDE,
    Dopri5,
    Gaussian,
    Level,
    RectifiedSDE,
    Sampler,
    ScoreModel,
    Times,
)
from scoregen._checks import DivergenceError
from scoregen.models import Counted, Prediction
from scoregen.noise import ReplayNoise
from scoregen.sampling import Step
from scoregen.solvers import AdaptiveDPM, AdaptiveHeun, Restart, Status
from scoregen.solvers.adaptive import _moments
from scoregen.solvers.exponential import phi

NONE = ReplayNoise([])  # the noise of solvers that draw none
PAIRS = [AdaptiveHeun, AdaptiveDPM, lambda **options: AdaptiveDPM(form="eps", **options)]
pairs = pytest.mark.parametrize("pair", PAIRS, ids=["heun", "dpm-x0", "dpm-eps"])


def data(sde: SDE) -> Gaussian:
    return Gaussian(sde, tensor(0.5, -0.3), tensor(1.2, 0.05))


def walk(solver: Any, model: ScoreModel, x: Tensor, *times: float) -> Step:
    *_, last = Sampler(solver, Times(*times)).iterate(model, x, noise=NONE)
    return last


class Broken(ScoreModel):
    """Exact until a level, then NaN for the samples that `rows` names."""

    def __init__(self, model: Gaussian, below: float, rows: slice) -> None:
        super().__init__()
        self.model, self.sde, self.below, self.rows = model, model.sde, below, rows

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        x0 = self.model.predict(x, t).x0.clone()
        late = torch.as_tensor(t.t, dtype=F64).expand(len(x), 1)[self.rows] < self.below
        x0[self.rows] = torch.where(late, x0.new_tensor(math.nan), x0[self.rows])
        return Prediction(self.sde, t, x, x0=x0)


@pairs
@pytest.mark.parametrize(
    ("sde", "first", "last"),
    [
        (VPSDE(), 1.0, 0.1),
        (EDMSDE(), 80.0, 0.1),
        (VESDE(), 1.0, 0.5),
        (RectifiedSDE(), 1.0, 0.0),
        (CosineVPSDE(), 0.9, 0.1),
        (VPSDE(), 0.1, 0.9),
    ],
    ids=["vp", "edm", "ve", "from-noise-to-data", "cosine", "upwards"],
)
def test_error_falls_with_the_tolerance(pair: Any, sde: SDE, first: float, last: float) -> None:
    model = data(sde)
    x = sde.prior_std(sde.t_max) * normal(6, 2) if first == sde.t_max else normal(6, 2)
    errors = []
    for tol in (1e-2, 1e-4, 1e-5):
        end = walk(pair(rtol=tol, atol=tol / 10), model, x, first, last)
        exact = model.flow(x, first, last)
        errors.append(float(((end.x - exact) / (1 + exact.abs())).abs().max()))
        assert end.state.status.tolist() == [Status.ARRIVED] * 6
        assert end.state.t.tolist() == [last] * 6
    assert errors[0] < 0.2
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 3
    assert errors[2] < 1e-4


@pairs
def test_a_move_to_clean_data_returns_x0_from_the_last_level(pair: Any) -> None:
    model, x = data(EDMSDE()), 80 * normal(4, 2)
    near = walk(pair(), model, x, 80.0, EDMSDE().t_min)
    end = walk(pair(), model, x, 80.0, 0.0)
    torch.testing.assert_close(end.x, model(near.x, EDMSDE().t_min).x0, rtol=1e-12, atol=1e-12)
    assert end.state.t.tolist() == [0.0] * 4


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_mates_do_not_matter(pair: Any, dtype: torch.dtype) -> None:
    """Bit by bit, although rows take different numbers of steps."""
    model = data(VPSDE())
    x = (normal(5, 2) * torch.tensor([[0.01], [1.0], [3.0], [30.0], [200.0]])).to(dtype)
    together = walk(pair(), model, x, 1.0, 0.3, 0.0)
    assert len(set(together.state.accepted.tolist())) > 1
    for row in range(5):
        alone = walk(pair(), model, x[row : row + 1], 1.0, 0.3, 0.0)
        assert torch.equal(alone.x[0], together.x[row])
        assert alone.state.accepted[0] == together.state.accepted[row]
        assert alone.state.rejected[0] == together.state.rejected[row]


@pairs
def test_evaluations_follow_the_slowest_sample(pair: Any) -> None:
    model, solver = data(VPSDE()), pair()
    with Counted(model) as count:
        end = walk(solver, model, normal(3, 2), 1.0, 0.1)
    tried = int((end.state.accepted + end.state.rejected).max())
    # two or three evaluations a trial, and a look at who has arrived every fourth trial
    assert count.rows / 3 == 4 * math.ceil(tried / 4) * solver.exponent


@pairs
@pytest.mark.parametrize("below", [2.0, 0.5], ids=["from the start", "half-way"])
def test_a_broken_model_ends_with_a_status(pair: Any, below: float) -> None:
    model, x = data(VPSDE()), normal(4, 2)
    sick = Broken(model, below, slice(1, 3))
    with Counted(sick) as count:
        end = walk(pair(), sick, x, 1.0, 0.2)
    assert count.rows < 4 * 2000
    assert end.state.status.tolist() == [1, Status.NOT_FINITE, Status.NOT_FINITE, 1]
    assert bool(end.x[1:3].isnan().all())
    assert bool(end.state.reached.isfinite().all())
    reached = end.state.t[1:3]
    assert bool((reached > min(below, 1.0) - 0.01).all())  # stages lie before the end of a step
    if below < 1:
        for row, t in ((1, float(reached[0])), (2, float(reached[1]))):
            exact = model.flow(x[row : row + 1], 1.0, t)
            torch.testing.assert_close(end.state.reached[row : row + 1], exact, rtol=0, atol=0.02)
    healthy = walk(pair(), Broken(model, -1.0, slice(1, 3)), x, 1.0, 0.2)
    assert torch.equal(end.x[[0, 3]], healthy.x[[0, 3]])
    with pytest.raises(DivergenceError, match=r"in 2 rows \(1, 2\)"):
        Sampler(pair(), Times(1.0, 0.2)).run(sick, x, noise=NONE)


@pairs
def test_the_budget_of_steps_is_kept(pair: Any) -> None:
    model, x = data(VPSDE()), normal(2, 2)
    end = walk(pair(rtol=1e-9, atol=1e-9, max_steps=7), model, x, 1.0, 0.2, 0.1)
    assert end.state.status.tolist() == [Status.OUT_OF_STEPS] * 2
    assert (end.state.accepted + end.state.rejected).tolist() == [7, 7]
    assert bool(((end.state.t < 1.0) & (end.state.t > 0.2)).all())
    for row in range(2):
        exact = model.flow(x[row : row + 1], 1.0, float(end.state.t[row]))
        torch.testing.assert_close(end.state.reached[row : row + 1], exact, rtol=1e-5, atol=1e-5)


@pairs
def test_a_run_out_of_steps_is_told_from_one_that_diverges(pair: Any) -> None:
    model, x = data(VPSDE()), normal(2, 2)
    solver = pair(rtol=1e-9, atol=1e-9, max_steps=7)
    *_, end = Sampler(solver, Times(1.0, 0.2)).iterate(model, x, noise=NONE)
    reached = f"t = {float(end.state.t[0]):.6g}, {int(end.state.accepted[0])} steps taken"
    with pytest.raises(DivergenceError, match="row 0: out of steps at") as caught:
        Sampler(solver, Times(1.0, 0.2)).run(model, x, noise=NONE)
    for part in (reached, "row 1", "rtol = 1e-09", "max_steps = 7", "raise max_steps"):
        assert part in str(caught.value)
    assert "smaller steps" not in str(caught.value)
    sick = Broken(model, 0.5, slice(1, 2))
    with pytest.raises(DivergenceError, match=r"row 1: the model is not finite at t = 0\.[45]"):
        Sampler(Restart(pair()), Times(1.0, 0.2)).run(sick, x, noise=NONE)


@pytest.mark.parametrize("atol", [0.5, 2.0, 100.0])
def test_a_loose_tolerance_still_begins_in_the_noise(atol: float) -> None:
    """From alpha = 0 the steps begin at sigma / alpha >= e, where little of the data is seen."""
    model, x = data(RectifiedSDE()), normal(6, 2)
    end = walk(AdaptiveDPM(rtol=1e-6, atol=atol), model, x, 1.0, 0.5)
    tight = walk(AdaptiveDPM(rtol=1e-6, atol=1e-8), model, x, 1.0, 0.5)
    assert float((end.x - tight.x).abs().max()) < 0.35 * float(tight.x.abs().max())


@pytest.mark.parametrize("steps", [DiscreteVPSDE.linear(1000), DiscreteVPSDE.cosine(1000)])
def test_a_chain_costs_no_more_than_its_process(steps: SDE) -> None:
    """In time each knot's jump of the rates had to be found: 140 evaluations and more."""
    costs, errors = [], []
    for solver in (Dopri5(1e-5, 1e-5), AdaptiveHeun(1e-4, 1e-4)):
        for sde in (VPSDE(), steps):
            model = data(sde)
            x = normal(4, 2)
            with Counted(model) as count:
                out = Sampler(solver, Times(0.9, 0.05)).run(model, x, noise=NONE)
            costs.append(count.rows / 4)
            errors.append(float((out - model.flow(x, 0.9, 0.05)).abs().max()))
    assert costs[1] < 1.5 * costs[0]
    assert costs[3] < 1.5 * costs[2]
    assert max(errors) < 2e-3


class Restless(ScoreModel):
    """Another huge answer at every question, so that no step is small enough."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde, self.sign = sde, 1.0

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        self.sign = -2 * math.copysign(1.0, self.sign) + self.sign / 3
        return Prediction(self.sde, t, x, x0=torch.full_like(x, 1e30 * self.sign))


@pairs
def test_a_step_never_accepted_ends(pair: Any) -> None:
    x = normal(2, 2)
    model = Restless(VPSDE())
    with Counted(model) as count:
        end = walk(pair(), model, x, 1.0, 0.2)
    assert count.rows < 2 * 200
    assert end.state.status.tolist() == [Status.STEP_TOO_SMALL] * 2
    assert end.state.accepted.tolist() == [0, 0]
    assert torch.equal(end.state.reached, x)
    assert end.state.t.tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


@pairs
def test_no_samples_and_any_event_shape(pair: Any) -> None:
    for event in ((), (3,), (1, 4, 4)):
        model = Gaussian(EDMSDE(), torch.zeros(event, dtype=F64), torch.ones(event, dtype=F64))
        for batch in (0, 1, 2):
            end = walk(pair(), model, 80 * normal(batch, *event), 80.0, 0.0)
            assert end.x.shape == (batch, *event)
            assert bool(end.x.isfinite().all())


def test_steps_of_the_third_order_pair_are_fewer() -> None:
    model, x = data(VPSDE()), normal(4, 2)
    counts = []
    for solver in (AdaptiveHeun(1e-5, 1e-5), AdaptiveDPM(1e-5, 1e-5)):
        counts.append(int(walk(solver, model, x, 1.0, 0.1).state.accepted.max()))
    assert counts[1] < counts[0] / 4


@pytest.mark.parametrize("h", [-3.0, -0.011, -0.009, -1e-9, 0.0, 1e-7, 0.0099, 0.0101, 2.5])
@pytest.mark.parametrize("rate", [-1.0, 1.0])
def test_moments_are_phi_functions(h: float, rate: float) -> None:
    flat, bend = _moments(tensor(h), rate)
    assert float(flat) == pytest.approx(h * phi(1, -rate * h), rel=1e-12)
    assert float(bend) == pytest.approx(h * phi(2, -rate * h), rel=1e-12)


def test_arguments_are_checked() -> None:
    for options in (
        {"rtol": -1.0},
        {"atol": 0.0},
        {"max_steps": 0},
        {"pid": (0.0, 0.0, 0.0)},
        {"pid": (0.1, 0.2)},
    ):
        for pair in (AdaptiveHeun, AdaptiveDPM):
            with pytest.raises(ValueError):
                pair(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="form must be one of"):
        AdaptiveDPM(form="v")  # type: ignore[arg-type]
