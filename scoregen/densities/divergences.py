"""Distances between two Gaussians in closed form, in float64: the standards of comparison.

A Gaussian is a mean of shape (..., d) and a covariance, either full, of shape (..., d, d), or
diagonal, the d variances themselves, of shape (..., d): the number of axes decides which. Leading
axes are batches and broadcast. Everything is computed and returned in float64. Every function
raises ValueError on bad moments: shapes that disagree, NaN or infinity, an asymmetric matrix or a
negative eigenvalue beyond rounding.
"""

import math

import torch
from torch import Tensor

from .._checks import (
    check_broadcast,
    check_number,
    check_real,
    check_tensor,
)
from ._gaussians import (
    gaussian_pair,
    logdet,
    optimal_roots,
    positive_definite_factor,
    positive_variances,
    solve_lower,
)

__all__ = [
    "energy_distance_1d",
    "gaussian_fisher",
    "gaussian_kl",
    "gaussian_mmd2",
    "gaussian_w2",
    "isotropic_kl",
    "optimal_roots",
    "ot_map",
]


def gaussian_kl(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(m1, C1) from N(m2, C2), in nats.

    ``KL = 1/2 [tr(C2^-1 C1) + |m2 - m1|^2_{C2^-1} - d + log(det C2 / det C1)]``

    Args:
        m1, c1: The first Gaussian, as in the module's first lines.
        m2, c2: The second.

    Returns:
        The divergence, of shape (...), float64.

    Raises:
        ValueError: Bad moments, or C2 not positive definite (a singular C1 gives infinity).

    Source: Kullback and Leibler (1951), the Gaussian case.

    >>> zero, one = torch.zeros(2), torch.ones(2)
    >>> print(f"{gaussian_kl(one, one, zero, one).item():.3f}")
    1.000
    """
    m1, c1, m2, c2 = gaussian_pair(m1, c1, m2, c2)
    if c1.ndim == m1.ndim:
        ratio = c1 / positive_variances(c2, "second")
        excess = ratio - 1 - torch.log(ratio)
        return 0.5 * (excess + (m1 - m2) ** 2 / c2).sum(-1)
    l2 = positive_definite_factor(c2, "second")
    whitened = solve_lower(l2, c1)
    inner = solve_lower(l2, whitened.mT)
    shift = solve_lower(l2, (m1 - m2).unsqueeze(-1))
    excess = inner.diagonal(dim1=-2, dim2=-1).sum(-1) - m1.shape[-1] - logdet(inner)
    return 0.5 * (excess + (shift**2).sum((-2, -1)))


def isotropic_kl(m1: Tensor, s1: Tensor | float, m2: Tensor, s2: Tensor | float) -> Tensor:
    """Kullback-Leibler divergence of N(m1, s1^2 I) from N(m2, s2^2 I), in nats over all d axes.

    ``KL = d log(s2 / s1) - d/2 + (d s1^2 + |m1 - m2|^2) / (2 s2^2)``

    The dimension multiplies the logarithm too; a circulating misprint leaves it out.

    Args:
        m1: First mean, (..., d).
        s1: First standard deviation, positive; a float or of shape (...).
        m2: Second mean, (..., d).
        s2: Second standard deviation, positive; a float or of shape (...).

    Returns:
        The divergence, of shape (...), float64.

    Raises:
        ValueError: A standard deviation is not positive and finite, or the means' dimensions
            differ.

    Source: Kullback and Leibler (1951), the isotropic case.

    >>> zero = torch.zeros(3)
    >>> print(f"{isotropic_kl(zero, 1.0, zero, 2.0).item() / 3:.4f}")
    0.3181
    """
    m1 = check_tensor("m1", m1).to(torch.float64)
    m2 = check_tensor("m2", m2).to(torch.float64)
    for name, value in (("s1", s1), ("s2", s2)):
        if isinstance(value, Tensor):
            check_real(name, value)
        else:
            check_number(name, value, 0.0, open_low=True)
    if not bool(torch.isfinite(m1).all() & torch.isfinite(m2).all()):
        raise ValueError("the means must be finite, got NaN or infinity")
    a = torch.as_tensor(s1, dtype=torch.float64, device=m1.device)
    b = torch.as_tensor(s2, dtype=torch.float64, device=m1.device)
    if m1.ndim < 1 or m2.ndim < 1 or m1.shape[-1] != m2.shape[-1]:
        raise ValueError(
            f"the means must have shape (..., d) with one d, got {tuple(m1.shape)} and "
            f"{tuple(m2.shape)}"
        )
    for scale, name in ((a, "s1"), (b, "s2")):
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError(f"{name} must be positive and finite, got {scale.tolist()}")
    ratio = (a / b) ** 2
    d = m1.shape[-1]
    return 0.5 * (d * (ratio - 1 - torch.log(ratio)) + ((m1 - m2) ** 2).sum(-1) / b**2)


def gaussian_fisher(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> Tensor:
    """Fisher divergence of N(m1, C1) from N(m2, C2): the mean squared difference of their scores.

    ``E_p |score_p - score_q|^2 = tr((P2 - P1) C1 (P2 - P1)) + |P2 (m1 - m2)|^2``, ``P = C^-1``

    Args:
        m1, c1: The first Gaussian, as in the module's first lines.
        m2, c2: The second.

    Returns:
        The divergence, of shape (...), float64, without a factor 1/2.

    Raises:
        ValueError: Bad moments, or a covariance not positive definite.

    Source: Hyvarinen (2005), Estimation of non-normalized statistical models by score matching.

    >>> print(gaussian_fisher(torch.ones(1), torch.ones(1), torch.zeros(1), torch.ones(1)).item())
    1.0
    """
    m1, c1, m2, c2 = gaussian_pair(m1, c1, m2, c2)
    if c1.ndim == m1.ndim:
        gap = 1 / positive_variances(c2, "second") - 1 / positive_variances(c1, "first")
        return (gap**2 * c1 + ((m1 - m2) / c2) ** 2).sum(-1)
    precision2 = torch.cholesky_inverse(positive_definite_factor(c2, "second"))
    gap = precision2 - torch.cholesky_inverse(positive_definite_factor(c1, "first"))
    shift = precision2 @ (m1 - m2).unsqueeze(-1)
    return (gap @ c1 @ gap).diagonal(dim1=-2, dim2=-1).sum(-1) + (shift**2).sum((-2, -1))


def gaussian_w2(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> Tensor:
    """Wasserstein-2 distance (not squared) between N(m1, C1) and N(m2, C2).

    ``W2^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^.5 C2 C1^.5)^.5)``, evaluated as a sum of squares
    (see :func:`optimal_roots`). Singular covariances are allowed.

    Args:
        m1, c1: The first Gaussian, as in the module's first lines.
        m2, c2: The second.

    Returns:
        The distance, of shape (...), float64, in the units of the data.

    Raises:
        ValueError: Bad moments.

    Source: Dowson and Landau (1982), The Frechet distance between multivariate normal
    distributions.

    >>> gaussian_w2(torch.zeros(1), torch.ones(1), torch.zeros(1), torch.tensor([9.0])).item()
    2.0
    """
    m1, c1, m2, c2 = gaussian_pair(m1, c1, m2, c2)
    shift = ((m1 - m2) ** 2).sum(-1)
    if c1.ndim == m1.ndim:
        return (shift + ((c1.sqrt() - c2.sqrt()) ** 2).sum(-1)).sqrt()
    r1, r2 = optimal_roots(c1, c2)
    return (shift + ((r1 - r2) ** 2).sum((-2, -1))).sqrt()


def ot_map(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> tuple[Tensor, Tensor]:
    """Optimal transport map ``x -> A x + b`` that pushes N(m1, C1) to N(m2, C2).

    ``A = C1^-.5 (C1^.5 C2 C1^.5)^.5 C1^-.5``, symmetric, and ``b = m2 - A m1``

    Args:
        m1, c1: The first Gaussian, as in the module's first lines.
        m2, c2: The second.

    Returns:
        A, of shape (..., d, d), or (..., d) (to multiply elementwise) when both Gaussians are
        diagonal, and b, of shape (..., d); float64.

    Raises:
        ValueError: Bad moments, or C1 not positive definite.

    Source: Gelbrich (1990), On a formula for the L2 Wasserstein metric; Dowson and Landau (1982).

    >>> a, b = ot_map(torch.zeros(1), torch.ones(1), torch.ones(1), torch.tensor([4.0]))
    >>> a.tolist(), b.tolist()
    ([2.0], [1.0])
    """
    m1, c1, m2, c2 = gaussian_pair(m1, c1, m2, c2)
    if c1.ndim == m1.ndim:
        scale = (c2 / positive_variances(c1, "first")).sqrt()
        return scale, m2 - scale * m1
    positive_definite_factor(c1, "first")
    r1, r2 = optimal_roots(c1, c2)
    a = torch.linalg.solve(r1, r2, left=False)
    a = (a + a.mT) / 2
    return a, m2 - (a @ m1.unsqueeze(-1)).squeeze(-1)


def gaussian_mmd2(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor, lengthscale: float) -> Tensor:
    """Squared maximum mean discrepancy of two Gaussians under a Gaussian kernel.

    ``k(x, y) = exp(-|x - y|^2 / (2 l^2))`` has
    ``E k(X, Y) = det(I + S / l^2)^-1/2 exp(-(m1 - m2)^T (S + l^2 I)^-1 (m1 - m2) / 2)``,
    ``S = C1 + C2``, and ``MMD^2 = E k(X, X') + E k(Y, Y') - 2 E k(X, Y)``.

    Args:
        m1, c1: The first Gaussian, as in the module's first lines.
        m2, c2: The second.
        lengthscale: The kernel's l, positive, in the units of the data.

    Returns:
        MMD^2, of shape (...), float64.

    Raises:
        ValueError: Bad moments, or a length scale that is not positive.

    Source: Gretton et al. (2012), A kernel two-sample test (the definition).

    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> gaussian_mmd2(zero, one, zero, one, lengthscale=1.0).item()
    0.0
    """
    lengthscale = check_number("lengthscale", lengthscale, 0.0, open_low=True)
    m1, c1, m2, c2 = gaussian_pair(m1, c1, m2, c2)
    l2 = lengthscale**2

    def mean_kernel(shift: Tensor, spread: Tensor) -> Tensor:
        if spread.ndim == shift.ndim:
            return torch.exp(-0.5 * (torch.log1p(spread / l2) + shift**2 / (spread + l2)).sum(-1))
        lower = positive_definite_factor(
            spread / l2 + torch.eye(shift.shape[-1]).to(spread), "summed"
        )
        white = solve_lower(lower, (shift / lengthscale).unsqueeze(-1))
        logs = lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return torch.exp(-logs - 0.5 * (white**2).sum((-2, -1)))

    same1 = mean_kernel(torch.zeros_like(m1), 2 * c1)
    same2 = mean_kernel(torch.zeros_like(m2), 2 * c2)
    return same1 + same2 - 2 * mean_kernel(m1 - m2, c1 + c2)


def energy_distance_1d(m1: Tensor, v1: Tensor, m2: Tensor, v2: Tensor) -> Tensor:
    """Energy distance between N(m1, v1) and N(m2, v2) on the line, elementwise.

    ``2 E|X - Y| - E|X - X'| - E|Y - Y'| = 2 int (F - G)^2``, with
    ``E|N(m, v)| = sqrt(2 v / pi) exp(-m^2 / (2 v)) + m erf(m / sqrt(2 v))``

    Args:
        m1: First mean, any shape.
        v1: First variance, at least 0, broadcast against the mean.
        m2: Second mean.
        v2: Second variance.

    Returns:
        The distance (no square root taken), of the broadcast shape, float64, in the data's units.

    Raises:
        ValueError: A moment is not finite or a variance is negative.

    Source: Szekely and Rizzo (2013), Energy statistics: a class of statistics based on distances.

    >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
    >>> print(f"{energy_distance_1d(zero, one, one, one).item():.4f}")
    0.5418
    """
    named = (("m1", m1), ("v1", v1), ("m2", m2), ("v2", v2))
    m1, v1, m2, v2 = (check_tensor(name, value).to(torch.float64) for name, value in named)
    check_broadcast("means and variances", *(value.shape for value in (m1, v1, m2, v2)))
    for value in (m1, v1, m2, v2):
        if not bool(torch.isfinite(value).all()):
            raise ValueError("moments must be finite, got NaN or infinity")
    if bool((v1 < 0).any() | (v2 < 0).any()):
        raise ValueError("variances must be at least 0, got a negative one")

    def mean_abs(m: Tensor, v: Tensor) -> Tensor:
        spread = torch.where(v > 0, v, 1.0)
        z = m / (2 * spread).sqrt()
        return torch.where(
            v > 0, (2 * v / math.pi).sqrt() * torch.exp(-(z**2)) + m * torch.erf(z), m.abs()
        )

    zero = torch.zeros_like(m1)
    return (
        2 * mean_abs(m1 - m2, v1 + v2)
        - mean_abs(zero, 2 * v1)
        - mean_abs(torch.zeros_like(m2), 2 * v2)
    )
