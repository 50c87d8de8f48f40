"""A sampler as a table: the states it evaluates a model at, as combinations of what it knows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .._checks import check_counts, check_kind
from ..models import Prediction, ScoreModel, check_model
from ..noise import Noise
from ..processes import SDE, Level
from ..sampling import Sampler
from .levenberg import Table
from .tuned import Basis, Tuned, basis_of, identity, size

__all__ = ["as_table"]


class _Units(ScoreModel):
    """Answers evaluation j with the unit vector j + 1, and keeps the states it was given."""

    def __init__(self, sde: SDE, basis: Basis, count: int) -> None:
        super().__init__()
        self.sde, self.basis, self.count = sde, basis, count
        self.levels: list[Level] = []
        self.states: list[Tensor] = []

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        index = len(self.levels)
        self.levels.append(t)
        self.states.append(x[0] / size(t))
        out = torch.zeros_like(x)
        if index < self.count:
            out[:, index + 1] = 1.0
        if self.basis == "eps":
            return Prediction(self.sde, t, x, eps=out)
        if self.basis == "x0":
            return Prediction(self.sde, t, x, x0=out)
        return Prediction(self.sde, t, x, form=(-t.sigma / size(t), t.alpha / size(t), out))


def _no_noise(like: Tensor, t: Level, s: Level) -> Tensor:
    raise ValueError("a sampler that draws noise is no table: take a noise-free solver")


def unroll(sampler: Sampler, sde: SDE, basis: Basis, count: int) -> Table:
    """The table of a sampler that makes `count` evaluations, by running it on unit vectors.

    Every noise-free sampler with fixed coefficients is a linear map of x_T and of the outputs it
    receives; run on a model whose output j is the unit vector j + 1, from the unit vector 0, its
    own states are the rows.

    Raises:
        ValueError: if it draws noise, or makes another number of evaluations.
    """
    units = _Units(sde, basis, count)
    levels = sampler.levels(sde)
    x = torch.zeros(1, count + 1, dtype=torch.float64)
    x[0, 0] = size(levels[0])
    noise: Noise = _no_noise
    for step in sampler.iterate(units, x, noise=noise):
        x = step.x
    if len(units.levels) != count:
        raise ValueError(
            f"{sampler.solver!r} makes {len(units.levels)} evaluations on this grid, not {count}"
        )
    states = torch.stack([*units.states, x[0] / size(levels[-1])])
    rows = torch.zeros(count + 1, count + 2, dtype=torch.float64)
    rows[:, 0], rows[:, 2:] = states[:, 0], states[:, 1:]
    return Table(tuple(t.lam for t in units.levels), rows)


def packed(rows: Tensor) -> tuple[tuple[float, ...], ...]:
    """The rows without the zeros of outputs that are not known yet."""
    return tuple(tuple(row[: 2 + i].tolist()) for i, row in enumerate(rows))


def times_of(table: Table, sde: SDE) -> tuple[float, ...]:
    """The times of the levels; the process' own ends to the last bit."""
    times = [sde.level_at(lam).t for lam in table.lams]
    for i, lam in enumerate(table.lams):
        for end in (sde.t_max, sde.t_min):
            if lam == sde.level(end).lam:
                times[i] = end
    return tuple(times)


def as_table(sampler: Sampler, model: ScoreModel, event: tuple[int, ...]) -> Tuned:
    """A noise-free sampler on a grid that ends at 0, written out as the `Tuned` solver it is.

    Args:
        sampler: with fixed coefficients: no noise, no adaptive steps.
        model: the network it will run with, its condition bound if it has one.
        event: shape of one sample.

    Raises:
        ValueError: if it draws noise or does not end at 0.

    >>> from scoregen import DDIM, EDMSDE, Gaussian, Karras
    >>> model = Gaussian(EDMSDE(), torch.zeros(2), torch.ones(2))
    >>> ddim = Sampler(DDIM(), Karras(3))
    >>> table = as_table(ddim, model, (2,)).sampler()
    >>> a, b = (s.sample(model, (4, 2), dtype=torch.float64) for s in (ddim, table))
    >>> bool((a - b).abs().max() < 1e-12)
    True
    """
    check_kind("sampler", sampler, Sampler, "Sampler(DDIM(), Karras(5))")
    levels = sampler.levels(check_model(model).sde)
    event = check_counts("event", event)
    if levels[-1].sigma != 0:
        raise ValueError(f"the grid must end at 0, got t = {levels[-1].t:g}")
    count = _count(sampler, model.sde)
    table = unroll(sampler, model.sde, basis_of(model), count)
    if any(b <= a for a, b in pairwise(table.lams)):
        raise ValueError(
            f"{sampler.solver!r} evaluates the model twice at one time or back in time; only "
            "methods of one evaluation a move are tables of this kind"
        )
    network, condition = identity(model)
    return Tuned(
        times=times_of(table, model.sde),
        rows=packed(table.rows),
        basis=basis_of(model),
        event=event,
        mean=(0.0,) * int(torch.Size(event).numel()),
        process=model.sde,
        network=network,
        condition=condition,
        start=repr(sampler),
    )


def _count(sampler: Sampler, sde: SDE) -> int:
    units = _Units(sde, "v", 0)
    noise: Noise = _no_noise
    for _ in sampler.iterate(units, torch.zeros(1, 1, dtype=torch.float64), noise=noise):
        pass
    return len(units.levels)
