"""Fidelity and coverage by nearest neighbours: whose samples lie among whose."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .._checks import check_count
from .estimate import Direction, Estimate, Measured, TwoSample, checked_batch, checked_pair
from .features import check_features, featured, labelled

__all__ = ["Coverage", "Density", "Precision", "Recall"]

_SPLITS = 20


def _radii(distances: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th neighbour within its own set; itself does not count."""
    return distances.kthvalue(k + 1, dim=1).values


@dataclass(frozen=True)
class _Neighbours(TwoSample):
    """Share of points inside the balls that reach to each point's k-th neighbour.

    Standard errors come from 20 random splits of samples and reference into halves (a, b):

        stderr^2 = mean over splits of (value_a - value_b)^2 / 4

    since a half has twice the variance of the whole, and its larger radii are in both values alike.
    A jackknife of the same cost was up to twice too large: radii are not smooth in the points.
    Intervals of a comparison are given the reference and come from the samples' influence. Memory
    is O((n + m)^2).
    """

    features: Callable[[Tensor], Tensor] | None = None
    neighbours: int = 5
    direction: ClassVar[Direction] = "higher"
    biased: ClassVar[bool] = True
    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_features(self.features)
        check_count("neighbours", self.neighbours)

    @property
    def name(self) -> str:
        """Name to print, with the number of neighbours and the features."""
        return labelled(f"{self.kind}-k{self.neighbours}", self.features)

    def _value(self, xx: Tensor, xy: Tensor, yy: Tensor) -> tuple[float, Tensor | None]:
        """Value and influence from distances among samples, to and among reference points."""
        raise NotImplementedError

    def against(self, reference: Tensor) -> Callable[[Tensor], Measured]:
        """The measurement against one reference (m, *event), whose distances are found once."""
        y = featured(self.features, checked_batch(reference, "reference"), "reference")
        self._check(len(y), "reference points")
        yy = torch.cdist(y, y)

        def measure(samples: Tensor) -> Measured:
            checked_pair(samples, reference)
            self._check(len(samples), "samples")
            x = featured(self.features, samples, "samples")
            xx, xy = torch.cdist(x, x), torch.cdist(x, y)
            value, influence = self._value(xx, xy, yy)
            differences = []
            for rows, points in zip(_splits(len(x)), _splits(len(y)), strict=True):
                parts = [
                    self._value(xx[i][:, i], xy[i][:, j], yy[j][:, j])[0]
                    for i, j in zip(rows.to(x.device), points.to(x.device), strict=True)
                ]
                differences.append(parts[0] - parts[1])
            variance = sum(d * d for d in differences) / (4 * _SPLITS)
            return Measured(Estimate(value, math.sqrt(variance)), influence)

        return measure

    def _check(self, count: int, which: str) -> None:
        least = 20 + 2 * self.neighbours
        if count < least:
            raise ValueError(
                f"{self.neighbours} neighbours in either half need at least {least} {which}, got "
                f"{count}"
            )


def _splits(count: int) -> Iterator[Tensor]:
    """Random halves of so many rows, each time shape (2, count // 2); the same at each call."""
    draws = np.random.Generator(np.random.Philox(key=count))
    for _ in range(_SPLITS):
        order = torch.from_numpy(draws.permutation(count))
        yield order[: count // 2 * 2].reshape(2, -1)


@dataclass(frozen=True)
class Precision(_Neighbours):
    """Share of samples that lie among real data: inside a ball around some reference point.

    ``mean_j [exists i: |x_j - y_i| <= r_k(y_i)]`` with r_k(y) the distance from y to its k-th
    neighbour in the reference.

    Args:
        features: Maps a batch (n, *event) to features (n, ...); None takes the data themselves.
        neighbours: k; 3 as published.

    Raises:
        ValueError: Fewer than 20 + 2 k samples or reference points, or samples unfit.
        TypeError: Integer samples.

    Source: Kynkaanniemi et al. (2019), arXiv 1904.06991.

    >>> x = torch.linspace(0, 1, 50)
    >>> Precision()(x, x).value, Precision()(x + 5, x).value
    (1.0, 0.0)
    """

    neighbours: int = 3
    kind: ClassVar[str] = "precision"

    def _value(self, xx: Tensor, xy: Tensor, yy: Tensor) -> tuple[float, Tensor | None]:
        inside = (xy <= _radii(yy, self.neighbours)).any(1).to(xy.dtype)
        return float(inside.mean()), inside


@dataclass(frozen=True)
class Recall(_Neighbours):
    """Share of real data that lie among the samples: inside a ball around some sample.

    ``mean_i [exists j: |y_i - x_j| <= r_k(x_j)]`` with r_k(x) the distance from x to its k-th
    neighbour among the samples. Samples of pure noise have large balls, so read it beside
    :class:`Precision`.

    Args:
        features: As in :class:`Precision`.
        neighbours: k; 3 as published.

    Raises:
        ValueError: As :class:`Precision`.
        TypeError: Integer samples.

    Source: Kynkaanniemi et al. (2019), arXiv 1904.06991.

    >>> x = torch.linspace(0, 1, 50)
    >>> print(f"{Recall()(x[:30], x).value:.2f}")
    0.66
    """

    neighbours: int = 3
    kind: ClassVar[str] = "recall"

    def _value(self, xx: Tensor, xy: Tensor, yy: Tensor) -> tuple[float, Tensor | None]:
        inside = (xy <= _radii(xx, self.neighbours)[:, None]).any(0)
        return float(inside.to(xy.dtype).mean()), None


@dataclass(frozen=True)
class Density(_Neighbours):
    """How many balls around real data a sample lies in, over k: about 1 for real data.

    ``(1 / k) mean_j #{i: |x_j - y_i| < r_k(y_i)}``; may exceed 1 where samples crowd together.

    Args:
        features: As in :class:`Precision`.
        neighbours: k; 5 as published.

    Raises:
        ValueError: As :class:`Precision`.
        TypeError: Integer samples.

    Source: Naeem et al. (2020), arXiv 2002.09797.

    >>> x = torch.linspace(0, 1, 50)
    >>> Density()(x + 5, x).value
    0.0
    """

    kind: ClassVar[str] = "density"

    def _value(self, xx: Tensor, xy: Tensor, yy: Tensor) -> tuple[float, Tensor | None]:
        balls = (xy < _radii(yy, self.neighbours)).to(xy.dtype).sum(1) / self.neighbours
        return float(balls.mean()), balls


@dataclass(frozen=True)
class Coverage(_Neighbours):
    """Share of real data whose ball holds a sample.

    ``mean_i [exists j: |x_j - y_i| < r_k(y_i)]``; for perfect samples as many as the reference
    it is about 1 - 2^-k.

    Args:
        features: As in :class:`Precision`.
        neighbours: k; 5 as published.

    Raises:
        ValueError: As :class:`Precision`.
        TypeError: Integer samples.

    Source: Naeem et al. (2020), arXiv 2002.09797.

    >>> x = torch.linspace(0, 1, 50)
    >>> Coverage()(x, x).value
    1.0
    """

    kind: ClassVar[str] = "coverage"

    def _value(self, xx: Tensor, xy: Tensor, yy: Tensor) -> tuple[float, Tensor | None]:
        inside = xy < _radii(yy, self.neighbours)
        counts = inside.sum(0)
        # what is lost without sample j: the balls that hold no other
        lost = (inside & (counts == 1)).to(xy.dtype).mean(1)
        return float((counts > 0).to(xy.dtype).mean()), len(xy) * lost
