"""Densities by change of variables, which zuko does: a normalizing flow, an autoregressive net."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._checks import check_count, check_counts
from .._rows import flat
from ..data import Data
from .base import Normal, Trained, continuous, needs

__all__ = ["Autoregressive", "Flow"]


class Invertible(Trained):
    """log p(x) = log N(f(x); 0, I) + log |det df/dx|, with x standardised before f.

    f is zuko's; samples are f^-1 of a normal draw.
    """

    likelihood = "exact"
    flow: Any
    mean: Tensor
    std: Tensor

    def _build(self, event: tuple[int, ...], **options: Any) -> None:
        flows = needs("zuko.flows", "zuko", type(self).__name__)
        self.event = check_counts("event", event)
        if not self.event or (d := math.prod(self.event)) < 1:
            raise ValueError(f"event must hold at least one coordinate, got {self.event}")
        self.flow = flows.NSF(d, activation=torch.nn.SiLU, **options)
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("std", torch.ones(d))

    def prepare(self, data: Data) -> None:
        """Mean and standard deviation per coordinate: splines act on [-5, 5]."""
        generator = torch.Generator().manual_seed(0)
        x = flat(continuous(data.x, data, generator).double())
        std = x.std(0, correction=0)
        if not bool((std > 0).all()):
            constant = (std == 0).nonzero().flatten().tolist()
            raise ValueError(
                f"coordinates {constant[:5]} are constant, and have no density: declare the levels "
                "of the data by Data(..., bins=), or leave these coordinates out"
            )
        self.mean.copy_(x.mean(0))
        self.std.copy_(std)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, shape (batch,).

        Args:
            x: data, shape (batch, *event).
        """
        u = self._standardised(x)
        return (self.flow().log_prob(u) - self.std.log().sum()).to(x.dtype)

    def _standardised(self, x: Tensor) -> Tensor:
        return (flat(self.checked(x)).to(self.std.dtype) - self.mean) / self.std

    def loss(self, x: Tensor, normal: Normal) -> Tensor:
        return -self.log_prob(x)

    def inverse(self, z: Tensor) -> Tensor:
        """Data (batch, *event) of normal draws (batch, d): f^-1.

        Args:
            z: standard normal draws.
        """
        u = self.flow().transform.inv(z)
        return (self.mean + self.std * u).reshape(len(z), *self.event)

    def draw(self, count: int, normal: Normal, label: Tensor | None) -> Tensor:
        return self.inverse(normal(self.mean.new_zeros(count, len(self.mean))))


class Flow(Invertible):
    """A neural spline flow of coupling layers (Durkan et al. 2019, 1906.04032), by zuko.

    p(x) = N(f(x); 0, I) |det df/dx|, f = f_K o ... o f_1

    Each layer moves half of the coordinates by monotone splines whose knots depend on the other
    half, so density and samples cost the same. Its gradient is a score:
    `Potential(lambda x: -flow.log_prob(x))` is an energy for every kernel.

    Args:
        event: shape of one sample.
        layers: K, even so that either half is moved as often.
        hidden: widths of the network that gives the knots.
        bins: of the splines.

    Raises:
        ImportError: without zuko.

    >>> with torch.random.fork_rng():
    ...     flow = Flow((2,), layers=2, hidden=(16,))
    >>> flow.log_prob(torch.zeros(3, 2)).shape, flow.sample(3, seed=0).shape
    (torch.Size([3]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        event: tuple[int, ...],
        layers: int = 4,
        hidden: tuple[int, ...] = (64, 64),
        bins: int = 8,
    ):
        super().__init__()
        self.layers = check_count("layers", layers)
        self._build(
            event,
            transforms=layers,
            hidden_features=check_counts("hidden", hidden, 1),
            bins=check_count("bins", bins, 2),
            passes=2,
        )

    @property
    def evaluations(self) -> float:
        return 2.0 * self.layers


class Autoregressive(Invertible):
    """p(x) = prod_i p(x_i | x_1 .. x_{i-1}), every factor by one masked network, by zuko.

    A masked network (Germain et al. 2015, 1502.03509) gives for each coordinate the monotone spline
    that takes x_i to a normal, from the coordinates before it: one pass for the density, d passes
    for a sample. log p is the sum of `conditionals`.

    Args:
        event: shape of one sample.
        hidden: widths of the masked network.
        bins: of the splines.

    Raises:
        ImportError: without zuko.

    >>> with torch.random.fork_rng():
    ...     model = Autoregressive((3,), hidden=(16,))
    >>> x = torch.zeros(2, 3)
    >>> bool((model.conditionals(x).sum(1) - model.log_prob(x)).abs().max() < 1e-5)
    True
    """

    def __init__(self, event: tuple[int, ...], hidden: tuple[int, ...] = (128, 128), bins: int = 8):
        super().__init__()
        self._build(
            event,
            transforms=1,
            hidden_features=check_counts("hidden", hidden, 1),
            bins=check_count("bins", bins, 2),
        )

    @property
    def evaluations(self) -> float:
        return float(len(self.mean))

    def conditionals(self, x: Tensor) -> Tensor:
        """log p(x_i | x_1 .. x_{i-1}) in nats, shape (batch, d), coordinates in flat order.

        Args:
            x: data, shape (batch, *event).
        """
        u = self._standardised(x)
        (layer,) = self.flow.transform.transforms
        univariate = layer.meta(None, u).base if len(self.mean) > 1 else layer().base
        z, slope = univariate.call_and_ladj(u)
        normal = -0.5 * (z.square() + math.log(2 * math.pi))
        return (normal + slope - self.std.log()).to(x.dtype)
