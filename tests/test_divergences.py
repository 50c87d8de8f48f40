"""Gaussian divergences against cubature, quadrature and hand-written numpy, never themselves."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoregen.densities import (
    energy_distance_1d,
    gaussian_fisher,
    gaussian_kl,
    gaussian_mmd2,
    gaussian_w2,
    isotropic_kl,
    ot_map,
)
from scoregen.densities._gaussians import optimal_roots

M1 = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
M2 = torch.tensor([-0.2, 0.4, 1.5], dtype=torch.float64)
C1 = torch.tensor([[1.0, 0.3, -0.2], [0.3, 0.5, 0.1], [-0.2, 0.1, 2.0]], dtype=torch.float64)
C2 = torch.tensor([[0.7, -0.2, 0.1], [-0.2, 1.4, 0.3], [0.1, 0.3, 0.9]], dtype=torch.float64)


def cubature(mean, covariance, order=8):
    """Gauss-Hermite nodes and weights for N(mean, covariance): exact for low polynomials."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / math.sqrt(2 * math.pi)
    lower = np.linalg.cholesky(covariance.numpy())
    d = len(mean)
    z = np.array(list(itertools.product(nodes, repeat=d)))
    w = np.array([np.prod(c) for c in itertools.product(weights, repeat=d)])
    return mean.numpy() + z @ lower.T, w


def test_kl_is_the_expected_log_ratio():
    x, w = cubature(M1, C1)
    p = scipy.stats.multivariate_normal(M1.numpy(), C1.numpy()).logpdf(x)
    q = scipy.stats.multivariate_normal(M2.numpy(), C2.numpy()).logpdf(x)
    assert gaussian_kl(M1, C1, M2, C2).item() == pytest.approx(w @ (p - q), abs=1e-12)


def test_isotropic_kl_carries_the_dimension_on_the_logarithm():
    s1, s2 = 0.7, 1.9
    x, w = cubature(M1, s1**2 * torch.eye(3, dtype=torch.float64))
    p = scipy.stats.multivariate_normal(M1.numpy(), s1**2 * np.eye(3)).logpdf(x)
    q = scipy.stats.multivariate_normal(M2.numpy(), s2**2 * np.eye(3)).logpdf(x)
    assert isotropic_kl(M1, s1, M2, s2).item() == pytest.approx(w @ (p - q), abs=1e-12)
    batch = isotropic_kl(M1.expand(2, 3), torch.tensor([s1, s1]), M2, torch.tensor([s2, 1.0]))
    assert batch[0].item() == pytest.approx(w @ (p - q), abs=1e-6)  # the scales were float32


def test_fisher_is_the_expected_squared_difference_of_scores():
    x, w = cubature(M1, C1)
    p = -(x - M1.numpy()) @ np.linalg.inv(C1.numpy())
    q = -(x - M2.numpy()) @ np.linalg.inv(C2.numpy())
    expected = w @ ((p - q) ** 2).sum(-1)
    assert gaussian_fisher(M1, C1, M2, C2).item() == pytest.approx(expected, rel=1e-12)


def numpy_w2_squared(m1, c1, m2, c2):
    """Textbook form with the eigenvalues of the (unsymmetrised) product C1 C2."""
    eigenvalues = np.linalg.eigvals(c1 @ c2).real
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * cross


def test_w2_is_the_textbook_form():
    expected = numpy_w2_squared(M1.numpy(), C1.numpy(), M2.numpy(), C2.numpy())
    assert gaussian_w2(M1, C1, M2, C2).item() ** 2 == pytest.approx(expected, rel=1e-12)


def test_w2_is_the_cost_of_the_map_and_the_map_pushes_forward():
    a, b = ot_map(M1, C1, M2, C2)
    torch.testing.assert_close(a @ C1 @ a.T, C2, rtol=0, atol=1e-12)
    torch.testing.assert_close(a @ M1 + b, M2, rtol=0, atol=1e-12)
    assert bool((torch.linalg.eigvalsh(a) > 0).all()), "an optimal map is a convex gradient"
    x, w = cubature(M1, C1)
    cost = w @ ((x - (x @ a.numpy().T + b.numpy())) ** 2).sum(-1)
    assert gaussian_w2(M1, C1, M2, C2).item() ** 2 == pytest.approx(cost, rel=1e-12)


def test_optimal_roots_are_roots():
    r1, r2 = optimal_roots(C1, C2)
    torch.testing.assert_close(r1 @ r1.T, C1, rtol=0, atol=1e-12)
    torch.testing.assert_close(r2 @ r2.T, C2, rtol=0, atol=1e-12)


def test_w2_to_itself_keeps_full_accuracy():
    assert gaussian_w2(M1, C1, M1, C1).item() < 1e-14
    nudged = C1 * (1 + 1e-9) ** 2
    exact = 1e-9 * C1.trace().sqrt().item()
    assert gaussian_w2(M1, C1, M1, nudged).item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_w2_of_singular_covariances_is_finite(rank):
    half = C1[:, :rank]
    low = half @ half.T
    expected = numpy_w2_squared(M1.numpy(), low.numpy(), M2.numpy(), C2.numpy())
    assert gaussian_w2(M1, low, M2, C2).item() ** 2 == pytest.approx(expected, rel=1e-6)
    assert gaussian_w2(M2, C2, M1, low).item() ** 2 == pytest.approx(expected, rel=1e-6)
    assert gaussian_w2(M1, low, M1, low).item() < 1e-7


@pytest.mark.parametrize("lengthscale", [0.5, 2.0])
@pytest.mark.slow
def test_mmd_is_the_double_cubature_of_the_kernel(lengthscale):
    means = (M1[:2], M2[:2])
    covariances = (C1[:2, :2], C2[:2, :2])
    (x, wx), (y, wy) = (cubature(m, c, order=60) for m, c in zip(means, covariances, strict=True))

    def kernel(a, wa, b, wb):
        squared = ((a[:, None] - b[None]) ** 2).sum(-1)
        return wa @ np.exp(-squared / (2 * lengthscale**2)) @ wb

    expected = kernel(x, wx, x, wx) + kernel(y, wy, y, wy) - 2 * kernel(x, wx, y, wy)
    value = gaussian_mmd2(means[0], covariances[0], means[1], covariances[1], lengthscale)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_energy_distance_is_the_integrated_squared_gap_of_the_distributions():
    cases = [(0.0, 1.0, 1.0, 1.0), (0.3, 0.2, -1.0, 3.0), (0.0, 1.0, 0.0, 4.0)]
    for m1, v1, m2, v2 in cases:
        p, q = scipy.stats.norm(m1, math.sqrt(v1)), scipy.stats.norm(m2, math.sqrt(v2))
        expected, _ = scipy.integrate.quad(
            lambda x, p=p, q=q: 2 * (p.cdf(x) - q.cdf(x)) ** 2, -40, 40, epsabs=1e-13, limit=500
        )
        args = [torch.tensor(a, dtype=torch.float64) for a in (m1, v1, m2, v2)]
        assert energy_distance_1d(*args).item() == pytest.approx(expected, abs=1e-10)
    points = [torch.tensor(a, dtype=torch.float64) for a in (0.0, 0.0, 1.5, 0.0)]
    assert energy_distance_1d(*points).item() == pytest.approx(3.0), "two points: 2 |x - y|"


positive = st.floats(0.05, 20.0)
real = st.floats(-5.0, 5.0)


@settings(max_examples=30, deadline=None)
@given(data=st.lists(st.tuples(real, positive, real, positive), min_size=1, max_size=4))
def test_diagonal_and_full_forms_agree(data):
    m1, v1, m2, v2 = torch.tensor(data, dtype=torch.float64).T
    full1, full2 = torch.diag(v1), torch.diag(v2)
    for divergence in (gaussian_kl, gaussian_fisher, gaussian_w2):
        diagonal, full = divergence(m1, v1, m2, v2), divergence(m1, full1, m2, full2)
        torch.testing.assert_close(diagonal, full, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(diagonal, divergence(m1, v1, m2, full2), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        gaussian_mmd2(m1, v1, m2, v2, 1.3), gaussian_mmd2(m1, full1, m2, full2, 1.3)
    )
    (a, b), (a_full, b_full) = ot_map(m1, v1, m2, v2), ot_map(m1, full1, m2, full2)
    torch.testing.assert_close(torch.diag(a), a_full, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(b, b_full, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("divergence", [gaussian_kl, gaussian_fisher, gaussian_w2])
@pytest.mark.parametrize("full", [False, True])
def test_batches_are_loops(divergence, full):
    means = torch.stack((M1, M2, M1 - M2)).float()
    spreads = torch.stack((C1, C2, C1 + C2)) if full else torch.stack((C1, C2, C1 + C2))[:, 0] ** 2
    other = C2 if full else C2.diagonal()
    batch = divergence(means, spreads, M2, other)
    assert batch.shape == (3,)
    assert batch.dtype == torch.float64
    for i in range(3):
        torch.testing.assert_close(batch[i], divergence(means[i], spreads[i], M2, other))


def test_singular_covariances_where_the_divergence_is_infinite_or_undefined():
    flat = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    assert gaussian_kl(M1, flat, M2, C2).item() == math.inf
    assert gaussian_kl(M1, flat.diagonal(), M2, C2.diagonal()).item() == math.inf
    for second in (flat, flat.diagonal()):
        first = C1 if second.ndim == 2 else C1.diagonal()
        with pytest.raises(ValueError, match="positive"):
            gaussian_kl(M1, first, M2, second)
        with pytest.raises(ValueError, match="positive"):
            gaussian_fisher(M1, second, M2, first)
        with pytest.raises(ValueError, match="positive"):
            ot_map(M1, second, M2, first)


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        ((M1, C1[:2, :2], M2, C2), "covariance must have shape"),
        ((M1[:2], C1[:2, :2], M2, C2), "one dimension"),
        ((torch.tensor(0.0), torch.tensor(1.0), M2, C2), "scalar"),
        ((M1 * math.nan, C1, M2, C2), "finite"),
        ((M1, C1 + torch.triu(torch.ones(3, 3)), M2, C2), "symmetric"),
        ((M1, -C1, M2, C2), "semi-definite"),
        ((M1, -C1.diagonal(), M2, C2), "at least 0"),
    ],
)
def test_bad_moments_are_refused(moments, message):
    with pytest.raises(ValueError, match=message):
        gaussian_w2(*moments)


def test_bad_scalars_are_refused():
    with pytest.raises(ValueError, match="lengthscale"):
        gaussian_mmd2(M1, C1, M2, C2, 0.0)
    with pytest.raises(ValueError, match="s1"):
        isotropic_kl(M1, -1.0, M2, 1.0)
    with pytest.raises(ValueError, match="means"):
        isotropic_kl(M1, 1.0, M2[:2], 1.0)
    zero = torch.zeros(())
    with pytest.raises(ValueError, match="at least 0"):
        energy_distance_1d(zero, zero - 1, zero, zero)
    with pytest.raises(ValueError, match="finite"):
        energy_distance_1d(zero / 0, zero, zero, zero)


@pytest.mark.peers
def test_w2_agrees_with_pot():
    ot = pytest.importorskip("ot")
    expected = ot.gaussian.bures_wasserstein_distance(M1, M2, C1, C2)
    assert gaussian_w2(M1, C1, M2, C2).item() == pytest.approx(float(expected), rel=1e-9)


def test_complex_moments_are_refused_by_every_distance() -> None:
    one, wrong = torch.ones(1), torch.ones(1, dtype=torch.complex64) * 1j
    acts = [gaussian_kl, gaussian_w2, gaussian_fisher]
    acts += [ot_map, energy_distance_1d, isotropic_kl]
    acts.append(lambda *m: gaussian_mmd2(*m, lengthscale=1.0))
    for act in acts:
        for place in range(4):
            moments = [wrong if i == place else one for i in range(4)]
            with pytest.raises(TypeError, match="view_as_real"):
                act(*moments)


def test_means_that_are_not_finite_have_no_divergence() -> None:
    with pytest.raises(ValueError, match="finite"):
        isotropic_kl(torch.tensor([math.nan]), 1.0, torch.zeros(1), 1.0)
