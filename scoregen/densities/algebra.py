"""Products, powers and sums of Gaussians and their mixtures, where the result is one again.

A Gaussian is exp(c + h.x - x.P x / 2): exponents multiply (P, h, c) and products add them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..processes import SDE
from .base import Analytic
from .gaussian import Gaussian
from .mixture import GaussianMixture

__all__ = ["exact_product", "exact_sum"]

Exact = Gaussian | GaussianMixture


class Moments(NamedTuple):
    """K Gaussians: log weights (K,), means (K, d), covariances (K,), (K, d) or (K, d, d)."""

    log_weights: Tensor
    means: Tensor
    covariances: Tensor


def moments(density: Exact) -> Moments:
    """What a Gaussian or a mixture is made of; one component for a Gaussian."""
    if isinstance(density, Gaussian):
        logs, means = density.mean.new_zeros(1), density.mean.unsqueeze(0)
        values, vectors = density.variances.unsqueeze(0), density.vectors
        vectors = None if vectors is None else vectors.unsqueeze(0)
    else:
        logs, means = density.log_weights, density.means
        values, vectors = density.variances, density.vectors
    if vectors is None:
        return Moments(logs, means, values)
    return Moments(logs, means, vectors @ torch.diag_embed(values) @ vectors.mT)


class _Natural(NamedTuple):
    """exp(c + h.x - x.P x / 2) for K components: P (K, d) or (K, d, d), h (K, d), c (K,)."""

    precision: Tensor
    shift: Tensor
    constant: Tensor

    @property
    def full(self) -> bool:
        return self.precision.dim() == 3

    def matrix(self) -> Tensor:
        return self.precision if self.full else torch.diag_embed(self.precision)

    def power(self, exponent: float) -> _Natural:
        return _Natural(*(exponent * part for part in self))

    def times(self, other: _Natural) -> _Natural:
        """Every component of one times every component of the other."""
        first, second = self.precision, other.precision
        if self.full or other.full:
            first, second = self.matrix(), other.matrix()
        sums = [
            (a.unsqueeze(1) + b.unsqueeze(0)).flatten(0, 1)
            for a, b in (
                (first, second),
                (self.shift, other.shift),
                (self.constant, other.constant),
            )
        ]
        return _Natural(*sums)


def _natural(density: Exact, centre: Tensor) -> _Natural:
    logs, means, covariances = moments(density)
    means = means - centre
    if covariances.dim() == 2:
        precision = 1 / covariances
        shift, logdet = precision * means, precision.log().sum(-1)
    else:
        precision = torch.linalg.inv(covariances)
        precision = (precision + precision.mT) / 2
        shift = (precision @ means.unsqueeze(-1)).squeeze(-1)
        logdet = torch.linalg.slogdet(precision).logabsdet
    d = means.shape[1]
    constant = logs + (logdet - (shift * means).sum(-1) - d * math.log(2 * math.pi)) / 2
    return _Natural(precision, shift, constant)


def _moments_of(found: _Natural) -> Moments | None:
    """Back to moments, with the log of each component's mass; None where one has none."""
    if found.full:
        values, vectors = torch.linalg.eigh(found.precision)
        if bool((values <= 0).any()):
            return None
        covariances = vectors @ torch.diag_embed(1 / values) @ vectors.mT
        means = (covariances @ found.shift.unsqueeze(-1)).squeeze(-1)
    else:
        values = found.precision
        if bool((values <= 0).any()):
            return None
        covariances, means = 1 / values, found.shift / values
    d = means.shape[1]
    lift = (found.shift * means).sum(-1) - values.log().sum(-1) + d * math.log(2 * math.pi)
    return Moments(found.constant + lift / 2, means, covariances)


def mixture_of(sde: SDE, found: Moments, event: tuple[int, ...]) -> GaussianMixture:
    """A mixture of given components, without those whose weight is 0 in float64."""
    weights = (found.log_weights - found.log_weights.max()).exp()
    kept = weights > 0
    means = found.means[kept].reshape(-1, *event)
    return GaussianMixture(sde, weights[kept], means, found.covariances[kept])


def exact_product(sde: SDE, parts: Sequence[tuple[float, Analytic]]) -> Exact | None:
    """prod_i p_i^b_i, normalised, as a Gaussian or a mixture; None where it is neither.

    Precisions and precision-weighted means add; mixtures multiply component by component, and take
    whole exponents alone. A component whose weight is 0 in float64 is left out.

    Args:
        sde: of the result.
        parts: (exponent, density) pairs of one event shape.

    Raises:
        ValueError: for a Gaussian without a density, of variance 0 somewhere.

    >>> from scoregen import VPSDE
    >>> a = Gaussian(VPSDE(), torch.zeros(1), 1.0)
    >>> exact_product(VPSDE(), [(1.0, a), (3.0, a)]).variances
    tensor([0.2500], dtype=torch.float64)
    """
    total: _Natural | None = None
    mixed, event = False, parts[0][1].event
    centre = torch.zeros(())
    for exponent, density in parts:
        if not isinstance(density, Gaussian | GaussianMixture):
            return None
        many = isinstance(density, GaussianMixture)
        if many and (exponent != int(exponent) or exponent < 1):
            return None
        if bool((density.variances == 0).any()):
            raise ValueError(
                "a Gaussian of variance 0 has no density to multiply: give it some variance"
            )
        if total is None:
            centre = moments(density).means.mean(0)
        own, mixed = _natural(density, centre), mixed or many
        for factor in [own] * int(exponent) if many else [own.power(exponent)]:
            total = factor if total is None else total.times(factor)
    found = None if total is None else _moments_of(total)
    if found is None:
        return None
    found = found._replace(means=found.means + centre)
    if mixed:
        return mixture_of(sde, found, event)
    return Gaussian(sde, found.means[0].reshape(event), _single(found.covariances[0], event))


def _single(covariance: Tensor, event: tuple[int, ...]) -> Tensor:
    return covariance.reshape(event) if covariance.dim() == 1 else covariance


def exact_sum(sde: SDE, parts: Sequence[tuple[float, Analytic]]) -> GaussianMixture | None:
    """sum_i w_i p_i over sum_i w_i as one mixture; None where a part is no Gaussian or mixture.

    Args:
        sde: of the result.
        parts: (mass, density) pairs of one event shape.

    >>> from scoregen import VPSDE
    >>> a = Gaussian(VPSDE(), torch.zeros(1), 1.0)
    >>> exact_sum(VPSDE(), [(1.0, a), (3.0, a)]).log_weights.exp()
    tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    found = []
    for mass, density in parts:
        if not isinstance(density, Gaussian | GaussianMixture) or bool(
            (density.variances == 0).any()
        ):
            return None
        own = moments(density)
        found.append(own._replace(log_weights=own.log_weights + math.log(mass)))
    if any(own.covariances.dim() == 3 for own in found):
        found = [
            own
            if own.covariances.dim() == 3
            else own._replace(covariances=torch.diag_embed(own.covariances))
            for own in found
        ]
    return mixture_of(sde, Moments(*map(torch.cat, zip(*found, strict=True))), parts[0][1].event)
