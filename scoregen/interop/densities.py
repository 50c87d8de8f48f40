"""Models as torch distributions, and energies as functions of one event for other samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from ..densities import Analytic
from ..energies import EnergyModel, energy_of
from ..models import ScoreModel
from ..models.base import Given

__all__ = ["as_distribution", "logdensity", "potential"]


class _Marginal(Distribution):
    """p_t of a density with an exact log_prob, as a torch distribution."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, model: Analytic, t: float, event: Size):
        self.model, self.t = model, t
        super().__init__(torch.Size(), event, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        rows = value.reshape(-1, *self.event_shape)
        lead = value.shape[: value.dim() - len(self.event_shape)]
        return self.model.log_prob(rows, self.t).reshape(lead)

    def sample(self, sample_shape: Any = (), *, generator: Any = None) -> Tensor:
        """Draws; torch's signature has no generator, so give one here or take seed 0."""
        shape = torch.Size(sample_shape)
        drawn = self.model.sample(shape.numel(), self.t, generator=generator or 0)
        return drawn.reshape(shape + self.event_shape)


def as_distribution(model: Analytic, t: float = 0.0) -> Distribution:
    """The law p_t of a model with an exact density, as a `torch.distributions.Distribution`.

    For torch, pyro and sbi, whose priors are such objects. `sample` takes generator=, and is the
    same every time without.

    Args:
        model: a density: `Gaussian`, `GaussianMixture`, `Empirical` or one of your own.
        t: the time; 0 is the data.

    Raises:
        TypeError: for a model without an exact density. An energy is a function:
            `potential_fn`, `logdensity_fn`.

    >>> from scoregen import VPSDE, Gaussian
    >>> law = as_distribution(Gaussian(VPSDE(), torch.zeros(2), 1.0), 0.5)
    >>> law.event_shape, law.log_prob(torch.zeros(3, 2)).shape
    (torch.Size([2]), torch.Size([3]))
    """
    if not isinstance(model, Analytic):
        raise TypeError(
            f"as_distribution needs a model with an exact density, got {type(model).__name__}; for "
            "an energy take potential_fn or logdensity_fn, for a network log_prob(model, x)"
        )
    return _Marginal(model, model.sde.level(t).t, torch.Size(model.event))


def potential(model: ScoreModel, t: float = 0.0, **condition: Any) -> Callable[[Tensor], Tensor]:
    """U(x) = E(x, t) of one event, a number: what pyro, hamiltorch and blackjax call a potential.

    Without a batch axis, and made of operations that `torch.func.vmap` and `grad` can transform.

    Args:
        model: an energy, or a density.
        t: the time at which it is frozen.
        **condition: of the energy.

    Raises:
        TypeError: for a model that is no energy; `energy_from_score` makes one.

    >>> from scoregen import Potential
    >>> u = potential(Potential(lambda x: x.square().sum(1) / 2))
    >>> u(torch.tensor([3.0, 4.0]))
    tensor(12.5000)
    >>> torch.func.vmap(torch.func.grad(u))(torch.ones(2, 3))
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    inner = model
    while isinstance(inner, Given):
        inner = inner.model
    if not isinstance(inner, EnergyModel | Analytic):
        raise TypeError(
            f"need an energy, got {type(inner).__name__}; energy_from_score(model, t) makes one of "
            "a score model"
        )
    bound, level = model.given(**condition), model.sde.level(t)

    def energy(x: Tensor) -> Tensor:
        return energy_of(bound, x[None], level)[0]

    return energy


def logdensity(model: ScoreModel, t: float = 0.0, **condition: Any) -> Callable[[Tensor], Tensor]:
    """-E(x, t) of one event: blackjax's logdensity_fn, up to a constant.

    Args:
        model: an energy, or a density.
        t: the time at which it is frozen.
        **condition: of the energy.

    >>> from scoregen import Potential
    >>> logdensity(Potential(lambda x: x.square().sum(1) / 2))(torch.tensor([3.0, 4.0]))
    tensor(-12.5000)
    """
    energy = potential(model, t, **condition)

    def log_density(x: Tensor) -> Tensor:
        return -energy(x)

    return log_density
