"""The rule that chooses a sampler: it spends what it says, and multiplies no error."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from cases import F64, benchmark, normal
from torch import Tensor

from scoregen import (
    EDMSDE,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    X0,
    CosineVPSDE,
    DiscreteVPSDE,
    Eps,
    Gaussian,
    GaussianMixture,
    Level,
    RectifiedSDE,
    Sampler,
    ScoreModel,
    ScoreNetwork,
    StaticSDE,
    UniformLam,
    UniPC,
    V,
    digits_model,
    load,
)
from scoregen.analysis import amplification, exact_flow
from scoregen.models import Counted, Prediction
from scoregen.noise import ReplayNoise, SampleNoise
from scoregen.solvers import AngularAB, EulerStart
from scoregen.tuning import Interior, SinhSpacing, VPTimeSpacing, load_sampler, recommended

GATE = Path(__file__).resolve().parents[1] / "benchmarks" / "samplers" / "data"
BUDGETS = (1, 2, 5, 6, 12, 13, 14, 31)
PROCESSES: dict[str, SDE] = {
    "VP": VPSDE(),
    "EDM": EDMSDE(),
    "VE": VESDE(),
    "cosine": CosineVPSDE(),
    "flow": RectifiedSDE(1e-3, 0.999),
    "chain": DiscreteVPSDE.linear(1000),
    "cosine chain": DiscreteVPSDE.cosine(50),
}
each_process = pytest.mark.parametrize("name", PROCESSES)


def network(sde: SDE) -> ScoreNetwork:
    with torch.random.fork_rng():
        return ScoreNetwork(MLP((2,), hidden=8, depth=1), sde, V())


@each_process
def test_no_evaluations_error_is_enlarged_from_ten_on(name: str) -> None:
    """Data of standard deviation 1/2; the sampler recommended before had 7.8 and 271."""
    sde = PROCESSES[name]
    for nfe in (10, 12, 13, 14, 50):
        sampler = recommended(network(sde), nfe)
        assert amplification(sampler, sde, (0.01, 0.25), "eps").largest <= 1
        assert amplification(sampler, sde, (0.01, 0.25), "v").largest <= 1
    for nfe in (4, 6, 8):
        assert amplification(recommended(network(sde), nfe), sde, (0.01, 0.25)).largest < 5


@each_process
def test_it_spends_what_it_is_given(name: str) -> None:
    model = Gaussian(PROCESSES[name], torch.zeros(2, dtype=F64), 0.25)
    for nfe in BUDGETS:
        for asked in (model, network(PROCESSES[name])):
            sampler = recommended(asked, nfe)
            with Counted(model) as counted:
                x = sampler.sample(model, (2, 2), dtype=F64)
            assert counted.rows == 2 * nfe
            assert sampler.levels(model.sde)[-1].sigma == 0
            assert bool(x.isfinite().all())


def test_a_flow_from_pure_noise() -> None:
    sde = RectifiedSDE()
    model = Gaussian(sde, torch.zeros(2, dtype=F64), 0.25)
    for nfe in (3, 8, 14, 20, 40):
        for asked in (model, network(sde)):
            with Counted(model) as counted:
                x = recommended(asked, nfe).sample(model, (64, 2), dtype=F64)
            assert counted.rows == 64 * nfe
            assert float(x.square().mean()) < 0.5


class Wrong(ScoreModel):
    """An exact score plus an error in eps of fixed size, smooth in x and t."""

    def __init__(self, exact: ScoreModel, size: float) -> None:
        super().__init__()
        self.exact, self.sde, self.size = exact, exact.sde, size

    def predict(self, x: Tensor, t: Level, **condition: object) -> Prediction:
        p = self.exact.predict(x, t)
        w = x / math.hypot(t.alpha, t.sigma)
        error = torch.sin(2 * w.roll(1, 1) + 3 * t.lam) * math.sqrt(2)
        return Prediction(self.sde, t, x, eps=p.eps + self.size * error)


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE()], ids=["VP", "EDM"])
def test_an_error_in_eps_stays_of_its_size(sde: SDE) -> None:
    """The error model that shows the explosion without a trained network."""
    means = torch.tensor([[0.5, 0.0, 0.2], [-0.6, 0.3, -0.4]], dtype=F64)
    exact = GaussianMixture(sde, torch.ones(2, dtype=F64), means, torch.full((2,), 0.04))
    model = Wrong(exact, 1e-2)
    z = normal(64, 3, seed=5)
    start = sde.level(sde.t_max)
    truth = exact_flow(model, math.hypot(start.alpha, start.sigma) * z, sde.t_max, sde.t_min)

    def error(sampler: Sampler) -> float:
        first = sampler.levels(sde)[0]
        x = math.hypot(first.alpha, first.sigma) * z
        return float((sampler.run(model, x, noise=ReplayNoise([])) - truth).square().mean().sqrt())

    for nfe in (10, 20):
        assert error(recommended(model, nfe)) < 0.05
    # the recommended sampler of 0.1, whose weights are bounded since: it came out above 1
    angular = EulerStart(AngularAB(4, smooth_end=True))
    assert error(Sampler(angular, UniformLam(10))) < 0.1


def test_exactness_is_declared_and_not_guessed() -> None:
    exact = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    assert recommended(exact, 20) != recommended(Wrong(exact, 0.0), 20)
    for wrong in (Wrong(exact, 0.0), ScoreNetwork(network(VPSDE()).net, VPSDE(), Eps())):
        assert recommended(wrong, 20) == Sampler(UniPC(2), UniformLam(20))
    assert recommended(network(VPSDE()), 20).solver == EulerStart(UniPC(3))
    assert recommended(network(VPSDE()).given(), 20).solver == EulerStart(UniPC(3))
    grid = Interior(50, None, 0.015, SinhSpacing(0.4, 0.85))
    assert recommended(exact, 50) == Sampler(
        EulerStart(AngularAB(4, smooth_end=True, bounded=False)), grid
    )
    net = network(VPSDE()).net
    with pytest.raises(ValueError, match="StaticSDE"):
        recommended(ScoreNetwork(net, StaticSDE(), Eps()), 5)
    with pytest.raises(TypeError, match="model must be a score model, got the network MLP"):
        recommended(net, 5)  # type: ignore[arg-type]
    for bad, error in ((0, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="nfe"):
            recommended(exact, bad)  # type: ignore[arg-type]


def gate(name: str) -> tuple[ScoreModel, float]:
    if name == "v":
        return digits_model().given(label=torch.arange(16) % 10), 0.1
    return load(GATE / f"digits_{name}"), 0.1


@pytest.mark.parametrize(
    ("name", "five", "ten"),
    [("x0", 0.2, 0.06), pytest.param("eps", 0.12, 0.07, marks=pytest.mark.slow)],
)
@torch.no_grad()
def test_on_trained_networks_it_stays_near_their_flow(name: str, five: float, ten: float) -> None:
    """Data of standard deviation 0.75; the sampler recommended before gave 2.2, 1.4 and 12."""
    model, _ = gate(name)
    sde, z = model.sde, SampleNoise(7)(torch.empty(16, 1, 8, 8), VPSDE().level(1.0), None)  # type: ignore[arg-type]

    def end(sampler: Sampler) -> Tensor:
        first = sampler.levels(sde)[0]
        x = math.hypot(first.alpha, first.sigma) * z
        return sampler.run(model, x, noise=ReplayNoise([]))

    truth = end(recommended(model, 100))
    for nfe, most in ((5, five), (10, ten), (20, 0.03)):
        error = float((end(recommended(model, nfe)) - truth).square().mean().sqrt())
        assert error < most
    assert {"eps": Eps, "x0": X0}[name] is type(model.parameterization)


def test_interior_by_its_formula() -> None:
    sde = EDMSDE()
    ends = [math.asinh(math.log(r / 0.6) / 1.2) for r in (20.0, 0.05)]
    for grid, inner in (
        (
            Interior(6, 20.0, 0.05, SinhSpacing(0.6, 1.2)),
            0.6 * torch.exp(1.2 * torch.linspace(*ends, 6, dtype=F64).sinh()),
        ),
        (
            Interior(6, 20.0, 0.05, VPTimeSpacing(2.0)),
            None,
        ),
    ):
        times = grid(sde)
        assert len(times) == 7
        assert float(times[-1]) == 0
        assert float(times[0]) == pytest.approx(20.0)
        assert float(times[-2]) == pytest.approx(0.05)
        if inner is None:  # square roots of VP's time are equally far apart
            roots = VPSDE().time(-times[:-1].log()).sqrt()
            torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(5))
        else:
            torch.testing.assert_close(times[:-1], inner)
    assert Interior(3, None, None)(sde)[[0, -2]].tolist() == [80.0, 0.002]
    assert Interior(1)(sde).tolist() == [pytest.approx(20.0), 0.0]
    assert Interior(4, 1e9, 1e-9)(sde)[[0, -2]].tolist() == [80.0, 0.002]
    assert float(Interior(4, None, 0.05)(RectifiedSDE())[0]) == 1.0


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Interior(0),
        lambda: Interior(3, high=-1.0),
        lambda: Interior(3, high=1.0, low=2.0),
        lambda: SinhSpacing(0.0),
        lambda: VPTimeSpacing(0.0),
        lambda: Interior(3, low=None)(RectifiedSDE()),
        lambda: Interior(3, high=0.01, low=0.009)(EDMSDE(t_min=0.1)),
    ],
)
def test_grids_that_cannot_be_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"steps|high|low|centre|rho|Interior"):
        bad()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["gauss2", "gauss64"])
def test_the_accuracy_page_has_its_errors_for_exact_scores(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of a solver once made them eight times larger than the page said."""
    monkeypatch.syspath_prepend(GATE.parent)
    accuracy = benchmark("samplers/accuracy")
    problem = accuracy.Problem(name, "VP", 64 if name == "gauss2" else 32)
    _, _, part = accuracy.PAGE.read_text().partition(f"{name}, VP\n")
    rows = re.findall(r"^\| (\d+) \| (\S+) \|", part.partition("\n#")[0], flags=re.M)
    shown = {int(nfe): float(error) for nfe, error in rows}
    for found in accuracy.recommended(problem, (5, 10, 20, 50)):
        assert found.error == pytest.approx(shown[found.nfe], rel=0.06)


def test_the_fitted_sampler_of_the_demo_is_of_the_bundled_network() -> None:
    """A changed network or setting would stop the demo: fit it again, as demo.py says."""
    sampler = load_sampler(GATE / "digits_v_5.json", digits_model())
    label = torch.arange(4)
    x = sampler.sample(digits_model(), (4, 1, 8, 8), condition={"label": label})
    assert bool(x.isfinite().all())
