"""Counting the evaluations of a model."""

from __future__ import annotations

import threading
from typing import Self

from torch import Tensor

from ..processes import Level
from .base import COUNTERS, ScoreModel, check_model
from .prediction import Prediction

__all__ = ["Counted"]


class Counted:
    """Counts evaluations: rows that the leaves of a model predict, inside a `with` block.

    Guidance that evaluates two branches counts two, correctors and rejected steps count too. Only
    the thread that entered the block is counted; blocks may nest.

    Args:
        model: any score model; the models it is made of are found among its modules.

    >>> from scoregen import DDIM, VPSDE, Gaussian, Sampler, UniformTime
    >>> import torch
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> with Counted(model) as count:
    ...     _ = Sampler(DDIM(), UniformTime(10)).sample(model, (4, 2), seed=0)
    >>> count.rows / 4
    10.0
    """

    def __init__(self, model: ScoreModel):
        check_model(model)
        models = [m for m in model.modules() if isinstance(m, ScoreModel)]
        # compared by identity, and kept alive so that no identity is used twice
        self._leaves = {
            id(m): m for m in models if sum(isinstance(c, ScoreModel) for c in m.modules()) == 1
        }
        self.rows = 0
        self._thread = 0

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        COUNTERS.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        COUNTERS.remove(self)

    def watches(self, model: ScoreModel) -> bool:
        """Whether an evaluation of this model, here and now, is one to count."""
        return id(model) in self._leaves and self._thread == threading.get_ident()

    def note(self, x: Tensor, t: Level) -> Prediction | None:
        """Count an evaluation; a prediction returned here stands in for the model's own."""
        self.rows += len(x)
        return None
