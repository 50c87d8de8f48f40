"""What a training checks and changes of its batches: their scale, and dropped conditions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from .._checks import check_kind, check_number
from .._rows import against, moved
from ..models import Conditions, ScoreModel
from ..models.conditions import fill, join
from ..models.conditions import rows as rows_of
from ..processes import StaticSDE

__all__ = ["ConditionDropout", "warn_of_scale"]


def warn_of_scale(model: ScoreModel, mean_square: float) -> None:
    """Warn where the data have not vanished at t_max: samples start from the wrong law.

        alpha(T)^2 E|x|^2 / (d sigma(T)^2) > 1e-2

    Args:
        model: what is trained.
        mean_square: E|x|^2 / d of the data.

    >>> from scoregen import MLP, V, VPSDE, ScoreNetwork
    >>> warn_of_scale(ScoreNetwork(MLP(hidden=8), VPSDE(), V()), mean_square=1.0)
    """
    if isinstance(model.sde, StaticSDE):
        return
    last = model.sde.level(model.sde.t_max)
    left = (last.alpha / last.sigma) ** 2 * mean_square
    if left > 1e-2:
        warnings.warn(
            f"at t_max = {last.t:g} the data still have {left:.2g} of the noise's power, "
            "alpha^2 E|x|^2 / (d sigma^2), and sampling starts as if it were 0: train on "
            "data.standardised(), or take a process with more noise",
            UserWarning,
            stacklevel=3,
        )


class ConditionDropout:
    """Replaces each condition of some samples by its null value, as guidance needs it.

    With probability p_c, independently for every sample and condition c (Ho & Salimans 2022,
    2207.12598, Algorithm 1). Which samples is a function of (key, name, row), whatever the device
    and the number of processes.

    Args:
        share: name -> p_c in [0, 1]; conditions that are not named are never replaced.
        known: what the network declares: its null values.

    Raises:
        ValueError: for a share outside [0, 1], or of a condition without a null value.

    >>> dropout = ConditionDropout({"label": 0.5}, Conditions.labels(10))
    >>> dropout({"label": torch.zeros(4, dtype=torch.int64)}, key=1, batch=4, rows=slice(0, 4))
    {'label': tensor([10,  0, 10, 10])}
    """

    def __init__(self, share: Mapping[str, float], known: Conditions):
        check_kind("dropout", share, Mapping, '{"label": 0.1}')
        self.null = known.null
        for name in share:
            if name not in self.null:
                names = ", ".join(map(repr, self.null)) or "none"
                raise ValueError(
                    f"dropout of {name!r} needs its null value, and the network declares {names}: "
                    f'give it by ScoreNetwork(..., conditions=Conditions({{"{name}": null}}))'
                )
        # the labels are drawn first: their draws do not change when another condition is dropped
        ordered = sorted(share, key=lambda name: (name != "label", name))
        self.share = {
            name: check_number(f"dropout[{name!r}]", share[name], 0, 1) for name in ordered
        }

    def __call__(
        self, condition: Mapping[str, Any], *, key: int, batch: int, rows: slice
    ) -> dict[str, Any]:
        """The conditions of some rows of a batch, parts of them replaced.

        Args:
            condition: of the rows at hand, name -> value, one entry per sample.
            key: of the step, the same in every process.
            batch: samples of the step over all processes.
            rows: which of them are at hand.

        Raises:
            ValueError: for a null value that does not fit its condition.
        """
        given = dict(condition)
        # a stream of its own: the times and the noise are the same with and without dropout
        own = torch.Generator().manual_seed(key ^ 1)
        for name, share in self.share.items():
            hidden = torch.rand(batch, generator=own)[rows] < share
            if name in given and share > 0:
                given[name] = _replaced(given[name], self.null[name], hidden, name)
        return given


def _replaced(value: Any, null: Any, hidden: torch.Tensor, name: str) -> Any:
    """The value in some rows and the null in the others."""
    filled = fill(null, value, name)
    if isinstance(value, torch.Tensor) and isinstance(filled, torch.Tensor):
        alike = value.shape == filled.shape and value.dtype == filled.dtype
        if alike and value.shape[:1] == hidden.shape:
            return torch.where(against(moved(hidden, value.device), value), filled, value)
    # rows of the two on top of each other
    n = len(hidden)
    both = join({name: value}, {name: filled}, n)
    if both is None:
        raise ValueError(
            f"the null of {name!r} does not fit the condition, which must hold one entry per "
            "sample: declare a null of one entry's shape"
        )
    return rows_of(both, torch.arange(n) + n * hidden, 2 * n)[name]
