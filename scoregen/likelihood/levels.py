"""Data on levels: uniform dequantisation, and densities as bits per dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import (
    check_count,
    check_data,
    check_finite,
    check_kind,
    check_numbers,
    check_tensor,
)

__all__ = ["bits_per_dim", "dequantise"]


def dequantise(
    x: Tensor, *, bins: int, data_range: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Levels made continuous: x + w u with u uniform on [-1/2, 1/2], w the distance of two levels.

    int p(x + w u) w^d du bounds the probability of the level from below, in the mean of its
    logarithm (Theis et al. 2016, 1511.01844).

    Args:
        x: points on `bins` equally spaced levels, shape (batch, *event).
        bins: the number of levels.
        data_range: the lowest and the highest level.
        generator: where u comes from.

    Raises:
        ValueError: if a value is not on a level: continuous data need no noise.

    >>> x = torch.tensor([[-1.0, 0.0, 1.0]])
    >>> g = torch.Generator().manual_seed(0)
    >>> y = dequantise(x, bins=17, data_range=(-1.0, 1.0), generator=g)
    >>> bool(((y - x).abs() <= 1 / 16).all())
    True
    """
    check_kind("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
    width, _ = on_levels(x, bins, data_range)
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
    return x + width * (u.to(x.device) - 0.5)


def bits_per_dim(
    nats: Tensor,
    dims: int,
    *,
    bins: int | None,
    data_range: tuple[float, float] | None,
    dequantised: bool,
) -> Tensor:
    """Bits per dimension of data on levels, from log-densities of the dequantised data.

    bpd = -log p / (d log 2) - log2 w, w = (high - low) / (bins - 1) the distance of two levels: of
    8-bit images on [-1, 1] the offset is log2(127.5), of 17 levels on [-1, 1] it is 3.

    Args:
        nats: log-densities, any shape.
        dims: the number of coordinates d.
        bins: the number of levels; None (continuous data) is refused.
        data_range: the lowest and the highest level.
        dequantised: whether the points were made continuous by `dequantise`; must be True, since
            the density at a bare level can be made as large as one likes.

    Raises:
        ValueError: for continuous data, or data that was not dequantised.

    >>> density = torch.tensor(-64 * math.log(2.125))  # uniform on 17 bins of width 1/8
    >>> bpd = bits_per_dim(density, 64, bins=17, data_range=(-1.0, 1.0), dequantised=True)
    >>> round(float(bpd), 4), round(math.log2(17), 4)
    (4.0875, 4.0875)
    """
    check_finite("nats", check_tensor("nats", nats))
    check_count("dims", dims)
    if bins is None or data_range is None:
        raise ValueError(
            "bits per dimension need data on levels: declare bins and data_range; continuous data "
            "has a density in nats and no bits per dimension"
        )
    if dequantised is not True:
        raise ValueError(
            "bits per dimension need the density of dequantised data: pass x through "
            "dequantise(...), ask for its log_prob, and say dequantised=True"
        )
    return -nats / (dims * math.log(2)) - math.log2(bin_width(bins, data_range))


def bin_width(bins: int, data_range: tuple[float, float]) -> float:
    check_count("bins", bins, 2)
    ends = check_numbers("data_range", data_range)
    if len(ends) != 2 or not -math.inf < ends[0] < ends[1] < math.inf:
        raise ValueError(f"data_range must be (low, high), finite and rising, got {ends}")
    low, high = ends
    return (high - low) / (bins - 1)


def on_levels(x: Tensor, bins: int, data_range: tuple[float, float]) -> tuple[float, Tensor]:
    """The distance of two levels, and the level 0 .. bins - 1 that each value is on (float64)."""
    check_data(x)
    width = bin_width(bins, data_range)
    level = (x.detach().double() - data_range[0]) / width
    near = level.round()
    off = ((level - near).abs() > 1e-3) | (near < 0) | (near > bins - 1)
    if bool(off.any()):
        raise ValueError(
            f"every value must be one of {bins} levels from {data_range[0]:g} to "
            f"{data_range[1]:g}, got {float(x[off].flatten()[0]):g}; continuous data is not "
            "dequantised, and has a density but no bits per dimension"
        )
    return width, near
