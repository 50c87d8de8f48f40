"""Transition densities by replayed noise: closed forms, whole paths, and what has no density."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from scoregen.densities import Gaussian, GaussianMixture
from scoregen.mcmc import BAOAB, MALA, FeynmanKac, Langevin, transition_log_prob
from scoregen.models import Eps, ScoreNetwork
from scoregen.networks import MLP
from scoregen.processes import VPSDE
from scoregen.sampling import Solver
from scoregen.solvers import DDIM, Ancestral, EulerMaruyama, KarrasHeun
from scoregen.solvers.ancestral import posterior

F64 = torch.float64
VP = VPSDE()
TIMES = (0.9, 0.7, 0.45, 0.3, 0.12, 0.05)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def slanted() -> Gaussian:
    root = normal(3, 3, seed=5)
    covariance = root @ root.mT / 3 + 0.2 * torch.eye(3, dtype=F64)
    return Gaussian(VP, normal(3, seed=6), covariance)


def log_normal(x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)


class Exact(Solver):
    """The exact reverse kernel of Gaussian data: a full matrix of noise."""

    def __init__(self, model: Gaussian, gains: Any) -> None:
        self.model, self.gains = model, gains

    def step(self, model: Any, x: Any, t: Any, s: Any, state: Any, noise: Any) -> Any:
        mean, root = self.gains(x, t, s)
        return mean + noise(x, t, s) @ root.mT, None


def exact_kernel(model: Gaussian) -> Exact:
    vectors = torch.eye(3, dtype=F64) if model.vectors is None else model.vectors
    data = vectors @ torch.diag(model.variances) @ vectors.mT

    def law(level: Any) -> Tensor:
        return level.alpha**2 * data + level.sigma**2 * torch.eye(3, dtype=F64)

    def gains(x: Tensor, t: Any, s: Any) -> tuple[Tensor, Tensor]:
        r = t.alpha / s.alpha
        k = r * law(s) @ torch.linalg.inv(law(t))
        q = law(s) - r**2 * law(s) @ torch.linalg.solve(law(t), law(s))
        mean = s.alpha * model.mean + (x - t.alpha * model.mean) @ k.mT
        return mean, torch.linalg.cholesky((q + q.mT) / 2)

    return Exact(model, gains)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_density_is_the_normal_it_draws(variance: Any) -> None:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    model = GaussianMixture(VP, torch.tensor([0.4, 0.6]), means, torch.tensor([0.1, 0.2]))
    t, s = VP.level(0.45), VP.level(0.3)
    x, y = normal(6, 2), normal(6, 2, seed=1)
    c0, c1, small, large = posterior(t, s)
    sd = math.sqrt(small if variance == "small" else large)
    mean = c0 * model(x, t).x0 + c1 * x
    exact = torch.distributions.Normal(mean, sd).log_prob(y).sum(1)
    found = transition_log_prob(Ancestral(variance), model, x, t, s, y)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    alone = transition_log_prob(Ancestral(variance), model, x[2:3], t, s, y[2:3])
    torch.testing.assert_close(alone, exact[2:3], rtol=1e-10, atol=1e-10)


def test_langevin_density_and_an_image() -> None:
    model = Gaussian(VP, torch.zeros(1, 4, 4, dtype=F64), 0.5)
    t = VP.level(0.4)
    x, y = normal(3, 1, 4, 4), normal(3, 1, 4, 4, seed=1)
    mean = x + 0.05 * model.score(x, 0.4)
    exact = torch.distributions.Normal(mean, math.sqrt(0.1)).log_prob(y).flatten(1).sum(1)
    found = transition_log_prob(Langevin(0.05), model, x, t, t, y)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    single = transition_log_prob(Langevin(0.05), model, x.float(), t, t, y.float())
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["exact", "ancestral", "ddim", "two draws"])
def test_path_density_is_the_joint_normal_of_the_path(kind: str) -> None:
    """log p_T plus the transitions equals the unrolled affine path, three dimensions, six times."""
    model, d = slanted(), 3
    if kind == "two draws":

        class Twice(Solver):
            def step(self, model: Any, x: Any, t: Any, s: Any, state: Any, noise: Any) -> Any:
                middle = VP.level((t.t + s.t) / 2)
                x, _ = EulerMaruyama().step(model, x, t, middle, None, noise)
                return EulerMaruyama().step(model, x, middle, s, None, noise)

        solver: Solver = Twice()
    else:
        solver = {
            "exact": exact_kernel(model),
            "ancestral": Ancestral("large"),
            "ddim": DDIM(0.3),
        }[kind]
    levels = VP.levels(torch.tensor(TIMES, dtype=F64))
    n = len(levels)
    draws = 2 if kind == "two draws" else 1
    # the path is affine in (x_T, z): read its map from unit inputs
    size = d + d * draws * (n - 1)
    z = torch.cat([torch.zeros(1, size, dtype=F64), torch.eye(size, dtype=F64)])
    x = z[:, :d]
    path, used = [x], d
    for t, s in pairwise(levels):

        def noise(like: Tensor, *_: Any) -> Tensor:
            nonlocal used
            used += d
            return z[:, used - d : used]

        x, _ = solver.step(model, x, t, s, None, noise)
        path.append(x)
    rows = torch.cat(path, 1)
    mean, gain = rows[0], (rows[1:] - rows[0]).mT
    covariance = gain @ gain.mT
    sample = mean + gain @ normal(size, seed=3)
    points = sample.reshape(n, 1, d)
    start = torch.eye(d, dtype=F64)
    total = log_normal(points[0, 0], torch.zeros(d, dtype=F64), start)
    for (t, s), (a, b) in zip(pairwise(levels), pairwise(points), strict=True):
        total = total + transition_log_prob(solver, model, a, t, s, b)[0]
    exact = log_normal(sample, mean, covariance)
    torch.testing.assert_close(total, exact, rtol=1e-10, atol=1e-9)


def test_exact_reverse_path_is_as_likely_as_the_forward_one() -> None:
    model = slanted()
    solver = exact_kernel(model)
    levels = VP.levels(torch.tensor(TIMES, dtype=F64))
    points = normal(len(levels), 1, 3, seed=8)
    reverse = model.log_prob(points[0], levels[0].t)
    forward = model.log_prob(points[-1], levels[-1].t)
    for (t, s), (a, b) in zip(pairwise(levels), pairwise(points), strict=True):
        reverse = reverse + transition_log_prob(solver, model, a, t, s, b)
        r = t.alpha / s.alpha
        sd = math.sqrt(t.sigma**2 - (r * s.sigma) ** 2)
        forward = forward + torch.distributions.Normal(r * b, sd).log_prob(a).sum(1)
    torch.testing.assert_close(reverse, forward, rtol=1e-10, atol=1e-9)


def test_gradients_reach_the_network() -> None:
    """E grad log p = 0 over the solver's own draws, and the gradient is that of the normal."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ScoreNetwork(MLP((2,), hidden=8, depth=1), VP, Eps()).double()
    t, s = VP.level(0.5), VP.level(0.4)
    x, y = normal(4, 2), normal(4, 2, seed=1)
    found = transition_log_prob(Ancestral("large"), model, x, t, s, y)
    one = torch.autograd.grad(found.sum(), list(model.parameters()), allow_unused=True)
    c0, c1, _, large = posterior(t, s)
    mean = c0 * model(x, t).x0 + c1 * x
    exact = -(y - mean).square().sum() / (2 * large)
    two = torch.autograd.grad(exact, list(model.parameters()), allow_unused=True)
    for a, b in zip(one, two, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_moves_without_a_density_are_refused() -> None:
    mix = GaussianMixture(
        VP, torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.05, 0.05])
    )
    t, s, end = VP.level(0.3), VP.level(0.2), VP.level(0.0)
    x = normal(3, 1)
    for solver, last in ((DDIM(), s), (Ancestral(), end)):
        with pytest.raises(ValueError, match="no noise"):
            transition_log_prob(solver, mix, x, t, last, x)
    with pytest.raises(ValueError, match="not Gaussian"):
        transition_log_prob(KarrasHeun(churn=0.3), mix, x, t, s, x)
    with pytest.raises(ValueError):
        transition_log_prob(MALA(0.1), mix, x, t, t, x)
    with pytest.raises(ValueError, match="population"):
        transition_log_prob(FeynmanKac(), mix, x, t, s, x)
    with pytest.raises(ValueError, match="shape of x"):
        transition_log_prob(Ancestral(), mix, x, t, s, x[:2])
    # an underdamped move draws its first momentum, too: the law of x alone, still affine
    assert transition_log_prob(BAOAB(0.1), slanted(), normal(2, 3), t, t, normal(2, 3)).shape == (
        2,
    )
