"""Features of a batch: in evaluation mode, without gradients, a part of the rows at a time."""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_callable
from ..models.base import evaluating
from .estimate import checked_batch, flat

_ROWS = 2048  # rows at a time: features of a large set need not fit into memory together


def networks(thing: Any, seen: set[int] | None = None) -> Iterator[nn.Module]:
    """The networks that a callable reaches: itself, its owner, arguments, closure or attributes."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    inner: tuple[Any, ...] = ()
    if isinstance(thing, nn.Module):
        yield thing
    elif isinstance(thing, types.MethodType):
        inner = (thing.__self__,)
    elif isinstance(thing, functools.partial):
        inner = (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, types.FunctionType):
        named = (thing.__globals__.get(name) for name in thing.__code__.co_names)
        filled = (cell for cell in thing.__closure__ or () if cell != types.CellType())
        inner = (*(cell.cell_contents for cell in filled), *named, *(thing.__defaults__ or ()))
    elif isinstance(thing, list | tuple):
        inner = tuple(thing)
    elif isinstance(thing, dict):
        inner = tuple(thing.values())
    elif not isinstance(thing, type | types.ModuleType):
        inner = tuple(getattr(thing, "__dict__", {}).values())
    for part in inner:
        yield from networks(part, seen)


@torch.no_grad()
def apply(features: Callable[[Tensor], Tensor], x: Tensor, what: str = "features") -> Tensor:
    """features(x) with every network it reaches in evaluation mode; their modes come back after."""
    with ExitStack() as modes:
        for net in networks(features):
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
