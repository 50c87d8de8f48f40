"""Callables, torch.distributions and torchebm, to and fro, with the sign checked."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, distributions, nn

from scoregen.densities import Gaussian, GaussianMixture
from scoregen.energies import Potential, energy_of
from scoregen.grids import Constant
from scoregen.interop import from_distribution, from_torchebm, to_torchebm
from scoregen.mcmc import MALA
from scoregen.models import Prediction, ScoreModel
from scoregen.noise import SampleNoise
from scoregen.processes import VPSDE, Level, StaticSDE
from scoregen.sampling import Sampler

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


DISTRIBUTIONS = [
    distributions.MultivariateNormal(torch.ones(2).double(), 2 * torch.eye(2).double()),
    distributions.Independent(distributions.StudentT(5.0, torch.zeros(2).double()), 1),
    distributions.MixtureSameFamily(
        distributions.Categorical(torch.tensor([0.3, 0.7])),
        distributions.Independent(distributions.Normal(normal(2, 2), torch.ones(2, 2)), 1),
    ),
    distributions.Independent(distributions.Laplace(torch.zeros(2).double(), 1.0), 1),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda d: type(d).__name__)
def test_distributions(distribution: Any) -> None:
    model = from_distribution(distribution)
    x = normal(9, 2)
    torch.testing.assert_close(energy_of(model, x), -distribution.log_prob(x))
    h = 1e-6
    step = torch.tensor([h, 0.0], dtype=F64)
    slope = (distribution.log_prob(x + step) - distribution.log_prob(x - step)) / (2 * h)
    torch.testing.assert_close(model.score(x, 0.0).detach()[:, 0], slope, rtol=1e-6, atol=1e-6)


def test_distribution_of_scalars() -> None:
    model = from_distribution(distributions.Normal(1.0, 2.0))
    torch.testing.assert_close(model.score(torch.ones(3) * 3, 0.0).detach(), torch.full((3,), -0.5))


def test_unfit_distributions_are_refused() -> None:
    with pytest.raises(ValueError, match="Independent"):
        from_distribution(distributions.Normal(torch.zeros(2), 1.0))
    for edged in (distributions.Gamma(2.0, 1.0), distributions.Uniform(0.0, 1.0)):
        with pytest.raises(ValueError, match="whole space"):
            from_distribution(edged)
    with pytest.raises(ValueError, match="whole space"):
        from_distribution(distributions.Poisson(1.0))
    with pytest.raises(TypeError, match="Potential"):
        from_distribution(lambda x: x)  # type: ignore[arg-type]


class Quadratic(nn.Module):
    """torchebm's interface: forward is the energy, gradient is +grad E, detached."""

    def __init__(self, sign: float = 1.0, gradient_sign: float = 1.0) -> None:
        super().__init__()
        self.sign, self.gradient_sign = sign, gradient_sign

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * x.square().flatten(1).sum(1) / 2

    def gradient(self, x: Tensor, model_kwargs: dict[str, Any] | None = None) -> Tensor:
        return (self.sign * self.gradient_sign * x).detach()


def test_from_torchebm() -> None:
    x = normal(5, 2)
    model = from_torchebm(Quadratic(), x, samples=normal(300, 2))
    torch.testing.assert_close(model.score(x, 0.0).detach(), -x)
    with torch.no_grad():
        out = Sampler(MALA(1.0), Constant(0.0, 30)).sample(model, (500, 2), seed=0)
    assert float(out.var()) == pytest.approx(1.0, abs=0.2)
    with pytest.raises(ValueError, match="forward"):
        from_torchebm(Quadratic(gradient_sign=-1.0), x)
    with pytest.raises(ValueError, match="upside down"):
        from_torchebm(Quadratic(sign=-1.0), x, samples=normal(300, 2))
    with pytest.raises(ValueError, match="one number per sample"):
        from_torchebm(nn.Identity(), x)


class _BaseModel(nn.Module):
    """Stands in for torchebm.core.BaseModel where torchebm is not installed."""

    def __init__(self, dtype: torch.dtype = torch.float32, device: Any = None) -> None:
        super().__init__()
        self.options = (dtype, device)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    package, core = types.ModuleType("torchebm"), types.ModuleType("torchebm.core")
    core.BaseModel = _BaseModel  # type: ignore[attr-defined]
    package.core = core  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchebm", package)
    monkeypatch.setitem(sys.modules, "torchebm.core", core)


def mixture() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    return GaussianMixture(VPSDE(), torch.tensor([0.4, 0.6]), means, torch.tensor([0.3, 0.5]))


class ScoreOnly(ScoreModel):
    def __init__(self, model: ScoreModel, sign: float = 1.0) -> None:
        super().__init__()
        self.model, self.sde, self.sign = model, model.sde, sign

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        return Prediction(self.sde, t, x, score=self.sign * self.model.predict(x, t).score)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.usefixtures("stand_in")
def test_to_torchebm(hidden: bool) -> None:
    exact = mixture()
    model: ScoreModel = ScoreOnly(exact) if hidden else exact
    x = normal(6, 2)
    out: Any = to_torchebm(model, x, 0.3, dtype=F64, nodes=40)
    assert out.options[0] == F64
    origin = exact.log_prob(torch.zeros(1, 2, dtype=F64), 0.3)
    torch.testing.assert_close(out(x), origin - exact.log_prob(x, 0.3), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.gradient(x), -exact.score(x, 0.3))
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(out(leaf).sum(), leaf)
    torch.testing.assert_close(slope, out.gradient(x), rtol=1e-5, atol=1e-5)
    back = from_torchebm(out, x, samples=exact.sample(500, 0.3, generator=1))
    torch.testing.assert_close(
        back.score(x, 0.0).detach(), exact.score(x, 0.3), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(TypeError, match="given"):
        out.gradient(x, {"label": 1})


@pytest.mark.usefixtures("stand_in")
def test_to_torchebm_refuses_what_is_no_energy() -> None:
    class Rotation(ScoreModel):
        sde = StaticSDE()

        def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
            return Prediction(
                self.sde, t, x, score=x.flip(1) * torch.tensor([1.0, -1.0]).to(x) - x.pow(3) / 9
            )

    class Inverted(Gaussian):
        def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
            return Prediction(self.sde, t, x, score=-super().predict(x, t).score)

    x = normal(6, 2)
    with pytest.raises(ValueError, match="energy"):
        to_torchebm(Rotation(), x)
    with pytest.raises(ValueError, match="wrong sign"):
        to_torchebm(Inverted(VPSDE(), torch.zeros(2), 1.0), x, 0.3)
    with pytest.raises(ValueError, match="no noise"):
        to_torchebm(mixture(), x, 0.0)


def test_to_torchebm_without_torchebm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchebm.core", None)
    with pytest.raises(ImportError, match="pip install torchebm"):
        to_torchebm(mixture(), normal(3, 2), 0.3)


@pytest.mark.peers
def test_the_real_torchebm() -> None:
    """Its Gaussian becomes ours, ours becomes its own, and its samplers run on it."""
    core = pytest.importorskip("torchebm.core")
    samplers = pytest.importorskip("torchebm.samplers")
    mean, covariance = torch.tensor([0.5, -0.3]), torch.tensor([[1.0, 0.4], [0.4, 0.6]])
    theirs = core.GaussianModel(mean, covariance)
    x = normal(8, 2).float()
    exact = Gaussian(StaticSDE(), mean, covariance)
    mine = from_torchebm(theirs, x, samples=exact.sample(500).float())
    torch.testing.assert_close(mine.score(x, 0.0).detach(), exact.score(x, 0.0))
    model = Gaussian(VPSDE(), mean, covariance)
    exported = to_torchebm(model, x, 0.2)
    assert isinstance(exported, core.BaseModel)
    torch.testing.assert_close(exported.gradient(x), -model.score(x, 0.2))
    g = torch.Generator().manual_seed(0)
    for sampler in (
        samplers.LangevinDynamics(exported, step_size=0.02),
        samplers.HamiltonianMonteCarlo(exported, step_size=0.5, n_leapfrog_steps=4),
    ):
        out = sampler.sample(x=model.sample(4000, 0.2).float(), n_steps=50, generator=g)
        level = model.sde.level(0.2)
        torch.testing.assert_close(out.mean(0), (level.alpha * mean), rtol=0, atol=0.08)
        torch.testing.assert_close(
            torch.cov(out.mT),
            level.alpha**2 * covariance + level.sigma**2 * torch.eye(2),
            rtol=0,
            atol=0.1,
        )


def test_any_callable_samples() -> None:
    """A ring of radius 2: E = (|x| - 2)^2 / 0.1, exact mean square radius by quadrature."""
    ring = Potential(lambda x: (x.norm(dim=1) - 2).square() / 0.1)
    start = torch.nn.functional.normalize(normal(4000, 2)) * 2
    with torch.no_grad():
        out = Sampler(MALA(0.06), Constant(0.0, 60)).run(ring, start, noise=SampleNoise(0))
    r = torch.linspace(0, 5, 5001, dtype=F64)
    density = r * (-(r - 2).square() / 0.1).exp()
    square = (density * r.square()).sum() / density.sum()
    fourth = (density * r.pow(4)).sum() / density.sum()
    error = math.sqrt(float(fourth - square**2) / 4000)
    found = float(out.square().sum(1).mean())
    assert found == pytest.approx(float(square), abs=5 * error)
