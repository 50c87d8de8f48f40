"""Objectives for energies: exact values, zero-mean gradients at the truth, recovered parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from scoregen.densities import Gaussian
from scoregen.energies import EnergyNetwork, Potential, Product
from scoregen.grids import Constant
from scoregen.mcmc import HMC, MALA
from scoregen.objectives import (
    ContrastiveDivergence,
    ImplicitScoreMatching,
    NoiseContrastive,
    PersistentContrastiveDivergence,
    ReplayBuffer,
    SlicedScoreMatching,
)
from scoregen.processes import EDMSDE, VPSDE, StaticSDE
from scoregen.sampling import Sampler

F64 = torch.float64
STATIC = StaticSDE()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=F64)


S = torch.tensor([[1.0, 0.4], [0.4, 0.6]], dtype=F64)
M = torch.tensor([0.5, -0.3], dtype=F64)


def cubature(mean: Tensor, covariance: Tensor) -> Tensor:
    """Points that integrate polynomials of degree 3 against N(mean, covariance), equal weights."""
    d = len(mean)
    unit = math.sqrt(d) * torch.cat([torch.eye(d, dtype=F64), -torch.eye(d, dtype=F64)])
    return mean + unit @ torch.linalg.cholesky(covariance).mT


class Quadratic(nn.Module):
    """E = (x - m)^T P (x - m) / 2 + c."""

    def __init__(self, mean: Tensor, precision: Tensor, constant: float = 0.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean.clone())
        self.precision = nn.Parameter(precision.clone())
        self.constant = nn.Parameter(torch.tensor(constant, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        u = x - self.mean
        p = (self.precision + self.precision.mT) / 2
        return ((u @ p) * u).sum(1) / 2 + self.constant


class TwoHumps(nn.Module):
    """E = -log(sum_k w_k N(x; m_k, v)) + c in one dimension, with free means, weight and width."""

    def __init__(self, means: tuple[float, float], log_v: float, logit: float) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor(means, dtype=F64))
        self.log_v = nn.Parameter(torch.tensor(log_v, dtype=F64))
        self.logit = nn.Parameter(torch.tensor(logit, dtype=F64))
        self.constant = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        log_w = torch.stack([self.logit, -self.logit]) / 2
        log_w = log_w - log_w.logsumexp(0)
        terms = log_w - (x - self.means).square() / (2 * self.log_v.exp()) - self.log_v / 2
        return self.constant - terms.logsumexp(1) + math.log(2 * math.pi) / 2


TRUTH = {"means": (-1.1, 0.9), "log_v": math.log(0.35), "logit": 0.6}


def two_humps_data(n: int, seed: int = 0) -> Tensor:
    share = 1 / (1 + math.exp(-TRUTH["logit"]))
    first = torch.rand(n, 1, generator=generator(seed), dtype=F64) < share
    means = torch.where(first, TRUTH["means"][0], TRUTH["means"][1])
    return means + math.sqrt(0.35) * normal(n, 1, seed=seed + 1)


# Values


@pytest.mark.parametrize("exact", [True, False])
def test_hyvarinen_on_gaussians(exact: bool) -> None:
    """E = Fisher / 2 - tr S^-1 / 2, also for a wrong model; by cubature."""
    precision = torch.linalg.inv(S)
    mean = M
    if not exact:
        precision, mean = precision + torch.tensor([[0.5, 0.1], [0.1, -0.2]]), M + 0.4
    model = Potential(Quadratic(mean, precision))
    loss = ImplicitScoreMatching()(model, cubature(M, S), generator=generator()).mean()
    gap = precision - torch.linalg.inv(S)
    fisher = (gap @ S @ gap).trace() + (precision @ (M - mean)).square().sum()
    wanted = fisher / 2 - torch.linalg.inv(S).trace() / 2
    torch.testing.assert_close(loss.detach(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_sliced_is_implicit_on_average() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    model = Potential(net.double())
    x = normal(6, 3)
    exact = ImplicitScoreMatching()(model, x, generator=generator()).detach()
    for reduced in (True, False):
        objective = SlicedScoreMatching(probes=3000, variance_reduced=reduced)
        found = objective(model, x, generator=generator()).detach()
        torch.testing.assert_close(found, exact, rtol=0, atol=0.03)
    # in one dimension a random sign is all there is, and the estimate is exact
    one = Potential(TwoHumps(**TRUTH))
    y = normal(6, 1)
    torch.testing.assert_close(
        SlicedScoreMatching()(one, y, generator=generator()).detach(),
        ImplicitScoreMatching()(one, y, generator=generator()).detach(),
    )


def test_variance_of_the_probes() -> None:
    """Var v^T J v = 2 sum of squares off the diagonal of the symmetric part, for random signs."""
    p = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=F64)
    model = Potential(Quadratic(torch.zeros(2, dtype=F64), p))
    x = torch.ones(20_000, 2, dtype=F64)
    reduced = SlicedScoreMatching()(model, x, generator=generator()).detach()
    assert float(reduced.var()) == pytest.approx(4 * 0.7**2, rel=0.05)
    plain = SlicedScoreMatching(variance_reduced=False)(model, x, generator=generator())
    assert float(plain.detach().var()) > float(reduced.var())


def test_marginal_of_a_process_is_matched() -> None:
    """At t > 0 the data are noised: the implicit loss of an analytic model, against its law."""
    sde = VPSDE()
    level = sde.level(0.4)
    v = level.alpha**2 * 0.5 + level.sigma**2
    model = Gaussian(sde, torch.zeros(1, dtype=F64), 0.5)
    x0 = math.sqrt(0.5) * normal(40_000, 1, seed=1)
    loss = ImplicitScoreMatching(t=0.4)(model, x0, generator=generator()).detach()
    # |score|^2 / 2 - 1 / v has mean -1 / 2v and variance 1 / 2 v^2
    error = math.sqrt(0.5) / v / 200
    assert float(loss.mean()) == pytest.approx(-1 / (2 * v), abs=5 * error)
    with pytest.raises(ValueError, match="time t > 0"):
        ImplicitScoreMatching()(model, x0, generator=generator())


# Zero-mean gradients at the exact model


def test_gradients_vanish_at_the_truth_by_cubature() -> None:
    model = Potential(Quadratic(M, torch.linalg.inv(S)))
    for objective in (ImplicitScoreMatching(), SlicedScoreMatching()):
        rows = cubature(M, S)
        if isinstance(objective, SlicedScoreMatching):
            # all four signs: the average over v, as the loss draws it, has no cubature of its own
            losses = [objective(model, rows, generator=generator(k)).mean() for k in range(400)]
            loss = torch.stack(losses).mean()
            bound = 0.2
        else:
            loss, bound = objective(model, rows, generator=generator()).mean(), 1e-12
        gradients = torch.autograd.grad(loss, [model.potential.mean, model.potential.precision])  # type: ignore[attr-defined]
        assert max(float(g.abs().max()) for g in gradients) < bound


def per_sample_gradients(objective: Any, x: Tensor, seed: int) -> Tensor:
    """Gradient in (mean, log variance) of each sample's own copy: shape (n, 2)."""
    copies = torch.zeros(len(x), 2, dtype=F64, requires_grad=True)

    def energy(u: Tensor) -> Tensor:
        v = copies[:, 1].exp()
        return (u[:, 0] - copies[:, 0]).square() / (2 * v) + v.log() / 2 + math.log(2 * math.pi) / 2

    objective(Potential(energy), x, generator=generator(seed)).sum().backward()
    assert copies.grad is not None
    return copies.grad


def contrastive(moves: int = 3) -> ContrastiveDivergence:
    return ContrastiveDivergence(Sampler(MALA(0.7), Constant(0.0, moves)))


def persistent(n: int, seed: int = 5) -> PersistentContrastiveDivergence:
    buffer = ReplayBuffer(normal(n, 1, seed=seed), restart=0.0)
    sampler = Sampler(HMC(0.8, leapfrog_steps=2), Constant(0.0, 2))
    return PersistentContrastiveDivergence(sampler, buffer)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: ImplicitScoreMatching(),
        lambda n: SlicedScoreMatching(variance_reduced=False),
        lambda n: contrastive(),
        persistent,
        lambda n: NoiseContrastive(Gaussian(STATIC, torch.full((1,), 0.3), 2.0), draws=2),
    ],
    ids=["implicit", "sliced", "contrastive", "persistent", "noise contrastive"],
)
def test_gradient_has_mean_zero_at_the_truth(make: Callable[[int], Any]) -> None:
    """z-test on 20,000 per-sample gradients of N(0, 1), false alarm 1e-6; and it has power."""
    n = 20_000
    for shift, fails in ((0.0, False), (0.3, True)):
        gradients = per_sample_gradients(make(n), normal(n, 1, seed=3) + shift, 7)
        z = gradients.mean(0) / (gradients.std(0) / math.sqrt(n))
        p = 2 * stats.norm.sf(z.abs().numpy())
        assert (p.min() < 1e-6) == fails


# Recovery


def fit(model: Any, objective: Any, data: Tensor, steps: int, lr: float, batch: int) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    g = generator(1)
    for _ in range(steps):
        rows = torch.randint(len(data), (batch,), generator=g)
        optimiser.zero_grad()
        objective(model, data[rows], generator=g).mean().backward()
        optimiser.step()
        schedule.step()


def test_implicit_recovers_the_sample_moments_exactly() -> None:
    data = M + normal(500, 2) @ torch.linalg.cholesky(S).mT
    net = Quadratic(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    model = Potential(net)
    optimiser = torch.optim.LBFGS(net.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = ImplicitScoreMatching()(model, data, generator=generator()).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(net.mean.detach(), data.mean(0), rtol=0, atol=1e-4)
    wanted = torch.linalg.inv(torch.cov(data.mT, correction=0))
    found = (net.precision + net.precision.mT).detach() / 2
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


OBJECTIVES: dict[str, Callable[[], Any]] = {
    "implicit": ImplicitScoreMatching,
    "sliced": SlicedScoreMatching,
    "contrastive": lambda: ContrastiveDivergence(Sampler(MALA(0.3), Constant(0.0, 5))),
    "persistent": lambda: PersistentContrastiveDivergence(
        Sampler(MALA(0.3), Constant(0.0, 5)), ReplayBuffer(1.5 * normal(2000, 1, seed=9))
    ),
    "noise contrastive": lambda: NoiseContrastive(Gaussian(STATIC, torch.zeros(1), 1.5), draws=4),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_recovers_a_gaussian(name: str) -> None:
    """N(0.5, 0.6) within 0.1 in the mean and 15 % in the variance; the start is far off."""
    data = 0.5 + math.sqrt(0.6) * normal(4000, 1)
    net = Quadratic(torch.full((1,), -0.5, dtype=F64), torch.eye(1, dtype=F64), 1.0)
    fit(Potential(net), OBJECTIVES[name](), data, steps=250, lr=0.05, batch=256)
    assert float(net.mean.detach()) == pytest.approx(0.5, abs=0.1)
    assert 1 / float(net.precision.detach()) == pytest.approx(0.6, rel=0.15)
    if name == "noise contrastive":  # the constant becomes log Z
        assert float(net.constant.detach()) == pytest.approx(
            math.log(2 * math.pi * 0.6) / 2, abs=0.1
        )


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.slow
def test_each_recovers_a_mixture(name: str) -> None:
    """Means within 0.15, log variance within 0.25, log odds within 0.5."""
    data = two_humps_data(6000)
    net = TwoHumps((-0.6, 0.6), 0.0, 0.0)
    fit(Potential(net), OBJECTIVES[name](), data, steps=300, lr=0.08, batch=512)
    assert sorted(net.means.tolist()) == pytest.approx(sorted(TRUTH["means"]), abs=0.15)
    assert float(net.log_v.detach()) == pytest.approx(TRUTH["log_v"], abs=0.25)
    assert float(net.logit.detach()) == pytest.approx(TRUTH["logit"], abs=0.5)


# Doors


def test_buffer_keeps_its_chains() -> None:
    buffer = ReplayBuffer(torch.zeros(10, 1, dtype=F64), restart=0.0)
    model = Potential(lambda x: x.square().sum(1) / 2)
    objective = PersistentContrastiveDivergence(Sampler(MALA(0.5), Constant(0.0, 5)), buffer)
    objective(model, normal(4, 1), generator=generator())
    assert int((buffer.points != 0).sum()) in (3, 4)
    rows, start = buffer.draw(torch.full((10, 1), 9.0, dtype=F64), generator())
    assert sorted(rows.tolist()) == list(range(10))
    torch.testing.assert_close(start, buffer.points[rows])
    always = ReplayBuffer(torch.zeros(10, 1), restart=1.0)
    assert (always.draw(torch.full((10, 1), 9.0), generator())[1] == 9).all()
    assert "points" in always.state_dict()
    with pytest.raises(ValueError, match="as large"):
        buffer.draw(torch.zeros(11, 1), generator())
    with pytest.raises(TypeError, match="condition"):
        objective(model, normal(4, 1), generator=generator(), label=torch.zeros(4))


def test_refusals() -> None:
    data = normal(4, 1)
    score_only = Gaussian(VPSDE(), torch.zeros(1), 1.0)
    wrong = ContrastiveDivergence(Sampler(MALA(0.5), Constant(0.2, 5)), t=0.4)
    with pytest.raises(ValueError, match="own time"):
        wrong(score_only, data, generator=generator())
    with pytest.raises(TypeError, match="noise must be an Analytic, such as Gaussian"):
        NoiseContrastive(torch.distributions.Normal(0.0, 1.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be differentiated"):
        ImplicitScoreMatching()(Detached(), data, generator=generator())
    once = Potential(lambda x: _OneDerivative.apply(x).sum(1))
    with pytest.raises(ValueError, match="second derivative"):
        ImplicitScoreMatching()(once, data, generator=generator())
    centre = torch.zeros(1, 1, dtype=F64)
    distance = Potential(lambda x: torch.cdist(x, centre, p=3.0).flatten())
    with pytest.raises(RuntimeError, match="second derivative"):
        ImplicitScoreMatching()(distance, data, generator=generator())


class Detached(Product):
    """A score without a graph."""

    def __init__(self) -> None:
        super().__init__(Potential(lambda x: x.square().sum(1)))

    def predict(self, x: Tensor, t: Any, **condition: Any) -> Any:
        with torch.no_grad():
            return super().predict(x.detach(), t)


class _OneDerivative(torch.autograd.Function):
    """x^2, whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


def test_objectives_train_conditional_and_noisy_energies() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(2, dtype=F64))

        def forward(self, x: Tensor, clock: Tensor, label: Tensor) -> Tensor:
            return (x - self.shift[label].unsqueeze(1)).square().sum(1) / 2

        def check_condition(self, **condition: Any) -> None:
            if set(condition) - {"label"}:
                raise TypeError("only label")

    net = Net()
    model = EnergyNetwork(net, EDMSDE())
    label = torch.arange(200) % 2
    data = torch.where(label == 0, -1.0, 2.0).double().unsqueeze(1) + 0.1 * normal(200, 1)
    objectives = [
        ImplicitScoreMatching(t=0.5),
        ContrastiveDivergence(Sampler(MALA(0.3), Constant(0.5, 5)), t=0.5),
    ]
    for objective in objectives:
        optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
        for step in range(120):
            optimiser.zero_grad()
            objective(model, data, generator=generator(step), label=label).mean().backward()
            optimiser.step()
        found = net.shift.detach()
        torch.testing.assert_close(found, torch.tensor([-1.0, 2.0]).double(), rtol=0, atol=0.25)
        with torch.no_grad():
            net.shift.zero_()
