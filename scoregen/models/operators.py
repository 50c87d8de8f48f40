"""Operators on models, as on the page: `prior * likelihood`, `model ** (1 / T)`, `a + b`.

What they mean is written in `energies.algebra`, since a product of scores has an energy.
"""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

from .._checks import check_number

__all__ = ["Operators"]


def _algebra() -> Any:
    """The module of energies that writes the operations, imported when the first one is used."""
    return import_module("scoregen.energies.algebra")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Operators:
    """Products, quotients, powers, multiples and sums of models.

    `a * b` and `a ** e` are densities up to their normaliser. With Gaussians and mixtures of
    Gaussians the result is again one, noised by their process; else it is the product of the noised
    laws at every level (`energies.Product`), which is the same law at the data, and which MCMC and
    `mcmc.FeynmanKac` sample. `0.3 * a + 0.7 * b` is a mixture; `a + b` weighs both alike.

    Attributes:
        mass: what the density counts in a sum: 1 unless it was multiplied, or is itself a sum.

    >>> import torch
    >>> from scoregen import VPSDE, Gaussian
    >>> a, b = (Gaussian(VPSDE(), torch.full((1,), m), 1.0) for m in (0.0, 2.0))
    >>> (a * b).mean, (a ** 4).variances, (0.3 * a + 0.7 * b).log_weights.exp()
    (tensor([1.], dtype=torch.float64), tensor([0.2500], dtype=torch.float64), \
tensor([0.3000, 0.7000], dtype=torch.float64))
    """

    mass: float = 1.0

    def __mul__(self, other: object) -> Any:
        if _number(other):
            return _scaled(self, other)
        return _algebra().product(self, other) if isinstance(other, Operators) else NotImplemented

    def __rmul__(self, other: object) -> Any:
        return _scaled(self, other) if _number(other) else NotImplemented

    def __truediv__(self, other: object) -> Any:
        if _number(other):
            return _scaled(self, 1 / check_number("the divisor", other, 0.0, open_low=True))
        if not isinstance(other, Operators):
            return NotImplemented
        return _algebra().quotient(self, other)

    def __pow__(self, exponent: object) -> Any:
        return _algebra().power(self, exponent) if _number(exponent) else NotImplemented

    def __add__(self, other: object) -> Any:
        return _algebra().total(self, other) if isinstance(other, Operators) else NotImplemented


def _scaled(model: Any, factor: object) -> Any:
    """The same model with another mass; parameters and buffers are the same tensors."""
    value = check_number("the factor", factor, 0.0, open_low=True)
    found: Any = copy.copy(model)
    found.__dict__["mass"] = value * model.mass
    return found
