"""What an importer returns: a score model with a card, and the way back to its origin's sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .._checks import (
    check_callable,
    check_count,
    check_counts,
    check_entries,
    check_kind,
    check_range,
    shown,
)
from ..models import Conditions, ScoreModel, ScoreNetwork
from ..models.base import Given
from ..models.clocks import Clock
from ..models.network import check_network
from ..models.parameterization import Parameterization
from ..processes import SDE
from ..sampling import Sampler

__all__ = ["Adapter", "Card", "Imported", "Recipe", "as_origin"]

Recipe = Callable[[ScoreModel, int], tuple[ScoreModel, Sampler]]


@dataclass(frozen=True)
class Card:
    """What an importer found, and what it leaves behind.

    Args:
        origin: library and class.
        data_range: least and greatest value of the data, or None where it has none.
        event: shape of one sample, or None where the origin does not state it.
        conditions: (name, null value in words) of each condition.
        times: at which noise levels the network was trained.
        sampling: the origin's own sampling defaults, which `as_origin` restores.
        dropped: what the origin would do unasked and this model does not.

    >>> print(Card("a library", (-1.0, 1.0), times="sigma in [0.002, 80]"))
    origin      a library
    data        [-1, 1]
    times       sigma in [0.002, 80]
    """

    origin: str
    data_range: tuple[float, float] | None = None
    event: tuple[int, ...] | None = None
    conditions: tuple[tuple[str, str], ...] = ()
    times: str = ""
    sampling: str = ""
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_kind("origin", self.origin, str, "'EDM, EDMPrecond'")
        check_kind("times", self.times, str, "'sigma in [0.002, 80]'")
        check_kind("sampling", self.sampling, str, "'Euler-Maruyama, 1000 steps'")
        if self.data_range is not None:
            check_range("data_range", self.data_range)
        if self.event is not None:
            check_counts("event", self.event)
        pairs = check_entries("conditions", self.conditions, "pairs (name, null value in words)")
        for i, pair in enumerate(pairs):
            words = check_entries(f"conditions[{i}]", pair, "name and null value in words")
            if len(words) != 2 or not all(isinstance(word, str) for word in words):
                raise ValueError(
                    f"conditions[{i}] must be (name, null value in words), got {shown(pair)}"
                )
        for i, line in enumerate(check_entries("dropped", self.dropped, "lines of text")):
            check_kind(f"dropped[{i}]", line, str, "'x0 clipped to [-1, 1]'")

    def __str__(self) -> str:
        span = (
            "" if self.data_range is None else f"[{self.data_range[0]:g}, {self.data_range[1]:g}]"
        )
        shape = "" if self.event is None else " x ".join(map(str, self.event))
        rows = [
            ("origin", self.origin),
            ("data", ", ".join(part for part in (shape, span) if part)),
            *((f"{name}", f"condition; null: {null}") for name, null in self.conditions),
            ("times", self.times),
            ("sampling", self.sampling),
            *(("dropped", line) for line in self.dropped),
        ]
        return "\n".join(f"{name:<11} {text}" for name, text in rows if text)


class Adapter(nn.Module):
    """A foreign network behind net(x, clock, **condition); it refuses conditions it does not take.

    Args:
        net: a module or any other callable.
        conditions: the names it takes, or None where the network itself is to judge.

    >>> import torch
    >>> Adapter(lambda x, t: 2 * x, ())(torch.ones(1), torch.zeros(1))
    tensor([2.])
    """

    def __init__(self, net: Callable[..., Any], conditions: tuple[str, ...] | None = None):
        super().__init__()
        check_network(net)
        self.net, self.takes = net, conditions

    def forward(self, x: Any, clock: Any, **condition: Any) -> Any:
        return self.net(x, clock, **condition)

    @property
    def conditions(self) -> Conditions | None:
        """Null values, where an origin states them."""
        return None

    def check_condition(self, **condition: Any) -> None:
        """Refuse names that the network does not take."""
        if self.takes is None:
            return
        unknown = sorted(set(condition) - set(self.takes))
        if unknown:
            takes = ", ".join(self.takes) or "none"
            raise TypeError(f"this network takes {takes} as condition, got {', '.join(unknown)}")


class Imported(ScoreNetwork):
    """A network of another library in the four slots, with its card.

    Args:
        net, sde, parameterization, clock: as for `ScoreNetwork`.
        card: what was found.
        origin: (model, steps) -> (model, sampler) with the origin's own numbers, or the reason why
            there is none.

    >>> from scoregen.interop import from_velocity
    >>> from_velocity(lambda x, t: -x).card.data_range
    (0.0, 1.0)
    """

    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        parameterization: Parameterization,
        clock: Clock,
        card: Card,
        origin: Recipe | str,
    ):
        super().__init__(net, sde, parameterization, clock)
        check_kind("card", card, Card, "Card('a library')")
        if not isinstance(origin, str):
            check_callable("origin", origin, "(model, steps) -> (model, sampler), or a reason")
        self.card, self.origin = card, origin


def as_origin(model: ScoreModel, steps: int) -> tuple[ScoreModel, Sampler]:
    """The model and the sampler with which the origin's own numbers come out.

    The model is wrapped in what the origin does unasked (clipping, thresholding,
    rounded times), the sampler is its solver on its grid. Run it from the state that the origin
    starts from, in this library's frame x = alpha x0 + sigma eps.

    Args:
        model: what an importer returned; its condition may be bound.
        steps: the origin's count of steps.

    Raises:
        TypeError: for a model that is not imported.
        ValueError: where the origin has no sampler of its own, or one that cannot be had here.

    >>> from scoregen.interop import from_velocity
    >>> model, sampler = as_origin(from_velocity(lambda x, t: -x), 4)
    >>> sampler.grid(model.sde).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if isinstance(model, Given):
        inner, sampler = as_origin(model.model, steps)
        return inner.given(**model.condition), sampler
    if not isinstance(model, Imported):
        raise TypeError(
            f"as_origin needs a model from an importer such as from_diffusers, got "
            f"{type(model).__name__}"
        )
    if isinstance(model.origin, str):
        raise ValueError(f"{model.card.origin} cannot be sampled as there: {model.origin}")
    return model.origin(model, check_count("steps", steps))
