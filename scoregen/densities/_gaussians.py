"""Argument checks and matrix roots of the closed forms for Gaussians."""

import math

import torch
from torch import Tensor

from .._checks import check_broadcast, check_tensor


def _moments(mean: Tensor, covariance: Tensor, which: str) -> tuple[Tensor, Tensor]:
    """Check one Gaussian and take it to float64; the covariance stays diagonal if it was."""
    m = check_tensor(f"{which} mean", mean).to(torch.float64)
    if m.ndim < 1:
        raise ValueError(
            f"{which} mean must have shape (..., d), got a scalar: use mean.reshape(1)"
        )
    c = check_tensor(f"{which} covariance", covariance).to(torch.float64)
    d = m.shape[-1]
    full = c.ndim == m.ndim + 1
    event = c.shape[-2:] if full else c.shape[-1:]
    if c.ndim not in (m.ndim, m.ndim + 1) or event != ((d, d) if full else (d,)):
        raise ValueError(
            f"{which} covariance must have shape (..., {d}) (variances) or (..., {d}, {d}) beside "
            f"a mean of shape {tuple(m.shape)}, with as many batch axes, got {tuple(c.shape)}"
        )
    if not bool(torch.isfinite(m).all() & torch.isfinite(c).all()):
        raise ValueError(f"{which} Gaussian must be finite, got NaN or infinity in its moments")
    if full:
        skew = (c - c.mT).abs().amax() if c.numel() else c.new_zeros(())
        if bool(skew > 1e-5 * c.abs().amax()):
            raise ValueError(
                f"{which} covariance must be symmetric, got an asymmetry of {float(skew):.3g}: "
                "pass (c + c.mT) / 2 if it is rounding"
            )
        return m, (c + c.mT) / 2
    if bool((c < 0).any()):
        raise ValueError(f"{which} variances must be at least 0, got {float(c.min()):.3g}")
    return m, c


def gaussian_pair(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> tuple[Tensor, ...]:
    """Both Gaussians in one form: diagonal when both are, full otherwise."""
    m1, c1 = _moments(m1, c1, "first")
    m2, c2 = _moments(m2, c2, "second")
    if m1.shape[-1] != m2.shape[-1]:
        raise ValueError(
            f"both Gaussians must have one dimension, got {m1.shape[-1]} and {m2.shape[-1]}"
        )
    axes = [c.shape[: m.ndim - 1] for m, c in ((m1, c1), (m2, c2))]
    check_broadcast("the batch axes of means and covariances", m1.shape[:-1], m2.shape[:-1], *axes)
    diagonal = c1.ndim == m1.ndim and c2.ndim == m2.ndim
    if not diagonal:
        c1 = torch.diag_embed(c1) if c1.ndim == m1.ndim else c1
        c2 = torch.diag_embed(c2) if c2.ndim == m2.ndim else c2
    return m1, c1, m2, c2


def positive_definite_factor(c: Tensor, which: str) -> Tensor:
    """Lower Cholesky factor of c, refused with its name when c is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(c)
    if bool((failed != 0).any()):
        raise ValueError(
            f"the {which} covariance must be positive definite, got a singular or indefinite "
            "matrix: this divergence is infinite or undefined; gaussian_w2 accepts it"
        )
    return factor


def positive_variances(c: Tensor, which: str) -> Tensor:
    """The variances themselves, refused with their name when one is not positive."""
    if bool((c <= 0).any()):
        raise ValueError(
            f"the {which} variances must be positive, got {float(c.min()):.3g}: this divergence "
            "is infinite or undefined; gaussian_w2 accepts it"
        )
    return c


def symmetric_root(c: Tensor, which: str) -> Tensor:
    """Symmetric square root; eigenvalues below zero by rounding alone count as zero."""
    values, vectors = torch.linalg.eigh(c)
    if values.numel() and bool((values.amin(-1) < -1e-6 * values.abs().amax(-1)).any()):
        raise ValueError(
            f"the {which} covariance must be positive semi-definite, got an eigenvalue of "
            f"{float(values.min()):.3g}"
        )
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT


def solve_lower(lower: Tensor, right: Tensor) -> Tensor:
    """Solution of ``lower @ x = right``."""
    return torch.linalg.solve_triangular(lower, right, upper=False)


def logdet(c: Tensor) -> Tensor:
    """log det of a positive semi-definite matrix, -infinity when it is singular."""
    factor, failed = torch.linalg.cholesky_ex((c + c.mT) / 2)
    logs = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.where(failed == 0, logs, -math.inf)


def optimal_roots(c1: Tensor, c2: Tensor) -> tuple[Tensor, Tensor]:
    """Square roots of two covariances that transport one Gaussian to the other at least cost.

    ``C1 = R1 R1^T, C2 = R2 R2^T``, and ``x = m1 + R1 z, y = m2 + R2 z`` with ``z ~ N(0, I)`` is
    the optimal coupling, so that ``W2^2 = |m1 - m2|^2 + |R1 - R2|^2``: a sum of squares, which
    loses no digits when the two are close, unlike ``tr(C1 + C2 - 2 (C1^.5 C2 C1^.5)^.5)``.
    R1 is the symmetric root and R2 the symmetric root turned by the orthogonal Procrustes
    solution of ``C1^.5 C2^.5 = U s V^T``, that is ``R2 = C2^.5 V U^T``.

    Args:
        c1: Covariance, (..., d, d), positive semi-definite.
        c2: Covariance, (..., d, d), positive semi-definite.

    Returns:
        The roots R1 and R2, each (..., d, d), float64.

    Raises:
        ValueError: A matrix has a negative eigenvalue beyond rounding.

    Source: Bhatia, Jain and Lim (2017), arXiv 1712.01504, section 2.

    >>> r1, r2 = optimal_roots(torch.eye(2), 4 * torch.eye(2))
    >>> r2.diagonal().tolist()
    [2.0, 2.0]
    """
    root1 = symmetric_root(check_tensor("c1", c1).to(torch.float64), "first")
    root2 = symmetric_root(check_tensor("c2", c2).to(torch.float64), "second")
    u, _, vt = torch.linalg.svd(root1 @ root2)
    return root1, root2 @ vt.mT @ u.mT
