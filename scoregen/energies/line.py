"""The line integral of a score: the difference of an energy that is not known."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._checks import check_count, check_data, check_number, check_same_shape
from ..models import ScoreModel
from ..models.base import check_model
from ..processes import Level

__all__ = ["LineIntegral", "line_integral"]


class LineIntegral(NamedTuple):
    """E(y) - E(x) and an estimate of its absolute error, each of shape (batch,).

    >>> LineIntegral(torch.zeros(1), torch.zeros(1)).error
    tensor([0.])
    """

    difference: Tensor
    error: Tensor


class _Rule(NamedTuple):
    """Gauss-Legendre on [0, 1], and the two rules on every other of its nodes."""

    points: tuple[float, ...]
    full: tuple[float, ...]
    halves: tuple[tuple[float, ...], tuple[float, ...]]


@lru_cache
def _rule(nodes: int) -> _Rule:
    points, weights = np.polynomial.legendre.leggauss(nodes)
    halves = []
    for first in (0, 1):
        chosen = points[first::2]
        # exact for every polynomial that as many nodes can fix: int P_k over [-1, 1] is 2 delta_k0
        basis = np.polynomial.legendre.legvander(chosen, len(chosen) - 1).T
        half = np.zeros(nodes)
        if len(chosen):
            half[first::2] = np.linalg.solve(basis, 2.0 * np.eye(len(chosen))[0])
        halves.append(tuple((half / 2).tolist()))
    fine = tuple((weights / 2).tolist())
    return _Rule(tuple(((points + 1) / 2).tolist()), fine, (halves[0], halves[1]))


def part_integral(
    model: ScoreModel,
    x: Tensor,
    y: Tensor,
    level: Level,
    ends: tuple[Tensor, Tensor],
    nodes: int,
    condition: dict[str, Any],
) -> Tensor:
    """(difference, error, size) over the part [a, b] of each row's segment, shape (3, batch)."""
    a, b = ends
    rule = _rule(nodes)
    length, step = b - a, y - x
    full, odd, even, size = (x.new_zeros(len(x)) for _ in range(4))
    for i, u in enumerate(rule.points):
        at = x + (a + u * length).reshape(-1, *(1,) * (x.dim() - 1)) * step
        score = model.predict(at, level, **condition).score
        slope = length * (score * step).reshape(len(x), x.shape[1:].numel()).sum(1)
        full = full - rule.full[i] * slope
        odd = odd - rule.halves[0][i] * slope
        even = even - rule.halves[1][i] * slope
        size = size + rule.full[i] * slope.abs()
    error = torch.maximum((full - odd).abs(), (full - even).abs())
    # differences of energies of order 1 are themselves known to rounding only
    rounding = 8 * torch.finfo(x.dtype).eps * (length + size)
    return torch.stack([full, error + rounding, size])


def line_integral(
    model: ScoreModel,
    x: Tensor,
    y: Tensor,
    t: Level | float,
    *,
    nodes: int = 16,
    pieces: int = 1,
    tolerance: float = 1e-4,
    halvings: int = 64,
    **condition: Any,
) -> LineIntegral:
    """E(y) - E(x) = -int_0^1 score(x + u (y - x)) . (y - x) du, with an error estimate.

    Gauss-Legendre on each of `pieces` equal parts of the segment; the part with the largest error
    is halved, row by row, until no row's error exceeds the tolerance (or rounding), at most
    `halvings` times. The error of a part is the larger of the differences from the two rules on
    every other node, plus rounding; they cost nothing, and are far worse than the rule returned.
    Costs nodes x (pieces + 2 x halvings done) evaluations.

    Args:
        model: any score model.
        x: start points, shape (batch, *event).
        y: end points, shaped like x.
        t: level or time.
        nodes: an even number of nodes in each part.
        pieces: parts of the segment at first.
        tolerance: error in nats that is good enough; inf halves nothing.
        halvings: most halvings of a row's segment; if they do not suffice, the error is larger.

    >>> from scoregen import EDMSDE, Gaussian
    >>> model = Gaussian(EDMSDE(), torch.zeros(1), 1.0)
    >>> zero, two = torch.zeros(1, 1).double(), torch.full((1, 1), 2.0).double()
    >>> round(line_integral(model, zero, two, 0.0).difference.item(), 9)
    2.0
    """
    check_model(model)
    check_data(x)
    check_same_shape("y", check_data(y, "y"), x)
    if check_count("nodes", nodes, 2) % 2:
        raise ValueError(f"nodes must be even, so that half of them check the rule, got {nodes}")
    check_count("pieces", pieces)
    check_number("tolerance", tolerance, 0.0, infinite=True)
    check_count("halvings", halvings, 0)
    level = t if isinstance(t, Level) else model.level(t, x)

    def part(a: Tensor, b: Tensor) -> Tensor:
        return part_integral(model, x, y, level, (a, b), nodes, condition)

    edges = [x.new_full((len(x),), k / pieces) for k in range(pieces + 1)]
    ends = torch.stack([torch.stack(pair) for pair in pairwise(edges)])  # (parts, 2, batch)
    found = torch.stack([part(a, b) for a, b in ends])  # (parts, 3, batch)
    for _ in range(halvings if tolerance < math.inf and len(x) else 0):
        worst = found[:, 1].argmax(0)
        good = 16 * torch.finfo(x.dtype).eps * (1 + found[:, 2].sum(0))
        error = found[:, 1].sum(0)
        open_rows = (error > good) & (error > tolerance)
        if not bool(open_rows.any()):
            break
        rows = torch.arange(len(x), device=x.device)
        a, b = ends[worst, 0, rows], ends[worst, 1, rows]
        middle = torch.where(open_rows, (a + b) / 2, b)  # a closed row gains a part of no length
        left, right = part(a, middle), part(middle, b)
        keep = torch.where(open_rows, left, found[worst, :, rows].mT)
        found = found.clone()
        found[worst, :, rows] = keep.mT
        ends = ends.clone()
        ends[worst, 1, rows] = middle
        ends = torch.cat([ends, torch.stack([middle, b]).unsqueeze(0)])
        found = torch.cat([found, torch.where(open_rows, right, 0.0).unsqueeze(0)])
    return LineIntegral(found[:, 0].sum(0), found[:, 1].sum(0))
