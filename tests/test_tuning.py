"""Tuned samplers: tables that are the samplers they come from, fits that hold on other noise."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import F64, normal
from torch import Tensor, nn

from scoregen import (
    DDIM,
    EDMSDE,
    MLP,
    SDE,
    VPSDE,
    ClassifierFree,
    DiscreteVPSDE,
    DPMSolverPP,
    Eps,
    EulerMaruyama,
    Gaussian,
    GaussianMixture,
    Karras,
    KarrasHeun,
    Level,
    RectifiedSDE,
    Sampler,
    ScoreModel,
    ScoreNetwork,
    UniformLam,
    UniformTime,
    UniPC,
    V,
    digits_model,
)
from scoregen.models import Counted, Prediction
from scoregen.noise import ReplayNoise
from scoregen.solvers import IPNDM, AngularAB, EulerStart, ExponentialAB
from scoregen.training import CheckpointError
from scoregen.tuning import (
    Fit,
    Interior,
    Tuned,
    as_table,
    candidates,
    levenberg,
    load_sampler,
    save_sampler,
    tune,
)
from scoregen.tuning.levenberg import Data, Table, _jacobian, _normal, _step
from scoregen.tuning.trajectories import Trajectories

PROCESSES: list[SDE] = [VPSDE(), EDMSDE(), RectifiedSDE(1e-3, 0.999), DiscreteVPSDE.linear(1000)]


def gauss64(sde: SDE) -> Gaussian:
    """The problem of benchmarks/samplers/accuracy.py: standard deviations 0.03 to 1.5, rotated."""
    g = torch.Generator().manual_seed(64)
    turn, _ = torch.linalg.qr(torch.randn(64, 64, generator=g, dtype=F64))
    variances = torch.logspace(math.log10(0.03), math.log10(1.5), 64, dtype=F64) ** 2
    mean = 0.3 * torch.randn(64, generator=g, dtype=F64)
    return Gaussian(sde, mean, turn @ torch.diag(variances) @ turn.mT)


def bent(sde: SDE) -> GaussianMixture:
    means = torch.tensor([[1.0, 0.0, 0.3], [-0.5, 0.8, -1.0]], dtype=F64)
    return GaussianMixture(sde, torch.tensor([0.4, 0.6], dtype=F64), means, torch.full((2,), 0.09))


def network(seed: int = 0, classes: int = 0) -> ScoreNetwork:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)  # type: ignore[attr-defined]
        net = MLP((3,), hidden=16, depth=1, classes=classes)
    return ScoreNetwork(net, VPSDE(), V())


def unit(x: Tensor, sampler: Sampler, sde: SDE) -> Tensor:
    """The start of a sampler from one and the same w = x / hypot(alpha, sigma)."""
    first = sampler.levels(sde)[0]
    return math.hypot(first.alpha, first.sigma) * x


def solved(sampler: Sampler, model: ScoreModel, w: Tensor) -> Tensor:
    return sampler.run(model, unit(w, sampler, model.sde), noise=ReplayNoise([]))


ONE_A_MOVE = [
    DDIM(),
    EulerStart(AngularAB(2)),
    EulerStart(AngularAB(4, smooth_end=True)),
    EulerStart(ExponentialAB(3, "eps")),
    DPMSolverPP(2),
    UniPC(2),
    IPNDM(3),
]


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("solver", ONE_A_MOVE, ids=repr)
def test_a_table_is_the_sampler_it_was_made_of(solver: Any, sde: SDE) -> None:
    """On a model that is not affine, which the table has not seen."""
    model, w = bent(sde), normal(6, 3)
    for grid in (Interior(5), Interior(5, high=1e3, low=0.15)):
        sampler = Sampler(solver, grid)
        table = as_table(sampler, model, (3,)).sampler()
        with Counted(model) as counted:
            got = solved(table, model, w)
        assert counted.rows == 5 * len(w)
        torch.testing.assert_close(got, solved(sampler, model, w), rtol=0, atol=1e-9)


def test_what_is_no_table_is_refused() -> None:
    model = bent(VPSDE())
    with pytest.raises(ValueError, match="noise"):
        as_table(Sampler(EulerMaruyama(), UniformTime(4)), model, (3,))
    with pytest.raises(ValueError, match="twice"):
        as_table(Sampler(KarrasHeun(), Karras(4)), model, (3,))
    with pytest.raises(ValueError, match="end at 0"):
        as_table(Sampler(DDIM(), UniformTime(4, stop=0.1)), model, (3,))


def test_what_is_no_sampler_model_or_file_is_refused() -> None:
    model, ddim = bent(VPSDE()), Sampler(DDIM(), UniformTime(4))
    table = as_table(ddim, model, (3,)).sampler()
    cases: list[tuple[Any, tuple[Any, ...], str]] = [
        (as_table, (DDIM(), model, (3,)), "sampler must be a Sampler, such as"),
        (as_table, (ddim, nn.Identity(), (3,)), "model must be a score model"),
        (as_table, (ddim, model, 3), "event must be a sequence of integers"),
        (candidates, (model, 4), "sde must be a SDE, such as VPSDE"),
        (candidates, (VPSDE(), 1), "nfe must be at least 2"),
        (save_sampler, (table, 3), "path must be a path"),
        (save_sampler, (table, "a.json", 3), "model must be a score model"),
        (save_sampler, (ddim, "a.json"), "sampler must be what tune returned"),
        (load_sampler, (None, model), "path must be a path"),
        (load_sampler, ("a.json", "model"), "model must be a score model"),
        (Interior, (4, 20.0, 0.05, "sinh"), "spacing must be a function"),
    ]
    for function, given, message in cases:
        with pytest.raises((TypeError, ValueError), match=message):
            function(*given)


def test_there_are_96_starts_of_exactly_n_evaluations() -> None:
    model = bent(VPSDE())
    every = list(candidates(VPSDE(), 4))
    assert len(set(map(repr, every))) == 96
    for sampler in every[::7]:
        assert len(as_table(sampler, model, (3,)).times) == 4
    ratios = {round(math.exp(-s.levels(VPSDE())[0].lam)) for s in every}
    assert ratios == {20, 152}


@pytest.mark.parametrize(
    ("sde", "nfe", "most"),
    # RMS on other noise; another implementation of the method reached 1.9e-3 and 1.4e-4 on VP
    [
        pytest.param(VPSDE(), 3, 3e-3, id="VP 3"),
        pytest.param(VPSDE(), 5, 2e-4, id="VP 5", marks=pytest.mark.slow),
        pytest.param(EDMSDE(), 4, 1.5e-3, id="EDM 4", marks=pytest.mark.slow),
    ],
)
def test_gaussian_of_64_coordinates_against_its_exact_flow(sde: SDE, nfe: int, most: float) -> None:
    model = gauss64(sde)
    sampler = tune(model, nfe, trajectories=32, progress=False)
    solver = sampler.solver
    assert isinstance(solver, Tuned)
    assert solver.improved
    w = normal(64, 64, seed=99)  # noise that neither fit nor check has seen
    x = unit(w, sampler, sde)
    with Counted(model) as counted:
        got = sampler.run(model, x, noise=ReplayNoise([]))
    assert counted.rows == nfe * 64
    error = float((got - model.flow(x, sde.t_max, 0.0)).square().mean().sqrt())
    assert error < most
    assert solver.before is not None
    assert error < solver.before.rms / 5
    assert solver.held_out is not None
    assert solver.training is not None
    assert solver.held_out.rms == pytest.approx(error, rel=0.3)
    assert solver.held_out.rms < 1.5 * solver.training.rms


def test_a_mixture_gains_in_the_median_and_in_the_mean_square() -> None:
    """Two modes in three dimensions, as the kind of problem where plain least squares fails."""
    model = bent(VPSDE())
    solver = tune(model, 5, trajectories=256, progress=False).solver
    assert isinstance(solver, Tuned)
    assert solver.before is not None
    assert solver.held_out is not None
    assert solver.held_out.median < solver.before.median / 2
    assert solver.held_out.rms < solver.before.rms
    ends = [(math.inf, *solver.times, 0.0)[i] for i in range(len(solver.times) + 2)]
    assert ends == sorted(ends, reverse=True)


def test_sensitivities_are_derivatives() -> None:
    """The forward tangents against central differences of the whole table, on an exact model."""
    model = bent(VPSDE())
    made = Trajectories(model, (3,), {}, 0)
    data = made.data(0, 5)
    rows = as_table(Sampler(UniPC(2), Interior(3)), model, (3,)).rows
    wide = torch.zeros(4, 5, dtype=F64)
    for i, row in enumerate(rows):
        wide[i, : len(row)] = torch.tensor(row, dtype=F64)
    wide[:, 1] = 0.05
    table = Table(tuple(VPSDE().level(t).lam for t in (0.7, 0.3, 0.1)), wide)
    point = table.along(data)
    jacobian = _jacobian(table, point.known, data)

    def end(changed: Table) -> Tensor:
        at = changed.along(data)
        return torch.tensordot(changed.rows[-1], at.known, 1)

    places = [(i, m) for i in range(3) for m in range(i + 2)]
    h = 1e-5
    for p, (i, m) in enumerate([*places, (3, 0), (3, 4)]):
        index = p if p < len(places) else len(places) + 3 + m
        up, down = table.rows.clone(), table.rows.clone()
        up[i, m] += h
        down[i, m] -= h
        slope = (end(table._replace(rows=up)) - end(table._replace(rows=down))) / (2 * h)
        torch.testing.assert_close(jacobian[index], slope, rtol=0.02, atol=2e-3)
    for i in range(3):
        up_lams = [*table.lams]
        down_lams = [*table.lams]
        up_lams[i] += h
        down_lams[i] -= h
        slope = end(Table(tuple(up_lams), wide)) - end(Table(tuple(down_lams), wide))
        torch.testing.assert_close(jacobian[len(places) + i], slope / (2 * h), rtol=0.02, atol=5e-4)


def test_the_normal_equations_are_sums_over_all_trajectories(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """J'WJ and J'Wr of the last row, whose derivatives are what is known, also in small parts."""
    known, last, weight = normal(4, 20, 5), normal(20, 5, seed=1), normal(20, seed=2).square()
    rows = normal(3, 4, seed=3)
    data = Data(lambda w, lam, i: w, (0.0, 1.0), torch.arange(20), known[0], last, known[1, 0])
    point = Table((0.2, 0.4), rows).along(data)
    residual = torch.tensordot(rows[-1], point.known, 1) - last
    want = torch.einsum("mkd,k,kd->m", point.known, weight, residual)
    square = torch.einsum("mkd,k,nkd->mn", point.known, weight, point.known)
    for memory in (levenberg._MEMORY, 1):
        monkeypatch.setattr(levenberg, "_MEMORY", memory)
        a, g = _normal(point, data, weight)
        torch.testing.assert_close(g[-4:], want)
        torch.testing.assert_close(a[-4:, -4:], square)


def test_no_difference_is_taken_beyond_the_greatest_lam() -> None:
    seen: list[float] = []

    def out(w: Tensor, lam: float, rows: Tensor) -> Tensor:
        seen.append(lam)
        return w * (1 + lam)

    data = Data(out, (0.0, 1.0), torch.arange(6), normal(6, 2), normal(6, 2, seed=1), normal(2))
    rows = normal(3, 4, seed=2)
    rows[0, 2:], rows[1, 3:] = 0.0, 0.0  # what is not yet known
    table = Table((0.5, 1.0), rows)
    jacobian = _jacobian(table, table.along(data).known, data)
    assert max(seen) == 1.0
    w = torch.tensordot(table.rows[1], table.along(data).known, 1)
    torch.testing.assert_close(jacobian[5 + 1], table.rows[2, 3] * w)  # of the second time


def test_a_time_at_its_bound_is_held_and_the_rest_solved_without_it() -> None:
    n, total = 1, 2 + 1 + 3
    a = normal(total, total, seed=3)
    a = a @ a.mT + torch.eye(total, dtype=F64)
    g = normal(total, seed=4)
    inside = Table((0.5,), torch.zeros(2, 3, dtype=F64))
    step = _step(inside, a, g, 0.0, (0.0, 1.0))
    torch.testing.assert_close(a @ step, -g)
    edge = inside._replace(lams=(0.0 if float(step[2]) < 0 else 1.0,))
    held = _step(edge, a, g, 0.0, (0.0, 1.0))
    assert float(held[2]) == 0.0
    rest = torch.tensor([True, True, False, True, True, True])
    torch.testing.assert_close(a[rest][:, rest] @ held[rest], -g[rest])
    assert n == len(edge.lams)


def test_the_last_row_is_the_least_squares_solution_where_nothing_is_an_outlier() -> None:
    """Ends that are an exact combination of what is known: its coefficients come back."""
    known = normal(4, 20, 5)
    truth = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=F64)
    last = torch.tensordot(truth, known, 1)
    last[0] += 50.0  # one trajectory that went to another mode
    data = Data(lambda w, lam, rows: w, (0.0, 1.0), torch.arange(20), known[0], last, known[1, 0])
    point = Table((0.2, 0.4), torch.zeros(3, 4, dtype=F64)).along(data)._replace(known=known)
    row = point.solved(data).table.rows[-1]
    torch.testing.assert_close(row, truth, rtol=0, atol=0.05)
    plain = torch.linalg.lstsq(known.flatten(1).mT, last.reshape(-1, 1)).solution[:, 0]
    assert float((plain - truth).abs().max()) > 0.3


class Foreign(ScoreModel):
    """Another library's denoiser: a module without our attributes, wrapped by its user."""

    def __init__(self) -> None:
        super().__init__()
        self.sde = EDMSDE()
        with torch.random.fork_rng():
            self.inner = nn.Linear(3, 3, dtype=torch.float32)
        nn.init.zeros_(self.inner.bias)
        nn.init.eye_(self.inner.weight)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        x0 = self.inner(x / (1 + t.sigma**2)).tanh()
        return Prediction(self.sde, t, x, x0=x0)


def test_a_foreign_model_is_fitted_in_its_own_precision() -> None:
    sampler = tune(Foreign(), 3, event=(3,), trajectories=64, progress=False)
    assert isinstance(sampler.solver, Tuned)
    assert sampler.solver.basis == "v"
    x = sampler.sample(Foreign(), (5, 3), seed=1)
    assert x.dtype == torch.float32
    torch.testing.assert_close(sampler.sample(Foreign(), (5, 3), seed=1, chunk=2), x)


@pytest.fixture(scope="module")
def conditional() -> tuple[ScoreNetwork, Sampler]:
    model = network(classes=3)
    condition = {"label": torch.tensor([0, 2])}
    return model, tune(model, 3, event=(3,), condition=condition, trajectories=24, progress=False)


def test_fits_repeat_and_belong_to_their_model(
    conditional: tuple[ScoreNetwork, Sampler],
) -> None:
    model, sampler = conditional
    label = torch.tensor([2, 0, 2, 0])
    x = sampler.sample(model, (4, 3), seed=3, condition={"label": label})
    assert x.shape == (4, 3)
    again = tune(
        model, 3, event=(3,), condition={"label": torch.tensor([0, 2])}, trajectories=24,
        progress=False,
    )  # fmt: skip
    assert again == sampler
    assert hash(again.solver) == hash(sampler.solver)
    other = network(1, classes=3)
    with pytest.raises(ValueError, match="other weights, settings or guidance"):
        sampler.sample(other, (4, 3), condition={"label": label})
    with pytest.raises(ValueError, match="label"):
        sampler.sample(model, (4, 3), condition={"label": torch.tensor([0, 1, 2, 0])})
    with pytest.raises(ValueError, match="conditions"):
        sampler.sample(model, (4, 3))
    with pytest.raises(ValueError, match="guidance"):
        sampler.sample(ClassifierFree(model, 2.0), (4, 3), condition={"label": label})
    moved = ScoreNetwork(model.net, VPSDE(0.2, 20.0), V())
    with pytest.raises(ValueError, match="fitted on"):
        sampler.sample(moved, (4, 3), condition={"label": label})
    with pytest.raises(ValueError, match="events"):
        sampler.sample(model, (4, 2), condition={"label": label})
    with pytest.raises(ValueError, match="own times"):
        Sampler(sampler.solver, UniformLam(4)).sample(model, (4, 3), condition={"label": label})


def test_weights_that_are_written_to_are_another_network() -> None:
    model = network()
    sampler = as_table(Sampler(DDIM(), Interior(3)), model, (3,)).sampler()
    sampler.sample(model, (2, 3))
    with torch.no_grad():
        model.net.outlet.bias.add_(0.1)  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match="other weights"):
        sampler.sample(model, (2, 3))


def test_counting_evaluations_makes_no_other_network_of_it() -> None:
    model = network()
    sampler = as_table(Sampler(DDIM(), Interior(3)), model, (3,)).sampler()
    same = copy.deepcopy(model)
    with Counted(same) as counted:
        sampler.sample(same, (2, 3))
    assert counted.rows == 6


def test_guidance_is_fitted_as_it_is() -> None:
    """A guided model is a model of its own, and two scales are two models."""
    guided = ClassifierFree(network(classes=3), 2.0)
    sampler = tune(guided, 3, event=(3,), condition={"label": 1}, trajectories=24, progress=False)
    x = sampler.sample(guided, (4, 3), condition={"label": 1})
    assert bool(x.isfinite().all())
    with pytest.raises(ValueError, match="guidance"):
        sampler.sample(ClassifierFree(guided.model, 3.0), (4, 3), condition={"label": 1})


def test_a_file_brings_back_every_bit_and_refuses_others(
    conditional: tuple[ScoreNetwork, Sampler], tmp_path: Path
) -> None:
    model, sampler = conditional
    path = save_sampler(sampler, tmp_path / "folder" / "three.json", model)
    assert load_sampler(path, model) == sampler
    with pytest.raises(CheckpointError, match="other weights"):
        load_sampler(path, network(1, classes=3))
    with pytest.raises(CheckpointError, match="fitted on"):
        load_sampler(path, ScoreNetwork(model.net, EDMSDE(), V()))
    content = json.loads(path.read_text())
    assert content["card"]["condition"] == {"label": [0, 2]}
    content["table"]["rows"][0][0] += 1e-9
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_sampler(path, model)
    for text in ("{", "[]", '{"kind": "another program"}', "\x00"):
        path.write_text(text)
        with pytest.raises(CheckpointError):
            load_sampler(path, model)
    content["format"] = 9
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="format 9"):
        load_sampler(path, model)
    with pytest.raises(TypeError, match="tune"):
        save_sampler(Sampler(DDIM(), UniformTime(3)), path)
    with pytest.raises(ValueError, match="not the network"):
        save_sampler(sampler, path, network(1, classes=3))


def test_it_prints_its_numbers(conditional: tuple[ScoreNetwork, Sampler]) -> None:
    solver = conditional[1].solver
    text = str(solver)
    assert isinstance(solver, Tuned)
    assert "held out: RMS" in text
    assert f"{solver.rows[1][2]:.4f}" in text
    assert "mean" not in repr(solver)  # as long as a sample


def test_bad_arguments_are_refused_before_work_starts() -> None:
    model = network()
    for bad, error in ((1, ValueError), (21, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="nfe"):
            tune(model, bad, event=(3,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="event"):
        tune(model, 3)
    with pytest.raises(ValueError, match="trajectories"):
        tune(model, 3, event=(3,), trajectories=3)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"event": (3.5,)}, r"event\[0\] must be an integer"),
        ({"event": 3}, "event must be a sequence of integers"),
        ({"condition": 1}, "condition must map names to values"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"progress": "no"}, "progress must be True or False"),
    ]
    for options, message in wrong:
        with pytest.raises((TypeError, ValueError), match=message):
            tune(model, 3, **{"event": (3,), **options})
    with pytest.raises(TypeError, match="model must be a score model, got the network MLP"):
        tune(model.net, 3, event=(3,))
    with pytest.raises(TypeError):
        tune(model, 3, event=(3,), condition={"label": 1}, trajectories=24, progress=False)
    good = as_table(Sampler(DDIM(), Interior(2)), model, (3,))
    with pytest.raises(ValueError, match="rows"):
        Tuned(good.times, good.rows[:-1], "v", (3,), good.mean, good.process, good.network)
    with pytest.raises(ValueError, match="finite"):
        Tuned((math.nan, 0.1), good.rows, "v", (3,), good.mean, good.process, good.network)
    with pytest.raises(ValueError, match="mean"):
        Tuned(good.times, good.rows, "v", (4,), good.mean, good.process, good.network)


def test_basis_is_the_networks_own_form() -> None:
    sampler = Sampler(DDIM(), Interior(2))
    net = network().net
    assert as_table(sampler, ScoreNetwork(net, VPSDE(), Eps()), (3,)).basis == "eps"
    assert as_table(sampler, network(), (3,)).basis == "v"


def test_fit_is_of_root_mean_squares() -> None:
    fit = Fit.of(torch.tensor([1.0, 4.0, 9.0, 16.0, 100.0]))
    assert fit.rms == pytest.approx(math.sqrt(26.0))
    assert fit.median == pytest.approx(3.0)
    assert fit.most == pytest.approx(4 + 0.6 * 6)


@pytest.mark.slow
def test_the_bundled_network_at_five_evaluations() -> None:
    """The prototype's held-out RMS and median: 0.049 and 0.036 by hand, 0.031 and 0.0098 fitted."""
    model = digits_model()
    sampler = tune(
        model, 5, event=(1, 8, 8), condition={"label": torch.arange(10)}, trajectories=64,
        progress=False,
    )  # fmt: skip
    solver = sampler.solver
    assert isinstance(solver, Tuned)
    assert solver.before is not None
    assert solver.held_out is not None
    assert solver.improved
    assert solver.held_out.median < solver.before.median / 1.7
    assert solver.held_out.median < 0.016
    assert solver.held_out.rms < 0.05
