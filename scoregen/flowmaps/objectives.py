"""Objectives that train flow maps, each as its paper has it, in the angle theta.

In w = x / rho and theta = atan(sigma / alpha) every process has the flow dw / dtheta = v with
v = cos(theta) eps - sin(theta) x0, so one implementation serves all. W(w, theta_t, theta_s) is the
map, sg stops the gradient, and jumps run from theta_t down to theta_s.

What each can and cannot see: `Shortcut` alone is satisfied by any semigroup, and `Lagrangian` by
the flow seen through another function of the data, so both carry the denoising loss on the
diagonal; `Consistency` trains jumps to t = 0 alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._checks import check_number, check_state
from .._rows import against, row_sum
from ..models import Prediction, ScoreModel
from ..objectives import DenoisingScoreMatching, UniformLaw
from ..objectives.denoising import Objective
from ..processes import Level
from .angles import flow_rate, level_at, rate, turned
from .model import flow_map
from .pairs import Pairs, lowest

__all__ = [
    "Consistency",
    "ConsistencyDistillation",
    "Lagrangian",
    "LagrangianSteps",
    "MeanFlow",
    "Shortcut",
]


def mapped(model: ScoreModel, w: Tensor, first: Tensor, last: Tensor, **condition: Any) -> Tensor:
    """W(w, theta_t, theta_s), shaped like w, at angles of shape (batch,)."""
    p, to = predicted(model, w, first, last, condition)
    return p.combine(to.alpha, to.sigma, "the jump")


def predicted(
    model: ScoreModel, w: Tensor, first: Tensor, last: Tensor, condition: dict[str, Any]
) -> tuple[Prediction, Level]:
    """The prediction for the jump, and the level of its end on the unit circle."""
    level = level_at(model.sde, first, w)
    to = turned(model.sde, last.to(w), w)
    rho = torch.hypot(level.alpha, level.sigma)
    return model.predict(rho * w, level, to=to, **condition), to


def huber(error: Tensor, c: float) -> Tensor:
    """sqrt(|error|^2 + c^2 d) - c sqrt(d), shape (batch,); half the square over c sqrt(d) near 0.

    (Charbonnier 1997; Song and Dhariwal 2023, 2310.14189.)
    """
    wide = c * math.sqrt(max(1, math.prod(error.shape[1:])))
    return (row_sum(error.square()) + wide**2).sqrt() - wide


@dataclass(frozen=True)
class _Jumps(ABC):
    """What the objectives share: pairs of angles, noise, and the loss on the diagonal.

    Args:
        pairs: the law of the pairs.
        diagonal: the denoising loss that is added; None for none.
    """

    pairs: Pairs = field(default_factory=Pairs)
    diagonal: Objective | None = field(default_factory=lambda: DenoisingScoreMatching(UniformLaw()))

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
        flow_map(model)
        first, last = self.pairs(model.sde, len(x0), generator)
        eps = torch.randn(
            x0.shape, generator=generator, dtype=x0.dtype, device=generator.device
        ).to(x0.device)
        loss = self.at(model, x0, eps, first.to(x0), last.to(x0), **condition)
        if self.diagonal is not None:
            loss = loss + self.diagonal(model, x0, generator=generator, **condition)
        return loss

    @abstractmethod
    def at(
        self,
        model: ScoreModel,
        x0: Tensor,
        eps: Tensor,
        first: Tensor,
        last: Tensor,
        **condition: Any,
    ) -> Tensor:
        """The loss of the jumps at given noise and angles, shape (batch,), nothing drawn.

        Args:
            model: a flow map.
            x0: clean data, shape (batch, *event).
            eps: noise shaped like x0.
            first: theta_t, shape (batch,).
            last: theta_s, shape (batch,).
        """


def noised(x0: Tensor, eps: Tensor, theta: Tensor) -> Tensor:
    """w = cos(theta) x0 + sin(theta) eps."""
    wide = against(theta.to(x0), x0)
    return torch.cos(wide) * x0 + torch.sin(wide) * eps


@dataclass(frozen=True)
class Lagrangian(_Jumps):
    """Lagrangian self-distillation: the map's end moves as the flow does there.

        |d/dtheta_s W(w, theta_t, theta_s) - sg v(W(w, theta_t, theta_s), theta_s)|^2 + diagonal

    v is the map's own diagonal, or a teacher's (Boffi et al. 2025, 2505.18825). Zero pointwise at
    the exact map; blind to a map of the data composed before it, which the diagonal sees. The
    derivative is a forward-mode product, so attention must run on its plain kernel.

    Args:
        pairs: the law of the pairs.
        diagonal: the denoising loss that is added; None for none.
        teacher: a score model whose flow is followed; the map itself unless given.

    >>> Lagrangian().teacher is None
    True
    """

    teacher: ScoreModel | None = None

    def at(
        self,
        model: ScoreModel,
        x0: Tensor,
        eps: Tensor,
        first: Tensor,
        last: Tensor,
        **condition: Any,
    ) -> Tensor:
        w = noised(x0, eps, first)
        # the flow's rate is known from the smallest angle of the process on
        last = last.clamp(min=lowest(model.sde))

        def arrive(theta: Tensor) -> Tensor:
            return mapped(model, w, first, theta, **condition)

        pushed = torch.func.jvp(arrive, (last,), (torch.ones_like(last),))
        arrived, slope = pushed[0], pushed[1]
        with torch.no_grad():
            guide = model if self.teacher is None else self.teacher
            follow = flow_rate(guide, arrived.detach(), last, **condition)
        return row_sum((slope - follow).square())


@dataclass(frozen=True)
class LagrangianSteps(_Jumps):
    """The Lagrangian condition over a finite gap: a teacher's midpoint step continues the jump.

        huber(W(w, theta_t, theta_s) - sg step(W(w, theta_t, theta_r), theta_r -> theta_s)) / gap,
        theta_r = theta_s + gap (theta_t - theta_s)

    No derivative of the network, and for gap -> 0 the Lagrangian loss (Boffi et al. 2025,
    2505.18825, section 3). Its fixed point is off by the midpoint rule's error over a gap.

    Args:
        pairs: the law of the pairs.
        diagonal: the denoising loss that is added; None for none.
        teacher: a score model whose flow is followed; the map itself unless given.
        gap: share of a jump that the teacher's step takes.
        c: constant of the pseudo-Huber distance.

    >>> LagrangianSteps(gap=0.05).gap
    0.05
    """

    teacher: ScoreModel | None = None
    gap: float = 0.1
    c: float = 0.1

    def __post_init__(self) -> None:
        check_number("gap", self.gap, 0.0, 1.0, open_low=True)
        check_number("c", self.c, 0.0, open_low=True)

    def at(
        self,
        model: ScoreModel,
        x0: Tensor,
        eps: Tensor,
        first: Tensor,
        last: Tensor,
        **condition: Any,
    ) -> Tensor:
        w = noised(x0, eps, first)
        between = last + self.gap * (first - last)
        with torch.no_grad():
            guide = model if self.teacher is None else self.teacher
            start = mapped(model, w, first, between, **condition)
            target = midpoint(guide, start, between, last, **condition)
        error = mapped(model, w, first, last, **condition) - target
        return huber(error, self.c) / self.gap


def midpoint(model: ScoreModel, w: Tensor, first: Tensor, last: Tensor, **condition: Any) -> Tensor:
    """One midpoint step of a model's flow in the angle, of order 2."""
    h = against(last - first.to(w), w)
    half = w + h / 2 * flow_rate(model, w, first, **condition)
    return w + h * flow_rate(model, half, (first + last) / 2, **condition)


@dataclass(frozen=True)
class Shortcut(_Jumps):
    """One jump equals two of half the length.

        |W(w, theta_t, theta_s) - sg W(W(w, theta_t, theta_m), theta_m, theta_s)|^2 + diagonal

    with theta_m in the middle (Frans et al. 2024, 2410.12557). Satisfied by every semigroup, right
    or wrong: only the diagonal loss says which, and it is never left out by default.

    >>> Shortcut().diagonal is None
    False
    """

    def at(
        self,
        model: ScoreModel,
        x0: Tensor,
        eps: Tensor,
        first: Tensor,
        last: Tensor,
        **condition: Any,
    ) -> Tensor:
        w = noised(x0, eps, first)
        middle = (first + last) / 2
        with torch.no_grad():
            half = mapped(model, w, first, middle, **condition)
            target = mapped(model, half, middle, last, **condition)
        return row_sum((mapped(model, w, first, last, **condition) - target).square())


@dataclass(frozen=True)
class MeanFlow(_Jumps):
    """The mean velocity u of a jump against what its own derivative says it must be.

        |u(w, theta_t, theta_s) - sg(v + (theta_s - theta_t) (d/dtheta_t u + v . grad u))|^2

    with u = (W - w) / (theta_s - theta_t), and v the velocity of the sample's own line
    (Geng et al. 2025, 2505.13447). With the squared error its expected gradient is zero at the
    exact map; with weights that depend on the error it is not, so there are none here.

    Args:
        pairs: the law of the pairs.
        diagonal: added; None by default, since pairs with theta_s = theta_t are the diagonal.
        same: share of pairs with theta_s = theta_t.

    >>> MeanFlow().same
    0.5
    """

    diagonal: Objective | None = None
    same: float = 0.5

    def __post_init__(self) -> None:
        check_number("same", self.same, 0.0, 1.0)

    def at(
        self,
        model: ScoreModel,
        x0: Tensor,
        eps: Tensor,
        first: Tensor,
        last: Tensor,
        **condition: Any,
    ) -> Tensor:
        count = round(self.same * len(x0))
        last = torch.cat([first[:count], last[count:]])
        w = noised(x0, eps, first)
        wide = against(first.to(x0), x0)
        v = torch.cos(wide) * eps - torch.sin(wide) * x0

        def mean_velocity(w: Tensor, theta: Tensor) -> Tensor:
            return velocity_between(model, w, theta, last, **condition)

        tangents = (v, torch.ones_like(first))
        pushed = torch.func.jvp(mean_velocity, (w, first), tangents)
        u, change = pushed[0], pushed[1]
        target = v + against(last - first.to(x0), x0) * change
        return row_sum((u - target.detach()).square())


def velocity_between(
    model: ScoreModel, w: Tensor, first: Tensor, last: Tensor, **condition: Any
) -> Tensor:
    """(W - w) / (theta_s - theta_t) without the division: sinc(h) (cos(m) eps - sin(m) x0).

    m is the middle of the two angles and h half their difference; on the diagonal it is v.
    """
    p, _ = predicted(model, w, first, last, condition)
    middle, half = (first + last) / 2, (first - last) / 2
    return torch.sinc(against(half.to(w), w) / math.pi) * rate(p, middle.to(w))


@dataclass(frozen=True)
class Consistency(_Jumps):
    """The jump to 0 from two levels of one sample's line agrees: consistency training.

        huber(f(w_t, theta_t) - sg f(w_r, theta_r)) / (theta_t - theta_r),   f = W(., ., 0)

    with the same (x0, eps) and theta_r = (1 - gap) theta_t (Song et al. 2023, 2303.01469; Song and
    Dhariwal 2023, 2310.14189; Geng et al. 2024, 2406.14548, shrink the gap while training). At a
    finite gap the expected gradient at the exact map is not zero: it is of order gap squared with a
    squared error, and with c small against gap times the spread of v it does not shrink at all. A
    map trained by it alone is a `ConsistencyModel`.

    Args:
        pairs: the law of the pairs; only theta_t is used.
        diagonal: added; None by default.
        gap: share of theta_t between the two levels.
        c: constant of the pseudo-Huber distance.

    >>> Consistency(gap=0.1).diagonal is None
    True
    """

    diagonal: Objective | None = None
    gap: float = 0.1
    c: float = 0.1

    def __post_init__(self) -> None:
        check_number("gap", self.gap, 0.0, 1.0, open_low=True)
        check_number("c", self.c, 0.0, open_low=True)

    def at(
        self,
        model: ScoreModel,
        x0: Tensor,
        eps: Tensor,
        first: Tensor,
        last: Tensor,
        **condition: Any,
    ) -> Tensor:
        before = (1 - self.gap) * first
        nearer = self.nearer(x0, eps, first, before, condition)
        zero = torch.zeros_like(first)
        with torch.no_grad():
            target = nearer
            if self.gap < 1:  # at gap 1 the nearer level is the data
                target = mapped(model, nearer, before, zero, **condition)
        error = mapped(model, noised(x0, eps, first), first, zero, **condition) - target
        return huber(error, self.c) / (first - before)

    def nearer(
        self, x0: Tensor, eps: Tensor, first: Tensor, before: Tensor, condition: dict[str, Any]
    ) -> Tensor:
        """The state at theta_r that belongs to w_t: here on the sample's own line."""
        return noised(x0, eps, before)


@dataclass(frozen=True)
class ConsistencyDistillation(Consistency):
    """Consistency with w_r one midpoint step of a teacher's flow from w_t (2303.01469, Alg. 2).

    Args:
        pairs: the law of the pairs; only theta_t is used.
        diagonal: added; None by default.
        gap: share of theta_t between the two levels.
        c: constant of the pseudo-Huber distance.
        teacher: the score model whose flow is distilled.

    >>> from scoregen import Gaussian, VPSDE
    >>> ConsistencyDistillation(teacher=Gaussian(VPSDE(), torch.zeros(2), 0.5)).gap
    0.1
    """

    teacher: ScoreModel = field(kw_only=True)

    def nearer(
        self, x0: Tensor, eps: Tensor, first: Tensor, before: Tensor, condition: dict[str, Any]
    ) -> Tensor:
        w = noised(x0, eps, first)
        with torch.no_grad():
            return midpoint(self.teacher, w, first, before, **condition)
