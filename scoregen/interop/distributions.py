"""Any torch.distributions object as a time-free energy."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Distribution, constraints

from ..energies import EnergyModel, Potential

__all__ = ["from_distribution"]


def from_distribution(distribution: Distribution) -> EnergyModel:
    """E(x) = -log_prob(x) on `StaticSDE`, normalised: its Z is 1.

    Args:
        distribution: over the whole real space, of batch shape () and event shape event.

    Raises:
        TypeError: for anything else than a torch.distributions object.
        ValueError: for a batch of distributions, or a support with an edge, which gradient-based
            MCMC would step over.

    >>> from torch.distributions import MultivariateNormal
    >>> import torch
    >>> model = from_distribution(MultivariateNormal(torch.zeros(2), torch.eye(2)))
    >>> model.score(torch.ones(1, 2), 0.0).detach()
    tensor([[-1., -1.]])
    """
    if not isinstance(distribution, Distribution):
        raise TypeError(
            f"need a torch.distributions.Distribution, got {type(distribution).__name__}; wrap a "
            "callable x -> E(x) with Potential"
        )
    if distribution.batch_shape:
        raise ValueError(
            f"need one distribution, got a batch of shape {tuple(distribution.batch_shape)}; "
            "make its axes part of the event with torch.distributions.Independent(d, "
            f"{len(distribution.batch_shape)})"
        )
    support: Any = distribution.support
    while hasattr(support, "base_constraint"):  # of Independent and MixtureSameFamily
        support = support.base_constraint
    if support not in (constraints.real, constraints.real_vector):
        raise ValueError(
            f"the support must be the whole space, got {support}; move it there with "
            "TransformedDistribution(d, biject_to(d.support).inv)"
        )

    def energy(x: Tensor) -> Tensor:
        return -distribution.log_prob(x)

    return Potential(energy)
