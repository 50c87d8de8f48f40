"""Data whose score is known: densities against brute force, scores against autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import CONTINUOUS, F64, NOISY, gaussian, inner_times, mixture, name, normal, tensor
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch.utils._python_dispatch import TorchDispatchMode

from scoregen import EDMSDE, SDE, VPSDE, Empirical, Gaussian, GaussianMixture, RectifiedSDE
from scoregen.densities import Analytic

MATRIX = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 1.2]], dtype=F64)
MEAN = tensor(0.3, -1.0, 2.0)
POINTS = normal(7, 2, seed=9)


def models(sde: SDE) -> list[Analytic]:
    return [
        Gaussian(sde, MEAN, MATRIX),
        Gaussian(sde, MEAN, tensor(0.2, 1.0, 3.0)),
        Gaussian(sde, torch.zeros(2, 2, dtype=F64), 0.4),
        mixture(sde),
        GaussianMixture(sde, tensor(0.3, 0.7), tensor(-1.0, 2.0), tensor(0.1, 0.5)),
        Empirical(sde, POINTS),
    ]


KINDS = range(6)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_noisy = pytest.mark.parametrize("sde", NOISY, ids=name)


@each_kind
@each_noisy
def test_score_is_the_gradient_of_the_log_density(sde: SDE, kind: int) -> None:
    model = models(sde)[kind]
    for t in inner_times(sde, 3).tolist():
        level = sde.level(t)
        x = (level.alpha + level.sigma) * normal(4, *model.event)
        y = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.log_prob(y, t).sum(), y)
        p = model(x, t)
        torch.testing.assert_close(p.score, gradient, rtol=1e-7, atol=1e-8 * (1 + 1 / level.sigma))
        # Tweedie: alpha E[x0 | x] = x + sigma^2 score, and eps = -sigma score
        torch.testing.assert_close(
            level.alpha * p.x0,
            x + level.sigma**2 * gradient,
            rtol=1e-8,
            atol=1e-8 * (1 + level.sigma),
        )
        torch.testing.assert_close(p.eps, -level.sigma * gradient, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedSDE()], ids=name)
def test_log_densities_are_those_of_torch_distributions(sde: SDE) -> None:
    x = normal(5, 3)
    for t in inner_times(sde, 3).tolist():
        level = sde.level(t)
        total = level.alpha**2 * MATRIX + level.sigma**2 * torch.eye(3, dtype=F64)
        law = torch.distributions.MultivariateNormal(level.alpha * MEAN, total)
        torch.testing.assert_close(Gaussian(sde, MEAN, MATRIX).log_prob(x, t), law.log_prob(x))
    clean = torch.distributions.MultivariateNormal(MEAN, MATRIX)
    torch.testing.assert_close(Gaussian(sde, MEAN, MATRIX).log_prob(x), clean.log_prob(x))


@each_noisy
def test_mixtures_equal_brute_force(sde: SDE) -> None:
    model, x = mixture(sde), normal(4, 2)
    weights = (0.2, 0.5, 0.3)
    means = torch.tensor([[-1.5, 0.2], [1.0, 1.0], [0.5, -1.2]]).double()
    covariances = torch.tensor(
        [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0], [0, 0.1]], [[0.5, -0.2], [-0.2, 0.4]]]
    ).double()
    for t in inner_times(sde, 3).tolist():
        level = sde.level(t)
        joint, shrunk = [], []
        for w, m, c in zip(weights, means, covariances, strict=True):
            total = level.alpha**2 * c + level.sigma**2 * torch.eye(2, dtype=F64)
            law = torch.distributions.MultivariateNormal(level.alpha * m, total)
            joint.append(math.log(w) + law.log_prob(x))
            gain = level.alpha * c @ torch.linalg.inv(total)
            shrunk.append(m + (x - level.alpha * m) @ gain.mT)
        log = torch.stack(joint)
        want = (log.softmax(0).unsqueeze(-1) * torch.stack(shrunk)).sum(0)
        torch.testing.assert_close(model(x, t).x0, want, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.log_prob(x, t), log.logsumexp(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 24])
@each_noisy
def test_point_clouds_equal_the_formula(sde: SDE, chunk: int) -> None:
    model, x = Empirical(sde, POINTS, chunk), normal(3, 2)
    for t in inner_times(sde, 3).tolist():
        level = sde.level(t)
        distance = (x[:, None] - level.alpha * POINTS).square().sum(-1)
        log = -distance / (2 * level.sigma**2)
        want = log.softmax(1) @ POINTS
        torch.testing.assert_close(model(x, t).x0, want, rtol=1e-9, atol=1e-9)
        density = log.logsumexp(1) - math.log(7) - math.log(2 * math.pi * level.sigma**2)
        torch.testing.assert_close(model.log_prob(x, t), density, rtol=1e-9, atol=1e-9)


def test_far_from_a_point_cloud_the_nearest_point_answers() -> None:
    model = Empirical(EDMSDE(), POINTS)
    x = POINTS[2:3] + 1e-4
    torch.testing.assert_close(model(x, 0.002).x0, POINTS[2:3], rtol=0, atol=1e-12)
    assert torch.isfinite(model(100 + x, 0.002).score).all()


@each_kind
@each_noisy
def test_one_time_per_sample_equals_float_levels(sde: SDE, kind: int) -> None:
    model = models(sde)[kind]
    t = inner_times(sde, 4)
    x = normal(4, *model.event)
    whole, density = model(x, t), model.log_prob(x, t)
    for i in range(4):
        one = model(x[i : i + 1], float(t[i]))
        for form in ("x0", "eps", "score"):
            got = getattr(whole, form)[i : i + 1]
            torch.testing.assert_close(got, getattr(one, form), rtol=1e-10, atol=1e-10)
        want = model.log_prob(x[i : i + 1], float(t[i]))
        torch.testing.assert_close(density[i : i + 1], want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("event", [(), (2,), (3,), (17,), (1, 8, 8), (3, 32, 32)])
def test_event_shapes(event: tuple[int, ...]) -> None:
    sde = VPSDE()
    means = torch.stack([torch.zeros(event), torch.ones(event)])
    for model in (
        Gaussian(sde, torch.zeros(event), 0.5),
        GaussianMixture(sde, torch.ones(2), means, torch.tensor([0.1, 0.2])),
        Empirical(sde, means),
    ):
        assert model.event == event
        for batch in (0, 1, 3):
            x = torch.zeros(batch, *event)
            assert model(x, 0.5).x0.shape == (batch, *event)
            assert model.log_prob(x, 0.5).shape == (batch,)
            assert model(x, 0.5).x0.dtype == torch.float32
        assert model.sample(3, 0.5).shape == (3, *event)
        assert model.sample(3).dtype == F64


@pytest.mark.parametrize("sde", CONTINUOUS, ids=name)
def test_the_flow_map_is_the_solution_of_the_ode(sde: SDE) -> None:
    model = Gaussian(sde, MEAN, MATRIX)
    t, s = 0.8 * sde.t_max, 0.3 * sde.t_max
    x = (sde.level(t).alpha + sde.level(t).sigma) * normal(1, 3)

    def velocity(time: float, y: np.ndarray) -> np.ndarray:
        f, g2 = (float(c(torch.tensor(time, dtype=F64))) for c in (sde.f, sde.g2))
        state = torch.from_numpy(y)[None]
        return (f * state - g2 / 2 * model(state, time).score)[0].numpy()

    done = solve_ivp(velocity, (t, s), x[0].numpy(), method="DOP853", rtol=1e-11, atol=1e-12)
    moved = model.flow(x, t, s)
    torch.testing.assert_close(moved[0], torch.from_numpy(done.y[:, -1]), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.flow(moved, s, t), x, rtol=1e-10, atol=1e-10)


# Exact chi-square and normal tests at 1e-8 each: false alarms below 1e-6 for the 6 kinds together.
@each_kind
def test_samples_have_the_moments_of_the_law(kind: int) -> None:
    sde, n = VPSDE(), 20_000
    model = models(sde)[kind]
    for t in (0.0, 0.4):
        x = model.sample(n, t, generator=3).reshape(n, -1)
        assert x.dtype == F64
        if isinstance(model, Empirical):
            m, c = POINTS.mean(0), torch.cov(POINTS.mT, correction=0)
        elif isinstance(model, Gaussian):
            basis = (
                torch.eye(len(model.mean), dtype=F64) if model.vectors is None else model.vectors
            )
            m, c = model.mean, basis @ torch.diag(model.variances) @ basis.mT
        else:
            w = model.log_weights.exp()
            bases = (
                torch.eye(model.means.shape[1], dtype=F64)
                if model.vectors is None
                else model.vectors
            )
            inner = bases @ torch.diag_embed(model.variances) @ bases.mT
            m = w @ model.means
            centred = model.means - m
            c = torch.einsum("k,kij->ij", w, inner) + torch.einsum(
                "k,ki,kj->ij", w, centred, centred
            )
        level = sde.level(t)
        m, c = level.alpha * m, level.alpha**2 * c + level.sigma**2 * torch.eye(len(m), dtype=F64)
        error = (x.mean(0) - m) / (c.diagonal() / n).sqrt()
        assert float(error.abs().max()) < 6.2
        # fourth moments of these laws are at most 5 variances squared
        spread = (torch.cov(x.mT).reshape(c.shape) - c) / torch.outer(
            c.diagonal(), c.diagonal()
        ).sqrt()
        assert float(spread.abs().max()) < 6.2 * math.sqrt(5 / n)


def test_samples_repeat_and_leave_the_given_generator_in_charge() -> None:
    model = mixture(VPSDE())
    assert torch.equal(model.sample(5, generator=1), model.sample(5, generator=1))
    assert not torch.equal(model.sample(5, generator=1), model.sample(5, generator=2))
    source = torch.Generator().manual_seed(1)
    first = model.sample(5, generator=source)
    assert torch.equal(first, model.sample(5, generator=1))
    assert not torch.equal(first, model.sample(5, generator=source))


@given(
    variance=st.floats(1e-6, 1e3), mean=st.floats(-3, 3), t=st.floats(1e-3, 1.0), x=st.floats(-3, 3)
)
def test_gaussian_in_one_coordinate(variance: float, mean: float, t: float, x: float) -> None:
    sde = VPSDE()
    level = sde.level(t)
    total = level.alpha**2 * variance + level.sigma**2
    p = gaussian(sde, variance, mean)(tensor(x)[None], t)
    centred = x - level.alpha * mean
    assert float(p.score) == pytest.approx(-centred / total, rel=1e-12, abs=1e-12)
    assert float(p.x0) == pytest.approx(
        mean + level.alpha * variance / total * centred, rel=1e-10, abs=1e-10
    )
    assert float(p.eps) == pytest.approx(level.sigma * centred / total, rel=1e-12, abs=1e-12)


def test_float_and_float32_arguments_keep_their_digits() -> None:
    """1.69 must not pass through float32 on its way."""
    assert float(Gaussian(VPSDE(), torch.zeros(1), 1.69).variances) == 1.69


def test_degenerate_gaussians_are_points() -> None:
    model = gaussian(VPSDE(), 0.0, 0.7)
    x = normal(3, 1)
    torch.testing.assert_close(model(x, 0.5).x0, torch.full((3, 1), 0.7, dtype=F64))


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: Gaussian(VPSDE(), torch.zeros(2), torch.eye(3)), "covariance must be"),
        (lambda: Gaussian(VPSDE(), torch.zeros(2), -1.0), "negative eigenvalue"),
        (
            lambda: Gaussian(VPSDE(), torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
            "negative",
        ),
        (
            lambda: GaussianMixture(VPSDE(), tensor(0.0, 1.0), normal(2, 2), tensor(1.0, 1.0)),
            "positive weights",
        ),
        (
            lambda: GaussianMixture(VPSDE(), tensor(1.0), normal(2, 2), tensor(1.0, 1.0)),
            "positive weights",
        ),
        (
            lambda: GaussianMixture(VPSDE(), tensor(1.0, 1.0), normal(2, 2), tensor(1.0, 0.0)),
            "positive definite",
        ),
        (lambda: Empirical(VPSDE(), torch.zeros(0, 2)), "points"),
        (lambda: Empirical(VPSDE(), torch.zeros(3, 2, dtype=torch.int64)), "int64"),
        (lambda: Empirical(VPSDE(), POINTS).log_prob(normal(2, 2), 0.0), "no density"),
        (lambda: mixture(VPSDE()).energy_difference(normal(2, 2), normal(2, 1), 0.5), "shape"),
    ],
)
def test_what_is_no_law_is_refused(act, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        act()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("t", [0.002, 0.05, 1.0, 60.0])
def test_products_equal_differences(scale: float, t: float) -> None:
    """Matrix products of centred values against the formula in long form, far from the origin."""
    sde, away = EDMSDE(), 50.0
    means, variances = away + scale * normal(30, 5), 1e-4 + normal(30, 5, seed=1).square()
    weights = 0.1 + normal(30, seed=2).abs()
    x = away + scale * normal(9, 5, seed=3) + t * normal(9, 5, seed=4)
    level = sde.level(t)
    model = GaussianMixture(sde, weights, means, variances)
    total = variances + level.sigma**2
    u = x[:, None] - means
    joint = weights.div(weights.sum()).log() - 0.5 * (
        u**2 / total + total.log() + math.log(2 * math.pi)
    ).sum(-1)
    share = joint.softmax(1)
    p = model(x, t)
    score = -torch.einsum("bk,bkd->bd", share, u / total)
    x0 = torch.einsum("bk,bkd->bd", share, means + variances / total * u)
    torch.testing.assert_close(p.score, score, rtol=1e-7, atol=1e-7 * float(score.abs().max()))
    torch.testing.assert_close(p.x0, x0, rtol=1e-7, atol=0)
    torch.testing.assert_close(model.log_prob(x, t), joint.logsumexp(1), rtol=1e-7, atol=1e-7)
    cloud = Empirical(sde, means)
    log = -(u**2).sum(-1) / (2 * level.sigma**2)
    torch.testing.assert_close(cloud(x, t).x0, log.softmax(1) @ means, rtol=1e-7, atol=0)
    density = log.logsumexp(1) - math.log(30) - 2.5 * math.log(2 * math.pi * level.sigma**2)
    torch.testing.assert_close(cloud.log_prob(x, t), density, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_blocks_of_rows_change_nothing(chunk: int) -> None:
    full = mixture(VPSDE())
    basis = full.vectors @ torch.diag_embed(full.variances) @ full.vectors.mT
    weights, means = full.log_weights.exp(), full.means
    x, times = normal(11, 2), torch.linspace(0.01, 0.9, 11, dtype=F64)
    for covariances in (basis, full.variances):
        whole = GaussianMixture(VPSDE(), weights, means, covariances)
        parts = GaussianMixture(VPSDE(), weights, means, covariances, chunk=chunk)
        for t in (0.3, times, times[:1]):
            a, b = whole(x, t), parts(x, t)
            torch.testing.assert_close(a.x0, b.x0, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(a.eps, b.eps, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(whole.log_prob(x, t), parts.log_prob(x, t))


def test_memory_stays_within_the_stated_block() -> None:
    """No tensor of the products or the differences holds more numbers than a few blocks."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                Largest.size = max(Largest.size, out.numel())
            return out

    points, x = normal(3000, 4), normal(20, 4)
    for t in (0.002, 1.0):
        Largest.size = 0
        with Largest():
            Empirical(EDMSDE(), 1000 * points, chunk=5000)(x, t)
        assert Largest.size <= 12_000  # the points themselves
    model = GaussianMixture(
        EDMSDE(), torch.ones(300), normal(300, 4), 1 + normal(300, 4).abs(), 2400
    )
    Largest.size = 0
    with Largest():
        model(x, torch.linspace(0.1, 1.0, 20))
    assert Largest.size <= 2400


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_laws_are_not_made_of_nan_or_infinity(value: float) -> None:
    bad = tensor(1.0, value)
    for act in (
        lambda: Gaussian(VPSDE(), bad, 1.0),
        lambda: Gaussian(VPSDE(), torch.zeros(2), bad),
        lambda: Gaussian(VPSDE(), torch.zeros(2), value),
        lambda: GaussianMixture(VPSDE(), bad, normal(2, 2), torch.ones(2)),
        lambda: GaussianMixture(VPSDE(), torch.ones(2), bad, torch.ones(2)),
        lambda: GaussianMixture(VPSDE(), torch.ones(2), normal(2, 2), bad),
        lambda: Empirical(VPSDE(), bad),
    ):
        with pytest.raises(ValueError, match="finite"):
            act()


def test_laws_are_not_made_of_complex_numbers() -> None:
    wrong = torch.ones(2, dtype=torch.complex64) * 1j
    for act in (
        lambda: Gaussian(VPSDE(), wrong, 1.0),
        lambda: Gaussian(VPSDE(), torch.zeros(2), wrong),
        lambda: GaussianMixture(VPSDE(), torch.ones(2), wrong, torch.ones(2)),
        lambda: Empirical(VPSDE(), wrong),
        lambda: Gaussian(VPSDE(), torch.zeros(2), 1.0)(wrong[None], 0.5),
    ):
        with pytest.raises(TypeError, match="view_as_real"):
            act()
