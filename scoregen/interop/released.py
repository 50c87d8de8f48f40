"""Tuned solvers inside other programs, where the network cannot be seen before it is evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver
from ..tuning import Tuned

__all__ = ["Looped", "Released", "released"]


@dataclass(frozen=True)
class Released(Tuned):
    """`Tuned` without the check of its network, on levels of the same sigma / alpha.

    A program's own process may differ (k-diffusion's state is x / alpha) and its times be rounded
    to float32; the weights are of sigma / alpha alone.

    >>> from scoregen import DDIM, EDMSDE, Gaussian, Karras, Sampler
    >>> import torch
    >>> from scoregen.tuning import as_table
    >>> tuned = as_table(Sampler(DDIM(), Karras(3)), Gaussian(EDMSDE(), torch.zeros(2), 1.0), (2,))
    >>> released(tuned).at(tuned.process.level(tuned.times[1] * (1 + 1e-8)), 1)
    True
    """

    def at(self, t: Level, index: int) -> bool:
        return math.isclose(t.lam, self.process.level(self.times[index]).lam, abs_tol=1e-6)

    def _check(self, model: ScoreModel, x: Tensor) -> None:
        if x.shape[1:] != self.event:
            raise ValueError(f"fitted to events {self.event}, got x of shape {tuple(x.shape)}")


@dataclass(frozen=True)
class Looped(Released):
    """`Released` for loops that evaluate the network once in every move.

    Where a tuned solver's first move has no evaluation, one is made and left unused.

    >>> Looped.__bases__ == (Released,)
    True
    """

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if state is None and not self.at(t, 0):
            model(x, t)
        return super().step(model, x, t, s, state, noise)


def released(solver: Solver, kind: type[Released] = Released) -> Solver:
    """A solver as it leaves for another program: a tuned one without the check of its network.

    >>> from scoregen import DDIM
    >>> released(DDIM())
    DDIM(eta=0.0)
    """
    if not isinstance(solver, Tuned):
        return solver
    return kind(**{f.name: getattr(solver, f.name) for f in fields(solver)})
