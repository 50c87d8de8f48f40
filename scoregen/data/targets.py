"""Targets in the plane, and mixtures of Gaussians whose exact score is known.

Every function is a pure function of (n, seed), and a longer sample begins with a shorter one.
"""

import math
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._checks import check_count, check_number
from .order import check_seed, stream

# of numbers whose square is a number of full precision
_LEAST, _MOST = math.sqrt(sys.float_info.min), math.sqrt(sys.float_info.max)


def _draws(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniforms (n, 3) and normals (n, 2), from two streams so that rows do not shift."""
    n, seed = check_count("n", n), check_seed(seed)
    return stream(seed, 0).random((n, 3)), stream(seed, 1).standard_normal((n, 2))


def _tensor(points: np.ndarray) -> Tensor:
    return torch.from_numpy(points.astype(np.float32))


def rings(n: int, seed: int) -> Tensor:
    """Four concentric rings of radii 0.4, 0.8, 1.2, 1.6, equally likely, with noise 0.04.

        x = r (cos a, sin a) + 0.04 z

    Args:
        n: Number of points.
        seed: Of the draw, in 0 .. 2^64 - 1.

    Returns:
        float32 tensor of shape (n, 2).

    Raises:
        ValueError: If n < 1 or the seed lies outside.

    Example:
        >>> rings(5, seed=0).shape
        torch.Size([5, 2])
    """
    u, z = _draws(n, seed)
    radius = 0.4 * (1 + np.floor(4 * u[:, :1]))
    angle = 2 * np.pi * u[:, 1]
    return _tensor(radius * np.stack((np.cos(angle), np.sin(angle)), axis=1) + 0.04 * z)


def moons(n: int, seed: int) -> Tensor:
    """Two interleaved half circles of radius 1 about the origin, with noise 0.06.

        x = (cos a - 1/2, sin a - 1/4) or minus that,   a in [0, pi]

    Args:
        n: Number of points.
        seed: Of the draw, in 0 .. 2^64 - 1.

    Returns:
        float32 tensor of shape (n, 2).

    Raises:
        ValueError: If n < 1 or the seed lies outside.

    Example:
        >>> moons(5, seed=0).shape
        torch.Size([5, 2])
    """
    u, z = _draws(n, seed)
    angle = np.pi * u[:, 1]
    upper = np.stack((np.cos(angle) - 0.5, np.sin(angle) - 0.25), axis=1)
    return _tensor(np.where(u[:, :1] < 0.5, upper, -upper) + 0.06 * z)


def checkerboard(n: int, seed: int) -> Tensor:
    """The eight dark squares of a 4 x 4 board on [-1.6, 1.6]^2, uniformly filled.

        x uniform on the squares (i, j) of side 0.8 with i + j even

    Args:
        n: Number of points.
        seed: Of the draw, in 0 .. 2^64 - 1.

    Returns:
        float32 tensor of shape (n, 2).

    Raises:
        ValueError: If n < 1 or the seed lies outside.

    Example:
        >>> checkerboard(5, seed=0).shape
        torch.Size([5, 2])
    """
    u, _ = _draws(n, seed)
    square = np.floor(8 * u[:, 0])
    i = np.floor(square / 2)
    j = 2 * (square % 2) + i % 2
    return _tensor(0.8 * (np.stack((i, j), axis=1) + u[:, 1:]) - 1.6)


def swiss_roll(n: int, seed: int) -> Tensor:
    """One and a half turns of a spiral, with noise 0.04.

        x = a (cos a, sin a) / 9 + 0.04 z,   a in [1.5 pi, 4.5 pi]

    Args:
        n: Number of points.
        seed: Of the draw, in 0 .. 2^64 - 1.

    Returns:
        float32 tensor of shape (n, 2).

    Raises:
        ValueError: If n < 1 or the seed lies outside.

    Example:
        >>> swiss_roll(5, seed=0).shape
        torch.Size([5, 2])
    """
    u, z = _draws(n, seed)
    angle = 1.5 * np.pi * (1 + 2 * u[:, 1])
    spiral = angle[:, None] * np.stack((np.cos(angle), np.sin(angle)), axis=1) / 9
    return _tensor(spiral + 0.04 * z)


class Modes(NamedTuple):
    """A mixture of K Gaussians in the plane, given by its numbers.

        p(x) = sum_k weights_k N(x; means_k, covariances_k)

    Args:
        weights: Shape (K,), float64, positive, of sum 1.
        means: Shape (K, 2), float64.
        covariances: Shape (K, 2, 2), float64.

    Example:
        >>> eight_gaussians_modes().sample(5, seed=0).shape
        torch.Size([5, 2])
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def sample(self, n: int, seed: int) -> Tensor:
        """Draws n points; float32 tensor of shape (n, 2), a pure function of (n, seed)."""
        u, z = _draws(n, seed)
        cumulative = np.cumsum(self.weights.numpy())
        mode = np.searchsorted(cumulative, u[:, 0] * cumulative[-1], side="right")
        factor = torch.linalg.cholesky(self.covariances).numpy()
        return _tensor(self.means.numpy()[mode] + np.einsum("nij,nj->ni", factor[mode], z))


def _round_modes(means: np.ndarray, std: float) -> Modes:
    k = len(means)
    return Modes(
        torch.full((k,), 1 / k, dtype=torch.float64),
        torch.from_numpy(means),
        (std**2 * torch.eye(2, dtype=torch.float64)).repeat(k, 1, 1),
    )


def eight_gaussians_modes() -> Modes:
    """Eight equal round Gaussians of standard deviation 0.1 on a circle of radius 1.4.

        means_k = 1.4 (cos(k pi / 4), sin(k pi / 4))

    Example:
        >>> eight_gaussians_modes().means.shape
        torch.Size([8, 2])
    """
    angle = np.arange(8) * np.pi / 4
    return _round_modes(1.4 * np.stack((np.cos(angle), np.sin(angle)), axis=1), 0.1)


def eight_gaussians(n: int, seed: int) -> Tensor:
    """Points from the mixture of `eight_gaussians_modes`.

        x = 1.4 (cos(k pi / 4), sin(k pi / 4)) + 0.1 z

    Args:
        n: Number of points.
        seed: Of the draw, in 0 .. 2^64 - 1.

    Returns:
        float32 tensor of shape (n, 2).

    Raises:
        ValueError: If n < 1 or the seed lies outside.

    Example:
        >>> eight_gaussians(5, seed=0).shape
        torch.Size([5, 2])
    """
    return eight_gaussians_modes().sample(n, seed)


def grid_modes(side: int = 5, spacing: float = 0.7, std: float = 0.07) -> Modes:
    """Equal round Gaussians on a square grid about the origin.

        means_{ij} = spacing (i - (side - 1) / 2, j - (side - 1) / 2)

    Args:
        side: Modes along each axis; side^2 in all.
        spacing: Distance between neighbours.
        std: Standard deviation of each mode.

    Raises:
        ValueError: If one of them is not positive, or too large to be squared.

    Example:
        >>> grid_modes(3).means.shape
        torch.Size([9, 2])
    """
    side = check_count("side", side)
    spacing = check_number("spacing", spacing, 0.0, sys.float_info.max / side, open_low=True)
    std = check_number("std", std, _LEAST, _MOST)
    axis = spacing * (np.arange(side) - (side - 1) / 2)
    return _round_modes(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), std)


def sixteen_modes() -> Modes:
    """Sixteen anisotropic Gaussians of unequal weight: a hard, known target.

        covariances_k = R_k diag(a_k^2, b_k^2) R_k^T,  a in [0.04, 0.08],  b in [0.08, 0.18]

    Means are at least 0.55 apart in [-1.6, 1.6]^2, rotations are uniform, and the weights
    before normalisation are uniform in [0.5, 1.5]. The seed is fixed.

    Example:
        >>> float(sixteen_modes().weights.sum().round(decimals=12))
        1.0
    """
    rng = stream(16)
    means = np.empty((0, 2))
    while len(means) < 16:
        candidate = rng.uniform(-1.6, 1.6, 2)
        if (np.linalg.norm(means - candidate, axis=1) >= 0.55).all():
            means = np.vstack((means, candidate))
    angle = rng.uniform(0, np.pi, 16)
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack((np.stack((cos, -sin), -1), np.stack((sin, cos), -1)), -2)
    std = np.stack((rng.uniform(0.04, 0.08, 16), rng.uniform(0.08, 0.18, 16)), -1)
    scaled = rotation * std[:, None, :]
    weights = rng.uniform(0.5, 1.5, 16)
    return Modes(
        torch.from_numpy(weights / weights.sum()),
        torch.from_numpy(means),
        torch.from_numpy(scaled @ scaled.transpose(0, 2, 1)),
    )
