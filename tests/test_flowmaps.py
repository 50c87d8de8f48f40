"""Flow maps: residuals of every objective at the exact map, and which wrong map each one sees."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import F64, generator, normal, tensor
from torch import Tensor, nn

import scoregen as sg
from scoregen import DDIM, EDMSDE, MLP, VESDE, VPSDE, RectifiedSDE, Sampler, Times, V
from scoregen.analysis import output_law
from scoregen.flowmaps import (
    AngleSpan,
    Consistency,
    ConsistencyDistillation,
    ConsistencyModel,
    Draw,
    FlowMap,
    FlowMapModel,
    GaussianFlowMap,
    GrowingPairs,
    Jump,
    Lagrangian,
    LagrangianSteps,
    MeanFlow,
    Pairs,
    Renoise,
    Shortcut,
    Trajectories,
    flow_map,
    from_score_network,
    jump,
    trajectories,
)
from scoregen.flowmaps.angles import flow_rate, midpoint
from scoregen.flowmaps.jumps import derivative, mapped, velocity_between
from scoregen.flowmaps.objective import distance
from scoregen.models import Counted, Prediction
from scoregen.noise import ReplayNoise, SampleNoise
from scoregen.processes import Level

SDES = [VPSDE(), EDMSDE(), VESDE(), RectifiedSDE()]
each_sde = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)


def exact(sde: sg.SDE) -> GaussianFlowMap:
    return GaussianFlowMap(sde, tensor(0.4, -1.0), tensor(0.5, 0.2))


def drawn(sde: sg.SDE, size: int = 64, pairs: Pairs | None = None) -> Draw:
    """Data of the exact map's law, noise and angles."""
    first, last = (Pairs() if pairs is None else pairs)(sde, size, generator())
    return Draw(exact(sde).draw(size, generator(1)), normal(size, 2, seed=2), first, last)


class Wrong(FlowMapModel):
    """The exact map of N(0, v) with its jumps changed, and a diagonal that stays right.

    With `own` the diagonal is the limit of the changed jumps, as it is in a network.
    """

    def __init__(
        self, sde: sg.SDE, change: str, variance: float = 0.3, *, own: bool = False
    ) -> None:
        super().__init__()
        self.sde, self.change, self.own = sde, change, own
        self.right = GaussianFlowMap(sde, torch.zeros(2, dtype=F64), variance)
        self.variance = variance
        self.power = nn.Parameter(torch.ones((), dtype=F64))

    def predict(
        self, x: Tensor, t: Level, *, to: Level | None = None, **condition: Any
    ) -> Prediction:
        if to is None and self.own:
            to = self.sde.level_of(torch.as_tensor(t.t, dtype=F64).reshape(-1) * (1 - 1e-5), x)
        elif to is None:
            return self.right.predict(x, t)
        total_t = t.alpha**2 * self.variance + t.sigma**2
        total_s = to.alpha**2 * self.variance + to.sigma**2
        power = {"exact": 1.0, "power": 1.02, "semigroup": 1.3}.get(self.change, 1.0)
        moved = (total_s / total_t) ** (power / 2 * self.power) * x
        if self.change == "mirror":  # X o h: another point of the data goes in
            moved = -moved
        if self.change == "tilt":  # g o X: another point comes out
            moved = moved * (1 + 0.1 * to.alpha)
        det = t.alpha * to.sigma - t.sigma * to.alpha
        x0, eps = (to.sigma * x - t.sigma * moved) / det, (t.alpha * moved - to.alpha * x) / det
        return Prediction(self.sde, t, x, x0=x0, eps=eps)


# The exact map


@each_sde
def test_the_exact_map_is_the_flow_and_a_semigroup(sde: sg.SDE) -> None:
    model = exact(sde)
    draw = drawn(sde)
    w, first, last = draw.w, draw.first, draw.last
    once = mapped(model, w, first, last)
    twice = mapped(model, mapped(model, w, first, (first + last) / 2), (first + last) / 2, last)
    assert float((once - twice).abs().max()) < 1e-12
    x = normal(5, 2)
    s, t = 0.2 * sde.t_max, 0.7 * sde.t_max
    torch.testing.assert_close(model.jump(x, t, s), model.flow(x, t, s), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.jump(model.jump(x, t, s), s, t), x, rtol=1e-10, atol=1e-10)
    assert torch.equal(model(x, t).x0, sg.Gaussian.predict(model, x, sde.level(t)).x0)


@each_sde
def test_residuals_vanish_at_the_exact_map(sde: sg.SDE) -> None:
    model = exact(sde)
    draw = drawn(sde)
    for loss in (Lagrangian(diagonal=None), Shortcut(diagonal=None)):
        assert float(loss.at(model, draw).sqrt().max()) < 1e-12
    # MeanFlow with the marginal velocity, which is its residual's mean
    w, first, last = draw.w, draw.first, draw.last
    pushed = derivative(
        lambda w, theta: velocity_between(model, w, theta, last),
        (w, first),
        (flow_rate(model, w, first), torch.ones_like(first)),
    )
    right = flow_rate(model, w, first) + (last - first)[:, None] * pushed[1]
    assert float((pushed[0] - right).abs().max()) < 1e-12
    # a midpoint step is of second order: its error over a gap falls eightfold with half the gap
    errors = []
    for gap in (0.2, 0.1):
        between = last + gap * (first - last)
        start = mapped(model, w, first, between)
        stepped = midpoint(model, start, between, last)
        errors.append(float((stepped - mapped(model, w, first, last)).square().mean().sqrt()))
    assert errors[0] / errors[1] > 5


@each_sde
def test_consistency_at_the_exact_map_has_the_bias_of_its_gap(sde: sg.SDE) -> None:
    """Pairs on one sample's line are not on one path of the flow; their mean is, to gap^2."""
    model = exact(sde)
    draw = drawn(sde)
    teacher = ConsistencyDistillation(teacher=model, gap=0.01, c=1e-3)
    assert float(teacher.at(model, draw).max()) < 0.05
    assert float(Consistency(gap=0.1).at(model, draw).mean()) > 0.01


# Which objective sees which wrong map: 1e-12 means none


@pytest.mark.parametrize(
    ("change", "lagrangian", "shortcut", "mean_flow"),
    [("exact", False, False, False), ("power", True, False, True), ("semigroup", True, False, True),
     ("mirror", False, True, False), ("tilt", True, True, False)],
)  # fmt: skip
def test_each_objective_has_its_blind_spots(
    change: str, lagrangian: bool, shortcut: bool, mean_flow: bool
) -> None:
    """A wrong power is a semigroup, so Shortcut alone passes it; Lagrangian passes what is done to
    the data before the map (X o h), the Eulerian condition of MeanFlow what is done after (g o X).
    """
    sde = VPSDE()
    model = Wrong(sde, change)
    draw = drawn(sde, pairs=Pairs(top=0.0, zero=0.0))
    draw = replace(draw, last=draw.last.clamp(max=0.9 * float(draw.first.min())))
    for loss, sees in (
        (Lagrangian(diagonal=None), lagrangian),
        (Shortcut(diagonal=None), shortcut),
        (MeanFlow(teacher=model.right, same=0.0), mean_flow),
    ):
        found = float(loss.at(model, draw).detach().sqrt().max())
        assert (found > 1e-3) if sees else (found < 1e-10), type(loss).__name__


def test_consistency_pairs_are_blind_to_what_is_done_after_the_map() -> None:
    """g o X passes pairs of neighbours; only the pair that ends at the data sees it."""
    sde = VPSDE()
    draw = drawn(sde, pairs=Pairs(top=0.0))
    found = {}
    for change in ("exact", "mirror", "tilt", "power"):
        model = Wrong(sde, change)
        for gap in (0.01, 1.0):
            loss = ConsistencyDistillation(teacher=model.right, gap=gap, c=math.inf)
            found[change, gap] = float(loss.at(model, draw).detach().mean())
    assert found["tilt", 0.01] < 2 * found["exact", 0.01]
    assert found["mirror", 0.01] < 2 * found["exact", 0.01]
    assert found["power", 0.01] > 10 * found["exact", 0.01]
    assert found["mirror", 1.0] > 10 * found["exact", 1.0]


@pytest.mark.parametrize("change", ["exact", "power", "semigroup", "mirror", "tilt"])
@pytest.mark.parametrize("loss", [Lagrangian(), Shortcut()], ids=lambda s: type(s).__name__)
def test_the_default_losses_miss_no_wrong_map(loss: Any, change: str) -> None:
    """The diagonal of a network is the limit of its jumps: one function, one set of weights.

    What the jumps of a loss pass, its diagonal then sees. (`MeanFlow` and `LagrangianSteps` have
    theirs too.)
    """
    sde = VPSDE()
    model = Wrong(sde, change, own=True)
    assert loss.diagonal is not None
    draw = drawn(sde, pairs=Pairs(top=0.0, zero=0.0))
    draw = replace(draw, last=draw.last.clamp(max=0.9 * float(draw.first.min())))
    jumps = float(loss.at(model, draw).detach().sqrt().max())
    level = sde.level(0.5)
    x = normal(50, 2)
    right = model.right.predict(x, level).x0
    diagonal = float((model.predict(x, level).x0 - right).detach().abs().max())
    seen = max(jumps, diagonal)
    assert (seen < 1e-3) if change == "exact" else (seen > 5e-3)
    assert MeanFlow().same > 0
    assert LagrangianSteps().diagonal is not None


# Expected gradients by cubature


def expected_loss(loss: Any, model: Wrong, first: float, last: float) -> Tensor:
    """E loss over x0 ~ N(0, v) and eps by Gauss-Hermite nodes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    a, b = np.meshgrid(nodes, nodes)
    chance = torch.tensor(np.outer(weights, weights).ravel() / (2 * math.pi), dtype=F64)
    x0 = torch.tensor(a.ravel(), dtype=F64)[:, None].repeat(1, 2) * math.sqrt(model.variance)
    eps = torch.tensor(b.ravel(), dtype=F64)[:, None].repeat(1, 2)
    times = [torch.full((len(x0),), value, dtype=F64) for value in (first, last)]
    return (chance * loss.at(model, Draw(x0, eps, *times))).sum()


def test_the_distance_keeps_its_digits_where_c_is_large() -> None:
    # half the square over c sqrt(d), as c grows: 4 / (2 c sqrt(1)), where sqrt(4 + c^2) - c is 0
    error = torch.full((1, 1), 2.0)
    for c in (1e5, 1e12):
        assert float(distance(error, c)) == pytest.approx(2 / c, rel=1e-6)
    assert float(distance(error, 1e300)) == 0.0  # less than any float32


def test_laws_losses_averages_and_clocks_need_no_class_of_ours() -> None:
    def law(sde: sg.SDE, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.full((count,), 1.0, dtype=torch.float64), torch.zeros(count).double()

    def one(model: Any, x0: Tensor, *, generator: torch.Generator, **condition: Any) -> Tensor:
        return torch.ones(len(x0), dtype=x0.dtype)

    @dataclass(frozen=True)
    class Growing:
        longest: float = 1.0

        def __call__(
            self, sde: sg.SDE, count: int, generator: torch.Generator
        ) -> tuple[Tensor, Tensor]:
            return torch.full((count,), self.longest, dtype=torch.float64), torch.zeros(count)

    x = normal(3, 2).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(event=(2,), hidden=8, second_clock=True)
    model = FlowMap(net, VPSDE(), V(), span=lambda sde, t, s, x: torch.ones(len(x)))
    assert model.jump(x, 0.9, 0.1).shape == (3, 2)
    average = torch.optim.swa_utils.AveragedModel(model)
    for pairs in (law, GrowingPairs(4, pairs=Growing())):
        loss = Shortcut(pairs, one, average=average)(model, x, generator=generator())
        assert loss.shape == (3,)
        assert bool((loss >= 1).all())
    assert int(average.n_averaged) == 2


def test_a_row_of_nan_stays_in_its_row_and_another_event_is_refused() -> None:
    model, x = exact(VPSDE()), normal(3, 2)
    t, s = model.sde.level(0.9), model.sde.level(0.1)
    x[1] = math.nan
    assert jump(model, x, t, s).isfinite().all(1).tolist() == [True, False, True]
    for call in (jump, FlowMapModel.jump):
        with pytest.raises(ValueError, match=r"event \(2,\), got \(4, 3\)"):
            call(model, torch.zeros(4, 3), t, s)
    with pytest.raises(TypeError, match=r"s must be a Level, such as model\.sde\.level\(s\)"):
        jump(model, x, t, 0.1)
    with pytest.raises(ValueError, match="first must hold one angle for each of 3 samples"):
        Draw(torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(1), torch.zeros(3))


def expected_gradient(loss: Any, sde: sg.SDE, first: float, last: float) -> float:
    """d/dpower of E loss at the exact map."""
    model = Wrong(sde, "exact")
    value = expected_loss(loss, model, first, last)
    return float(torch.autograd.grad(value, model.power)[0])


@pytest.mark.parametrize("sde", [VPSDE(), RectifiedSDE()], ids=["VP", "rectified"])
def test_mean_flow_has_no_expected_gradient_at_the_exact_map(sde: sg.SDE) -> None:
    """The residual is linear in the sample's velocity, so its mean is that of the marginal one."""
    assert abs(expected_gradient(MeanFlow(same=0.0), sde, 1.2, 0.4)) < 1e-9
    assert abs(expected_gradient(Lagrangian(diagonal=None), sde, 1.2, 0.4)) < 1e-9


def test_the_least_loss_of_mean_flow_is_the_spread_of_the_velocity() -> None:
    """(dW/dw)^2 Var(v | w) = (V_s / V_t) v / V_t a coordinate, V = cos^2 v + sin^2: not zero."""
    model, first, last = Wrong(VPSDE(), "exact"), 1.2, 0.4
    total = [math.cos(a) ** 2 * model.variance + math.sin(a) ** 2 for a in (first, last)]
    least = total[1] / total[0] * model.variance / total[0]
    found = expected_loss(MeanFlow(same=0.0), model, first, last)
    assert abs(float(found.detach()) - 2 * least) < 1e-9


@pytest.mark.parametrize("c", [math.inf, 1e-3])
def test_consistency_training_is_biased_by_its_gap(c: float) -> None:
    """Over the gap: with a squared error linear in it; robust, it stays while gap sd(v) >> c."""
    gaps = (0.1, 0.05, 0.025)
    found = [expected_gradient(Consistency(gap=g, c=c), VPSDE(), 1.2, 0.0) for g in gaps]
    assert min(map(abs, found)) > 1e-3
    for large, small in itertools.pairwise(found):
        ratio = large / small
        assert (1.8 < ratio < 2.2) if math.isinf(c) else (0.8 < ratio < 1.2)


def test_a_robust_distance_displaces_mean_flow_on_data_that_are_not_gaussian() -> None:
    """E[d' (r) | w], r = v_marginal - v_sample: zero for the square, and for Gaussian data."""
    theta = 0.9
    x0 = torch.linspace(-4, 4, 40001, dtype=F64)[:, None]
    mixed = 0.3 * gauss(x0, -1.5, 0.1) + 0.7 * gauss(x0, 1.0, 0.2)
    for density, displaced in ((gauss(x0, 0.2, 0.5), False), (mixed, True)):
        w = 0.1
        eps = (w - math.cos(theta) * x0) / math.sin(theta)
        chance = density * torch.exp(-(eps**2) / 2)
        chance = chance / chance.sum()
        v = math.cos(theta) * eps - math.sin(theta) * x0
        residual = ((chance * v).sum() - v).requires_grad_(True)
        for c in (math.inf, 1e-2):
            (pull,) = torch.autograd.grad(distance(residual, c).sum(), residual)
            mean = abs(float((chance * pull).sum()))
            assert (mean > 0.05) if displaced and c < 1 else (mean < 1e-8)


def gauss(x: Tensor, mean: float, variance: float) -> Tensor:
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(variance)


def test_derivatives_agree_with_finite_differences() -> None:
    sde = VPSDE()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(event=(2,), hidden=16, second_clock=True).double()
    nn.init.normal_(net.condition.span.outer.weight, std=0.3, generator=generator())
    model = FlowMap(net, sde, V())
    draw = drawn(sde, 16, Pairs(top=0.0, zero=0.0))
    w, first, last = draw.w, draw.first, draw.last
    jvp = derivative(lambda s: mapped(model, w, first, s), (last,), (torch.ones_like(last),))
    h = 1e-5
    slope = (mapped(model, w, first, last + h) - mapped(model, w, first, last - h)) / (2 * h)
    assert float((jvp[1] - slope).detach().abs().max()) < 1e-6
    tangents = (normal(16, 2, seed=5), torch.ones_like(first))
    jvp = derivative(lambda w, t: velocity_between(model, w, t, last), (w, first), tangents)
    up, down = (
        velocity_between(model, w + k * h * tangents[0], first + k * h, last) for k in (1, -1)
    )
    assert float((jvp[1] - (up - down) / (2 * h)).detach().abs().max()) < 1e-6


# Samplers


@each_sde
def test_jumps_of_the_exact_map_are_exact_at_any_number(sde: sg.SDE) -> None:
    model, x = exact(sde), normal(5, 2)
    for times in ((0.9, 0.0), (0.9, 0.4, 0.0)):
        grid = Times(*(f * sde.t_max for f in times))
        out = Sampler(Jump(), grid).run(model, x, noise=SampleNoise(0))
        torch.testing.assert_close(out, model.flow(x, 0.9 * sde.t_max, 0.0), rtol=1e-10, atol=1e-10)


@each_sde
@pytest.mark.parametrize("solver", [Jump(), Renoise()], ids=lambda s: type(s).__name__)
def test_the_output_law_of_the_exact_map_is_the_data_s(sde: sg.SDE, solver: sg.Solver) -> None:
    """W2 = 0 at one, two and three moves; from the prior what the prior's mismatch leaves."""
    for times in ((0.9, 0.0), (0.9, 0.4, 0.0), (0.9, 0.5, 0.2, 0.0)):
        sampler = Sampler(solver, Times(*(f * sde.t_max for f in times)))
        law = output_law(sampler, sde, (0.3, 2.0), 0.5, kind=GaussianFlowMap)
        assert float(law.w2) < 1e-7
        torch.testing.assert_close(law.variance, tensor(0.3, 2.0), rtol=1e-12, atol=1e-12)
    with pytest.raises(TypeError, match="knows no jumps"):
        output_law(sampler, sde, (0.3, 2.0))
    with pytest.raises(TypeError, match="kind must be Gaussian"):
        output_law(sampler, sde, (0.3, 2.0), kind=FlowMap)  # type: ignore[arg-type]
    whole = output_law(Sampler(solver, Times(sde.t_max, 0.0)), sde, (0.3,), 0.5, start="prior",
                       kind=GaussianFlowMap)  # fmt: skip
    top = sde.level(sde.t_max)
    gain = (0.3 / (top.alpha**2 * 0.3 + top.sigma**2)) ** 0.5
    assert float(whole.mean) == pytest.approx(0.5 * (1 - top.alpha * gain), abs=1e-10)
    assert float(whole.variance) == pytest.approx((gain * sde.prior_std(sde.t_max)) ** 2, rel=1e-9)


@each_sde
@pytest.mark.parametrize("moves", [1, 2, 3])
def test_renoising_keeps_the_law_exactly(sde: sg.SDE, moves: int) -> None:
    """Variance by unit inputs: gain^2 of the start and of every draw."""
    variance = 0.3
    model = GaussianFlowMap(sde, torch.zeros(1, dtype=F64), variance)
    times = [f * sde.t_max for f in (0.9, 0.5, 0.2, 0.0)]
    grid = Times(*times[:moves], 0.0)
    start = sde.level(times[0])
    x = torch.zeros(moves + 1, 1, dtype=F64)
    x[0] = 1.0
    draws = [torch.zeros(moves + 1, 1, dtype=F64) for _ in range(moves - 1)]
    for k, draw in enumerate(draws):
        draw[1 + k] = 1.0
    out = Sampler(Renoise(), grid).run(model, x, noise=ReplayNoise(draws)).flatten()
    total = start.alpha**2 * variance + start.sigma**2
    law = float(out[0] ** 2 * total + out[1:].square().sum())
    assert abs(law - variance) < 1e-12


def test_a_jump_is_one_evaluation_also_through_wrappers() -> None:
    with torch.random.fork_rng():
        net = MLP(event=(2,), hidden=8, classes=3, second_clock=True)
    model = FlowMap(net, VPSDE(), V())
    with Counted(model) as count:
        x = Sampler(Jump(), Times(1.0, 0.5, 0.0)).sample(
            model, (4, 2), condition={"label": torch.tensor([0, 1, 2, 3])}
        )
    assert x.shape == (4, 2)
    assert count.rows == 8
    assert flow_map(model.given(label=torch.tensor([0, 1, 2, 3]))) is model
    whole = Sampler(Jump(), Times(1.0, 0.0)).sample(model, (4, 2), condition={"label": 1})
    parts = Sampler(Jump(), Times(1.0, 0.0)).sample(model, (4, 2), condition={"label": 1}, chunk=3)
    torch.testing.assert_close(whole, parts)


def test_a_warm_start_is_ddim_and_its_diagonal_the_teacher() -> None:
    with torch.random.fork_rng():
        teacher = sg.ScoreNetwork(MLP(event=(2,), hidden=16), VPSDE(), V())
    model = from_score_network(teacher)
    x = normal(6, 2, dtype=torch.float32)
    want = Sampler(DDIM(), Times(0.9, 0.2)).run(teacher, x, noise=SampleNoise(0))
    torch.testing.assert_close(model.jump(x, 0.9, 0.2), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.score(x, 0.5), teacher.score(x, 0.5))
    again = from_score_network(teacher)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


# Foreign networks, files and bad input


class Own(nn.Module):
    """A network of somebody else: two clocks under its own names, no configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, clock: Tensor, *, span: Tensor) -> Tensor:
        return self.layer(torch.cat([x, clock[:, None], span[:, None]], 1))


def test_any_network_with_two_clocks_will_do() -> None:
    with torch.random.fork_rng():
        model = FlowMap(Own(), RectifiedSDE(), sg.Velocity(), sg.RawTime())
    assert Sampler(Jump(), Times(1.0, 0.0)).sample(model, (3, 2)).shape == (3, 2)
    function = FlowMap(lambda x, clock, **more: 0 * x, VPSDE(), V())
    assert function.jump(torch.zeros(2, 2), 1.0, 0.0).shape == (2, 2)
    loss = Lagrangian()(model, normal(4, 2, dtype=torch.float32), generator=generator())
    assert loss.shape == (4,)


@pytest.mark.parametrize("kind", [FlowMap, ConsistencyModel])
def test_a_map_comes_back_from_its_checkpoint(tmp_path: Path, kind: type[FlowMap]) -> None:
    with torch.random.fork_rng():
        model = kind(MLP(event=(2,), hidden=8, second_clock=True), VPSDE(), V())
    sg.save(model, tmp_path / "map")
    back = sg.load(tmp_path / "map")
    assert type(back) is kind
    x = normal(3, 2, dtype=torch.float32)
    assert torch.equal(back.jump(x, 1.0, 0.0), model.eval().jump(x, 1.0, 0.0))
    assert back.span == AngleSpan()


def test_bad_input_is_refused_with_the_reason() -> None:
    with torch.random.fork_rng():
        plain = MLP(event=(2,), hidden=8)
        both = MLP(event=(2,), hidden=8, second_clock=True)
        linear = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="one clock"):
        FlowMap(linear, VPSDE(), V())
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="second_clock=True"):
        FlowMap(plain, VPSDE(), V()).jump(x, 1.0, 0.0)
    with pytest.raises(ValueError, match="second_clock=True"):
        sg.ScoreNetwork(both, VPSDE(), V())(x, 0.5)
    model = FlowMap(both, VPSDE(), V())
    with pytest.raises(ValueError, match="both ways"):
        model.jump(x, 0.2, 0.9)
    assert (
        FlowMap(both, VPSDE(), V(), span=AngleSpan(inverts=True)).jump(x, 0.2, 0.9).shape == x.shape
    )
    consistency = ConsistencyModel(both, VPSDE(), V())
    for call in (lambda: consistency.score(x, 0.5), lambda: consistency.jump(x, 1.0, 0.5)):
        with pytest.raises(ValueError, match="t = 0 alone"):
            call()
    assert Sampler(Renoise(), Times(1.0, 0.5, 0.0)).sample(consistency, (2, 2)).shape == (2, 2)
    score = sg.ScoreNetwork(plain, VPSDE(), V())
    for solver in (Jump(), Renoise()):
        with pytest.raises(TypeError, match="knows no jumps"):
            Sampler(solver, Times(1.0, 0.0)).sample(score, (2, 2))
    with pytest.raises(ValueError, match="trajectories"):
        Trajectories((2,))(model, x, generator=generator())
    with pytest.raises(TypeError, match="second clock"):
        from_score_network(sg.ScoreNetwork(linear, VPSDE(), V()))
    with pytest.raises(ValueError, match="longest"):
        Pairs(longest=2.0)


class Distances(nn.Module):
    """A network whose distances have no forward-mode derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, clock: Tensor, *, span: Tensor) -> Tensor:
        moved = x + span[:, None]
        return self.weight * torch.cdist(moved, torch.ones(2, 2))


@pytest.mark.parametrize(
    "loss", [Lagrangian(diagonal=None), MeanFlow()], ids=lambda s: type(s).__name__
)
def test_derivatives_name_the_operation_and_refuse_coarse_tangents(loss: Any) -> None:
    x = normal(4, 2, dtype=torch.float32)
    with pytest.raises(TypeError, match="_cdist_forward"):
        loss(FlowMap(Distances(), VPSDE(), V()), x, generator=generator())
    with torch.random.fork_rng():
        model = FlowMap(MLP(event=(2,), hidden=8, second_clock=True), VPSDE(), V())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="bfloat16"):
        loss(model, x, generator=generator())
    with pytest.raises(TypeError, match="bfloat16"):
        derivative(torch.sin, (x.bfloat16(),), (x.bfloat16(),))
    # an error that is no matter of derivatives comes through as it is
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        derivative(lambda w: w @ torch.ones(3, 1), (x,), (x,))


def test_half_precision_data_are_refused_where_the_tangent_would_be() -> None:
    with torch.random.fork_rng():
        model = FlowMap(MLP(event=(2,), hidden=8, second_clock=True), VPSDE(), V()).bfloat16()
    x = normal(4, 2, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="bfloat16"):
        MeanFlow()(model, x, generator=generator())
    with pytest.raises(TypeError, match="bfloat16"):
        Lagrangian()(model, x, generator=generator())


def test_attention_has_a_derivative_on_its_plain_kernel() -> None:
    """torch's default kernel of the CPU has no forward mode; a user's network need not know."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 8)

        def forward(self, x: Tensor, clock: Tensor, *, span: Tensor) -> Tensor:
            tokens = self.layer(x[:, None, :, None] + span[:, None, None, None])
            y = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
            return y.mean(3)[:, 0] + span[:, None] * x

    with torch.random.fork_rng():
        model = FlowMap(Attends(), VPSDE(), V())
    x = normal(4, 2, dtype=torch.float32)
    loss = Lagrangian(diagonal=None)(model, x, generator=generator())
    loss.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# Trajectories and training


def test_trajectories_lie_on_the_flow_and_their_knots_differ() -> None:
    model = exact(VPSDE())
    data = trajectories(model, 6, moves=40, chunk=3, progress=False)
    assert data.event == (41, 3)
    theta, w = data.x[..., 0].double(), data.x[..., 1:].double()
    assert not torch.equal(theta[0], theta[3])
    assert torch.equal(theta[0], theta[2])
    for k in (10, 25, 40):
        want = mapped(model, w[:, 0], theta[:, 0], theta[:, k])
        assert float((w[:, k] - want).abs().max()) < 2e-3
    loss = Trajectories((2,))(model, data.x, generator=generator())
    assert loss.shape == (6,)
    assert float(loss.max()) < 1e-3


def test_trajectories_teach_one_evaluation(tmp_path: Path) -> None:
    """A small map from an exact teacher: its one-step samples come nearer than DDIM's."""
    teacher = sg.GaussianMixture(
        VPSDE(), tensor(0.5, 0.5), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), tensor(0.02, 0.02)
    )
    data = trajectories(teacher, 512, moves=8, progress=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FlowMap(MLP(event=(2,), hidden=32, second_clock=True), VPSDE(), V())
    for step in sg.fit(
        model, data, Trajectories((2,)), steps=250, batch=128, lr=3e-3, ema_decay=0.98,
        progress=False, out=tmp_path,
    ):  # fmt: skip
        last = step
    x = SampleNoise(9)(torch.empty(200, 2), VPSDE().level(1.0), VPSDE().level(1.0))
    truth = Sampler(DDIM(), sg.UniformLam(60)).run(teacher, x, noise=SampleNoise(0))
    mine = last.ema.jump(x, 1.0, 0.0)
    ddim = Sampler(DDIM(), Times(1.0, 0.0)).run(teacher, x, noise=SampleNoise(0))
    assert float((mine - truth).square().mean()) < 0.3 * float((ddim - truth).square().mean())
    assert isinstance(sg.load(tmp_path / "model"), FlowMap)
