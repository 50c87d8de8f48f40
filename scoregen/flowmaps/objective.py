"""What the objectives of flow maps share: the draw they are evaluated at, and the diagonal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_batch,
    check_callable,
    check_kind,
    check_same_shape,
    check_state,
)
from .._rows import against, row_sum
from ..models import ScoreModel
from ..noise.sources import normal_like
from ..objectives import DenoisingScoreMatching, UniformLaw
from ..objectives.denoising import Objective
from .angles import noised
from .model import check_direction, flow_map
from .pairs import PairLaw, Pairs

__all__ = ["Draw", "JumpObjective", "distance"]


@dataclass(frozen=True)
class Draw:
    """Everything random in an objective: with it given, the loss is a pure function of the model.

    Args:
        x0: clean data, shape (batch, *event).
        eps: noise shaped like x0.
        first: theta_t, shape (batch,), float64.
        last: theta_s, likewise.
        condition: passed on to the model.

    Raises:
        ValueError, TypeError: for shapes that do not fit, or NaN and infinity on the CPU.

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> Draw(torch.ones(1, 2), torch.zeros(1, 2), 0 * one, 0 * one).w
    tensor([[1., 1.]])
    """

    x0: Tensor
    eps: Tensor
    first: Tensor
    last: Tensor
    condition: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_batch(self.x0, "x0")
        check_same_shape("eps", check_batch(self.eps, "eps"), self.x0)
        for name in ("first", "last"):
            angles = check_batch(getattr(self, name), name)
            if angles.shape != self.x0.shape[:1]:
                raise ValueError(
                    f"{name} must hold one angle for each of {len(self.x0)} samples, got the shape "
                    f"{tuple(angles.shape)}"
                )
        check_kind("condition", self.condition, Mapping, '{"label": label}')

    @property
    def w(self) -> Tensor:
        """The state at theta_t: cos(theta_t) x0 + sin(theta_t) eps."""
        return noised(self.x0, self.eps, self.first)

    @property
    def v(self) -> Tensor:
        """The velocity of the sample's own line there: cos(theta_t) eps - sin(theta_t) x0."""
        wide = against(self.first.to(self.x0), self.x0)
        return torch.cos(wide) * self.eps - torch.sin(wide) * self.x0


def distance(error: Tensor, c: float) -> Tensor:
    """The pseudo-Huber distance sqrt(|error|^2 + c^2 d) - c sqrt(d), shape (batch,).

    Half the square over c sqrt(d) near 0; with c = inf the square itself (Charbonnier 1997; Song
    and Dhariwal 2023, 2310.14189).

    >>> distance(torch.full((1, 2), 3.0), math.inf)
    tensor([18.])
    """
    square = row_sum(error.square())
    if math.isinf(c):
        return square
    wide = c * math.sqrt(max(1, math.prod(error.shape[1:])))
    # the difference of the two roots, without the cancellation where c is large
    return square / ((square + wide * wide).sqrt() + wide)


@dataclass(frozen=True)
class JumpObjective(ABC):
    """The loss of jumps between random pairs of angles, plus the denoising loss on the diagonal.

    Args:
        pairs: the law of the pairs, such as `Pairs()`.
        diagonal: the denoising loss that is added; None for none.

    >>> from scoregen.flowmaps import Shortcut
    >>> isinstance(Shortcut(), JumpObjective)
    True
    """

    pairs: PairLaw = field(default_factory=Pairs)
    diagonal: Objective | None = field(default_factory=lambda: DenoisingScoreMatching(UniformLaw()))

    def __post_init__(self) -> None:
        law = "(sde, count, generator) -> (theta_t, theta_s), such as Pairs()"
        check_callable("pairs", self.pairs, law)
        if self.diagonal is not None:
            loss = "(model, x0, *, generator, **condition) -> (batch,), or None"
            check_callable("diagonal", self.diagonal, loss)

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One loss per sample, shape (batch,).

        Args:
            model: a flow map.
            x0: clean data, shape (batch, *event).
            generator: source of the angles and of the noise.
            **condition: passed on to the model.
        """
        check_state(x0, "x0")
        check_kind("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
        flow_map(model)
        first, last = self.pairs(model.sde, len(x0), generator)
        check_direction(model, bool((last > first).any()))
        loss = self.at(model, Draw(x0, normal_like(x0, generator), first, last, condition))
        if self.diagonal is not None:
            loss = loss + self.diagonal(model, x0, generator=generator, **condition)
        return loss

    @abstractmethod
    def at(self, model: ScoreModel, draw: Draw) -> Tensor:
        """The loss of the jumps of one draw, shape (batch,), without the diagonal."""
