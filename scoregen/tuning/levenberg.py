"""Robust Levenberg and Marquardt for the rows and times of a table, by forward sensitivities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Data", "Point", "Table", "improve", "robust"]

_NUDGE = 2e-3  # of the differences: relative to the size of a tangent, and in lam
_REACH = 1.0  # longest step in lam
_GAP = 0.02  # least distance of two neighbouring times in lam
_DAMPING = 1e-2  # at the start; divided by 6 after a success, multiplied by 5 after a failure
_TRIES = 8
_ENOUGH = 0.005  # two iterations that gain less, relatively, are the last
_MEMORY = 1 << 25  # float64 numbers of the tangents held at once


class Data(NamedTuple):
    """What a table is fitted to, in w = x / hypot(alpha, sigma), float64 on the host.

    Attributes:
        out: (w, lam, rows) -> outputs of the network, (R, d) each.
        bounds: least and greatest lam.
        rows: indices of the trajectories, (K,).
        first: starts, (K, d).
        last: targets, (K, d).
        mean: (d,).

    >>> Data._fields[0]
    'out'
    """

    out: Callable[[Tensor, float, Tensor], Tensor]
    bounds: tuple[float, float]
    rows: Tensor
    first: Tensor
    last: Tensor
    mean: Tensor

    def part(self, chosen: slice) -> Data:
        """Some of the trajectories."""
        return self._replace(
            rows=self.rows[chosen], first=self.first[chosen], last=self.last[chosen]
        )

    def head(self, count: int) -> Data:
        """The first `count` trajectories, or all there are."""
        return self.part(slice(0, count))

    def joined(self, other: Data) -> Data:
        """These trajectories and others of the same network."""
        return self._replace(
            rows=torch.cat([self.rows, other.rows]),
            first=torch.cat([self.first, other.first]),
            last=torch.cat([self.last, other.last]),
        )


class Table(NamedTuple):
    """n levels and n + 1 rows over (x_T, mean, out_0 .. out_(n-1)), n + 2 wide, float64.

    >>> Table((0.0,), torch.zeros(2, 3)).lams
    (0.0,)
    """

    lams: tuple[float, ...]
    rows: Tensor

    def along(self, data: Data) -> Point:
        """Run the table: what becomes known along it, and the error of each trajectory."""
        n = len(self.lams)
        known = torch.zeros(n + 2, *data.first.shape, dtype=torch.float64)
        known[0], known[1] = data.first, data.mean
        for i, lam in enumerate(self.lams):
            known[i + 2] = data.out(state(self.rows[i], known), lam, data.rows)
        return Point(self, known, _squares(self.rows[n], known, data))


class Point(NamedTuple):
    """A table, what is known along it (n + 2, K, d), and each trajectory's mean square error (K,).

    >>> Point._fields
    ('table', 'known', 'squares')
    """

    table: Table
    known: Tensor
    squares: Tensor

    def solved(self, data: Data) -> Point:
        """The same with the last row by robust least squares, which costs no evaluation."""
        wide = self.known.flatten(1).mT  # (K d, n + 2)
        scale = wide.square().mean(0).sqrt().clamp(min=1e-300)
        squares, row = self.squares, self.table.rows[-1]
        best, least = self, math.inf
        for _ in range(4):
            weight = weights(squares).sqrt().repeat_interleave(data.first.shape[1])[:, None]
            solved = torch.linalg.lstsq(
                weight * wide / scale,
                weight * data.last.reshape(-1, 1),
                driver="gelsd",
                rcond=1e-12,
            )
            row = solved.solution[:, 0] / scale
            squares = _squares(row, self.known, data)
            unit = 4 * float(squares.median())
            if least == math.inf or robust(squares, unit) < robust(best.squares, unit):
                rows = self.table.rows.clone()
                rows[-1] = row
                best, least = Point(self.table._replace(rows=rows), self.known, squares), 0.0
        return best


def state(row: Tensor, known: Tensor) -> Tensor:
    """sum_m row_m known_m, (K, d)."""
    return torch.tensordot(row, known, 1)


def _squares(row: Tensor, known: Tensor, data: Data) -> Tensor:
    return (state(row, known) - data.last).square().mean(1)


def weights(squares: Tensor, scale: float | None = None) -> Tensor:
    """1 / (1 + e / s), of the loss s log(1 + e / s) with s = 4 median(e): Cauchy's."""
    unit = 4 * float(squares.median()) if scale is None else scale
    return 1 / (1 + squares / max(unit, 1e-300))


def robust(squares: Tensor, scale: float) -> float:
    """The mean of s log(1 + e / s).

    >>> round(robust(torch.tensor([1.0, 1.0]), 1.0), 4)
    0.6931
    """
    unit = max(scale, 1e-300)
    value = unit * float((squares / unit).log1p().mean())
    return value if math.isfinite(value) else math.inf


def improve(table: Table, data: Data, iterations: int, bar: Any) -> Table:
    """At most so many iterations; the result is never worse on `data`.

    >>> from contextlib import nullcontext
    >>> improve(Table((0.0,), torch.zeros(2, 3)), None, 0, nullcontext()).lams
    (0.0,)
    """
    if iterations == 0:
        return table
    point = table.along(data)
    point = min((point, point.solved(data)), key=lambda p: robust(p.squares, _unit(point)))
    damping, idle = _DAMPING, 0
    for _ in range(iterations):
        unit = _unit(point)
        now = robust(point.squares, unit)
        a, g = _normal(point, data, weights(point.squares, unit))
        found = None
        for _ in range(_TRIES):
            moved = _moved(point.table, _step(point.table, a, g, damping, data.bounds), data.bounds)
            trial = moved.along(data).solved(data)
            if robust(trial.squares, unit) < now:
                found = trial
                damping /= 6
                break
            damping *= 5
        bar.update(1)
        if found is None:
            break
        gain = 1 - robust(found.squares, unit) / now
        point = found
        bar.set_postfix(rms=f"{float(point.squares.mean().sqrt()):.3g}")
        idle = idle + 1 if gain < _ENOUGH else 0
        if idle == 2:
            break
    return point.table


def _unit(point: Point) -> float:
    return 4 * float(point.squares.median())


def _places(n: int) -> list[tuple[int, int]]:
    """(row, column) of every weight but those of the last row."""
    return [(i, m) for i in range(n) for m in range(i + 2)]


def _normal(point: Point, data: Data, weight: Tensor) -> tuple[Tensor, Tensor]:
    """J'WJ and J'Wr over weights, times and the last row, a part of the trajectories at a time."""
    n, (count, d) = len(point.table.lams), data.first.shape
    parameters = len(_places(n)) + n + n + 2
    each = max(1, _MEMORY // (parameters * n * d))
    a = torch.zeros(parameters, parameters, dtype=torch.float64)
    g = torch.zeros(parameters, dtype=torch.float64)
    for low in range(0, count, each):
        chosen = slice(low, low + each)
        known = point.known[:, chosen]
        j = _jacobian(point.table, known, data.part(chosen)).flatten(1)
        w = weight[chosen].repeat_interleave(d)
        r = (state(point.table.rows[n], known) - data.last[chosen]).flatten()
        a += (j * w) @ j.mT
        g += (j * w) @ r
    return a, g


def _jacobian(table: Table, known: Tensor, data: Data) -> Tensor:
    """d output / d (weights, times, last row), (P, K, d), by one-sided differences.

    A parameter of row i moves the states from i on, and each moved state costs one evaluation: the
    tangents of all states are carried forward together.
    """
    n, k = len(table.lams), len(data.rows)
    places = _places(n)
    first = {i: next(p for p, (row, _) in enumerate(places) if row == i) for i in range(n)}
    tangents = torch.zeros(n, len(places) + n, *data.first.shape, dtype=torch.float64)
    for i, lam in enumerate(table.lams):
        w = state(table.rows[i], known)
        moved = torch.tensordot(table.rows[i, 2 : 2 + i], tangents[:i], 1) if i else tangents[0]
        moved = moved.clone()
        for m in range(i + 2):
            moved[first[i] + m] = known[m]
        sizes = moved.square().mean((1, 2)).sqrt()
        live = [p for p in range(len(moved)) if float(sizes[p]) > 0]
        h = _NUDGE / sizes[live]
        near = (w + h[:, None, None] * moved[live]).flatten(0, 1)
        out = data.out(near, lam, data.rows.repeat(len(live))).reshape(len(live), k, -1)
        tangents[i, live] = (out - known[i + 2]) / h[:, None, None]
        up = _NUDGE if lam + _NUDGE <= data.bounds[1] else -_NUDGE
        tangents[i, len(places) + i] = (data.out(w, lam + up, data.rows) - known[i + 2]) / up
    return torch.cat([torch.tensordot(table.rows[n, 2:], tangents, 1), known])


def _step(
    table: Table, a: Tensor, g: Tensor, damping: float, bounds: tuple[float, float]
) -> Tensor:
    """-(A + mu diag A)^-1 g; times that would leave their bounds are held and the rest solved."""
    n = len(table.lams)
    times = len(_places(n))
    scale = a.diagonal().sqrt()
    free = scale > 1e-12 * scale.max()
    while True:
        step = torch.zeros_like(g)
        s = scale[free]
        system = a[free][:, free] / s / s[:, None]
        system.diagonal().add_(damping)
        step[free] = -torch.linalg.solve(system, g[free] / s) / s
        held = [
            times + i
            for i, lam in enumerate(table.lams)
            if (lam <= bounds[0] and step[times + i] < 0)
            or (lam >= bounds[1] and step[times + i] > 0)
        ]
        if not held:
            return step
        free[held] = False


def _moved(table: Table, step: Tensor, bounds: tuple[float, float]) -> Table:
    """The table after a step, shortened where a time moves too far; times keep their order."""
    n = len(table.lams)
    places = _places(n)
    change = step[len(places) : len(places) + n]
    step = step / max(1.0, float(change.abs().max()) / _REACH)
    rows, lams = table.rows.clone(), list(table.lams)
    for (i, m), value in zip(places, step.tolist(), strict=False):
        rows[i, m] += value
    for i in range(n):
        lowest = bounds[0] if i == 0 else lams[i - 1] + _GAP
        highest = bounds[1] - (n - 1 - i) * _GAP
        lams[i] = min(max(lams[i] + float(step[len(places) + i]), lowest), highest)
    return Table(tuple(lams), rows)
