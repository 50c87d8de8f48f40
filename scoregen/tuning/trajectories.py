"""The fine trajectories of a network, and its outputs along other ones, in w = x / hypot(a, s)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..densities import Analytic
from ..grids import SinhLam, UniformLam
from ..models import ScoreModel
from ..noise import ReplayNoise, SampleNoise
from ..sampling import Sampler
from ..solvers import AngularAB, EulerStart, UniPC
from .levenberg import Data
from .tuned import basis_of, out_of, size

_MOVES = 60  # of a trajectory whose end is a target
_ROWS = 256  # evaluated at once: larger batches leave the cache


class Trajectories:
    """Where the targets of a fit come from: a network under its conditions, row by row."""

    def __init__(
        self, model: ScoreModel, event: tuple[int, ...], condition: dict[str, Any], seed: int
    ) -> None:
        self.model, self.sde, self.event = model, model.sde, event
        self.condition, self.seed = condition, seed
        self.basis = basis_of(model)
        self.device, dtype = model.placement()
        # exact densities on the host are worth float64; networks run in their own precision
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.bounds = self._bounds()
        model.check_condition(**self._of(torch.arange(1)))

    def _bounds(self) -> tuple[float, float]:
        """Least and greatest log(alpha / sigma) where the network may be evaluated."""
        ends = []
        for t, inside in (
            (self.sde.t_max, 0.999 * self.sde.t_max),
            (self.sde.t_min, 1e-3 * self.sde.t_max),
        ):
            lam = self.sde.level(t).lam
            ends.append(lam if math.isfinite(lam) else self.sde.level(inside).lam)
        return ends[0], ends[1]

    def _of(self, rows: Tensor) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for name, value in self.condition.items():
            if isinstance(value, Tensor) and value.dim():
                given[name] = value.to(self.device)[(rows % len(value)).to(self.device)]
            elif isinstance(value, int) and not isinstance(value, bool):
                given[name] = torch.full((len(rows),), value, device=self.device)
            else:
                given[name] = value
        return given

    def bound(self, rows: Tensor) -> ScoreModel:
        """The model under the conditions of these trajectories."""
        return self.model.given(**self._of(rows))

    def out(self, w: Tensor, lam: float, rows: Tensor) -> Tensor:
        """The network's outputs at w on a level, shape (R, d), float64."""
        t = self.sde.level_at(lam)
        x = (size(t) * w).reshape(len(w), *self.event)
        outs = []
        for part, mine in zip(x.split(_ROWS), rows.split(_ROWS), strict=True):
            p = self.bound(mine)(part.to(self.device, self.dtype), t)
            outs.append(out_of(p, self.basis).to("cpu", torch.float64).flatten(1))
        return torch.cat(outs)

    def data(self, first: int, count: int, mean: Tensor | None = None) -> Data:
        """Trajectories first .. first + count - 1 of the seed."""
        rows = torch.arange(first, first + count)
        like = torch.empty((count, *self.event), dtype=torch.float64)
        t = self.sde.level(self.sde.t_max)
        z = SampleNoise(self.seed, first)(like, t, t)
        x = (self.sde.prior_std(t.t) * z).to(self.device, self.dtype)
        if isinstance(self.model, Analytic):
            fine = Sampler(EulerStart(AngularAB(4, smooth_end=True)), SinhLam(_MOVES))
        else:
            fine = Sampler(UniPC(2), UniformLam(_MOVES))
        ends = torch.cat(
            [
                fine.run(self.bound(mine), part, noise=ReplayNoise([]))
                for part, mine in zip(x.split(_ROWS), rows.split(_ROWS), strict=True)
            ]
        )
        first_w = x.to("cpu", torch.float64).flatten(1) / size(t)
        last = ends.to("cpu", torch.float64).flatten(1)
        centre = last.mean(0) if mean is None else mean
        return Data(self.out, self.bounds, rows, first_w, last, centre)
