"""Features of a batch: in evaluation mode, without gradients, a part of the rows at a time."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from .._checks import check_callable
from .._identity import modules_within
from ..models.base import evaluating
from .estimate import checked_batch, flat

_ROWS = 2048  # rows at a time: features of a large set need not fit into memory together


@torch.no_grad()
def apply(features: Callable[[Tensor], Tensor], x: Tensor, what: str = "features") -> Tensor:
    """features(x) with every network it reaches in evaluation mode; their modes come back after."""
    with ExitStack() as modes:
        for net in modules_within(features).values():
            modes.enter_context(evaluating(net))
        parts = []
        for rows in x.split(_ROWS):
            out = features(rows)
            if not isinstance(out, Tensor) or out.ndim < 1 or len(out) != len(rows):
                got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ValueError(
                    f"{what} must map ({len(rows)}, *event) to ({len(rows)}, ...), got {got}"
                )
            parts.append(out)
    return torch.cat(parts)


def check_features(features: object) -> None:
    """Refuse what is neither None nor a function of a batch."""
    if features is not None:
        check_callable("features", features, "(n, *event) -> (n, ...), or None")


def featured(features: Callable[[Tensor], Tensor] | None, x: Tensor, which: str) -> Tensor:
    """Rows of features in float64, finite; the data themselves where there are no features."""
    if features is None:
        return flat(x)
    return flat(checked_batch(apply(features, x), f"features of the {which}", least=1))


def labelled(name: str, features: Callable[[Tensor], Tensor] | None) -> str:
    """Name of a metric with that of its features."""
    if features is None:
        return name
    return f"{name}({getattr(features, '__name__', type(features).__name__)})"
