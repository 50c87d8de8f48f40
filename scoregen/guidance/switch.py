"""One model for each range of noise levels: experts, refiners, prompt editing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_number
from ..models import Conditions, Prediction, ScoreModel, check_model
from ..processes import Level

__all__ = ["Switch"]


class Switch(ScoreModel):
    """At time t the model of the greatest boundary that is not above t.

    Experts for ranges of noise (Balaji et al. 2022, 2211.01324) and prompts that change on the way
    (Hertz et al. 2022, 2208.01626) are the same thing: a model, its condition bound or not, for
    each range. Where times differ by sample every model is evaluated on all of them, and each
    sample takes its own. Energies differ by an unknown constant between models, so compare them
    at one level only.

    Args:
        models: boundary in t -> model, used at times from there up to the next boundary; the least
            boundary is 0. All models stand on one process.

    Raises:
        ValueError: for boundaries that leave a time without a model, or two processes.

    >>> from scoregen import VPSDE, Gaussian
    >>> low, high = (Gaussian(VPSDE(), torch.full((1,), m), 1.0) for m in (1.0, -1.0))
    >>> model = Switch({0.0: low, 0.5: high})
    >>> [round(float(model(torch.zeros(1, 1), t).x0), 2) for t in (0.1, 0.5)]
    [0.1, -0.92]
    """

    def __init__(self, models: Mapping[float, ScoreModel]):
        super().__init__()
        if not isinstance(models, Mapping) or not models:
            raise TypeError(f"models must be a mapping boundary -> model, got {models!r}")
        for boundary, model in models.items():
            check_model(model, f"the model from t = {boundary} on")
        self.sde = next(iter(models.values())).sde
        if any(model.sde != self.sde for model in models.values()):
            raise ValueError(
                f"all models must stand on one process, got {[m.sde for m in models.values()]}"
            )
        self.boundaries = tuple(
            sorted(check_number("a boundary", b, 0.0, self.sde.t_max) for b in models)
        )
        if self.boundaries[0] > 0:
            raise ValueError(
                f"times below {self.boundaries[0]:g} have no model; the least boundary must be 0"
            )
        self.models = nn.ModuleList(models[b] for b in sorted(models))
        events = {model.event for model in models.values()}
        self.event = events.pop() if len(events) == 1 else None

    @property
    def conditions(self) -> Conditions | None:
        """Those of the models, where all declare the same names and classes."""
        every = [model.conditions for model in self._models()]
        first = every[0]
        if first is None or any(
            c is None or c.null.keys() != first.null.keys() or c.classes != first.classes
            for c in every
        ):
            return None
        return first

    def check_condition(self, **condition: Any) -> None:
        for model in self._models():
            model.check_condition(**condition)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        if not isinstance(t.t, Tensor):
            return self._at(t.t).predict(x, t, **condition)
        every = [model.predict(x, t, **condition) for model in self._models()]
        chosen = every[0]
        x0, eps, spread = chosen.x0, chosen.eps, chosen.spread
        for boundary, p in zip(self.boundaries[1:], every[1:], strict=True):
            above = t.t >= boundary - _slack(t.t.dtype, self.sde.t_max)
            x0, eps = torch.where(above, p.x0, x0), torch.where(above, p.eps, eps)
            if spread is not None and p.spread is not None:
                spread = torch.where(above, p.spread, spread)
        if len({p.spread is None for p in every}) > 1:
            raise ValueError(
                "only some of the models predict their variance, so samples at times of their own "
                "would have it in part; use one time for the batch"
            )
        return Prediction(self.sde, t, x, x0=x0, eps=eps, spread=spread)

    def energy_difference(
        self, x: Tensor, y: Tensor, t: Level | float, *, nodes: int = 8, **condition: Any
    ) -> Tensor:
        level = t if isinstance(t, Level) else self.level(t, x)
        if isinstance(level.t, Tensor):
            return super().energy_difference(x, y, level, nodes=nodes, **condition)
        return self._at(level.t).energy_difference(x, y, level, nodes=nodes, **condition)

    def _models(self) -> list[ScoreModel]:
        return [model for model in self.models if isinstance(model, ScoreModel)]

    def _at(self, t: float) -> ScoreModel:
        """The model in charge at a time."""
        slack = _slack(torch.float64, self.sde.t_max)
        index = sum(boundary <= t + slack for boundary in self.boundaries) - 1
        return self._models()[index]


def _slack(dtype: torch.dtype, t_max: float) -> float:
    """Times of a grid meet a boundary up to rounding."""
    return 4 * torch.finfo(dtype).eps * max(1.0, t_max)
