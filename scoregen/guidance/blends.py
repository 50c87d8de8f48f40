"""Guidance between two predictions: u + scale (c - u)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._checks import check_number
from ..models import Prediction, ScoreModel
from ..models.prediction import mix
from ..processes import Level

__all__ = ["AutoGuidance", "ClassifierFree"]


class _Blend(Prediction):
    """u + scale (c - u) in whichever form is asked for; the forms are affine in one another."""

    __slots__ = ("_pair", "_scale")

    def __init__(
        self,
        like: Prediction,
        pair: Callable[[str], tuple[Tensor, Tensor]],
        scale: float | Tensor,
        x: Tensor,
        t: Level,
        spread: Tensor | None,
    ):
        super().__init__(like.sde, t, x, spread=spread)
        self._pair, self._scale = pair, scale

    def _mixed(self, form: str) -> Tensor:
        c, u = self._pair(form)
        # lerp is exact at both ends: 0 is u and 1 is c to the last bit
        weight = self._scale
        return torch.lerp(u, c, weight.to(u.dtype) if isinstance(weight, Tensor) else weight)

    def combine(self, p: Any, q: Any, name: str = "this form") -> Tensor:
        return mix(p, self.x0, q, self.eps)

    @property
    def x0(self) -> Tensor:
        if self._x0 is None:
            self._x0 = self._mixed("x0")
        return self._x0

    @property
    def eps(self) -> Tensor:
        if self._eps is None:
            self._eps = self._mixed("eps")
        return self._eps

    @property
    def score(self) -> Tensor:
        if self._score is None:
            self._score = self._mixed("score")
        return self._score

    @property
    def velocity(self) -> Tensor:
        if self._velocity is None:
            self._velocity = self._mixed("velocity")
        return self._velocity

    @property
    def v(self) -> Tensor:
        if self._v is None:
            self._v = self._mixed("v")
        return self._v


def _checked_scale(scale: float | Tensor) -> float | Tensor:
    if not isinstance(scale, Tensor):
        return check_number("the guidance scale", scale, 0.0, math.inf, open_high=True)
    if not scale.is_floating_point() or scale.dim() > 1:
        raise TypeError(
            "a guidance scale is a number or a floating tensor of shape () or (batch,), got "
            f"{tuple(scale.shape)} {scale.dtype}"
        )
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise ValueError(f"guidance scales must be finite and at least 0, got {scale.tolist()}")
    return scale


def _checked_interval(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    if interval is None:
        return None
    low = check_number("the low end of the interval", interval[0], 0.0)
    return low, check_number("the high end of the interval", interval[1], low)


class _Guided(ScoreModel):
    """What scale holds at a level: 1 (no guidance) outside the interval."""

    scale: float | Tensor | None
    interval: tuple[float, float] | None

    def _hold(self, scale: float | Tensor, interval: tuple[float, float] | None) -> None:
        scale = _checked_scale(scale)
        self.interval = _checked_interval(interval)
        self._number = None if isinstance(scale, Tensor) else scale
        self.register_buffer("_scales", scale if isinstance(scale, Tensor) else None)
        self._scales: Tensor | None

    def _scale_at(self, x: Tensor, t: Level) -> float | Tensor:
        scale: float | Tensor
        if self._scales is None:
            scale = self._number if self._number is not None else 1.0
        else:
            if self._scales.dim() and len(self._scales) != len(x):
                raise ValueError(
                    f"need one guidance scale, or one per sample ({len(x)}), got "
                    f"{len(self._scales)}"
                )
            scale = self._scales.reshape(-1, *(1,) * (x.dim() - 1)) if x.dim() else self._scales
        if self.interval is None:
            return scale
        low, high = self.interval
        if isinstance(t.t, Tensor):
            inside = (t.t >= low) & (t.t <= high)
            return torch.where(inside, torch.as_tensor(scale).to(t.t), torch.ones_like(t.t))
        return scale if low <= t.t <= high else 1.0


class ClassifierFree(_Guided):
    """Classifier-free guidance u + scale (c - u) (Ho and Salimans 2022, 2207.12598).

    Both branches are one batched evaluation, of which `Counted` counts two; where the scale is the
    number 0 or 1, one branch is all that is asked for. Outside `interval` the conditional model
    speaks alone (Kynkaanniemi et al. 2024, 2404.07724). The reverse variance (`spread`) is the
    conditional one. This is not a sampler of the tilted density; the first lines of
    `scoregen.guidance` say what it does to Gaussians.

    Args:
        model: a model with a condition; call the result with it, or bind it:
            `ClassifierFree(model, 2.0).given(label=label)`.
        scale: 0 unconditional, 1 conditional, beyond extrapolates; a number, or one per sample.
        interval: (low, high) in t where guidance acts; everywhere unless given.
        null: what stands for "no condition", by name: {"label": 10}. A number, or a tensor that
            expands to the condition's shape. Unless given, the network's null class,
            {"label": classes}.

    Raises:
        ValueError: for a scale that is negative or not finite.
        TypeError: for a model without classes where no null condition is given.

    >>> from scoregen import MLP, VPSDE, Eps, ScoreNetwork
    >>> model = ScoreNetwork(MLP(event=(2,), classes=3), VPSDE(), Eps())
    >>> guided = ClassifierFree(model, 2.0).given(label=torch.tensor([0, 2]))
    >>> guided(torch.zeros(2, 2), 0.5).x0.shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        model: ScoreModel,
        scale: float | Tensor,
        *,
        interval: tuple[float, float] | None = None,
        null: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.model, self.sde = model, model.sde
        self.null = dict(null) if null is not None else _null_class(model)
        self._hold(scale, interval)

    def check_condition(self, **condition: Any) -> None:
        missing = sorted(set(self.null) - set(condition))
        if missing:
            raise TypeError(
                f"guidance needs the condition {', '.join(missing)}: pass it, or bind it by "
                "ClassifierFree(model, scale).given(...), not to the model inside"
            )
        self.model.check_condition(**condition)

    def forward(self, x: Tensor, t: Level | float | Tensor, **condition: Any) -> Prediction:
        if not condition:
            self.check_condition()
        return super().forward(x, t, **condition)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        scale = self._scale_at(x, t)
        if isinstance(scale, float) and scale in (0.0, 1.0):
            chosen = condition if scale else self._without(condition)
            return self.model.predict(x, t, **chosen)
        without, both = self._without(condition), {}
        for name, value in condition.items():
            each = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(x)
            both[name] = torch.cat([value, without[name]]) if each else value
        p = self.model.predict(torch.cat([x, x]), _twice(t, len(x)), **both)
        spread = None if p.spread is None else p.spread[: len(x)]

        def pair(form: str) -> tuple[Tensor, Tensor]:
            whole = getattr(p, form)
            return whole[: len(x)], whole[len(x) :]

        return _Blend(p, pair, scale, x, t, spread)

    def _without(self, condition: dict[str, Any]) -> dict[str, Any]:
        """The condition with the null values in place."""
        if not set(self.null) <= set(condition):
            self.check_condition(**condition)
        empty = dict(condition)
        for name, value in self.null.items():
            like = condition[name]
            if not isinstance(like, Tensor):
                raise TypeError(f"the condition {name} must be a tensor, one entry per sample")
            null = torch.as_tensor(value, dtype=like.dtype, device=like.device)
            empty[name] = null.expand_as(like)
        return empty


def _null_class(model: ScoreModel) -> dict[str, Any]:
    net = getattr(model, "net", None)
    config = getattr(net, "config", None)
    classes = getattr(net, "classes", None)
    if classes is None and isinstance(config, Mapping):
        classes = config.get("classes")
    if not classes:
        raise TypeError(
            "classifier-free guidance needs a class-conditional network (classes=K, whose null "
            f"class is K), and this {type(model).__name__} names none; if it has another "
            'condition, say what stands for its absence: null={"label": ...}'
        )
    return {"label": int(classes)}


def _twice(t: Level, batch: int) -> Level:
    """The level of a batch stacked on itself."""
    return Level(
        *(
            torch.cat([v, v]) if isinstance(v, Tensor) and v.dim() and len(v) == batch > 1 else v
            for v in t
        )
    )


class AutoGuidance(_Guided):
    """Guidance by a weaker version of the model itself (Karras et al. 2024, 2406.02507).

    weaker + scale (model - weaker): scale 1 is the model alone, beyond 1 leads away from the
    weaker model's errors.

    Args:
        model: the model.
        weaker: a smaller or less trained model on the same process and with the same condition.
        scale: a number at least 0, or one per sample.
        interval: (low, high) in t where guidance acts; everywhere unless given.

    >>> from scoregen import VPSDE, Gaussian
    >>> good, weak = (Gaussian(VPSDE(), torch.zeros(2), v) for v in (1.0, 2.0))
    >>> torch.equal(AutoGuidance(good, weak, 1.0)(torch.ones(1, 2), 0.5).x0,
    ...             good(torch.ones(1, 2), 0.5).x0)
    True
    """

    def __init__(
        self,
        model: ScoreModel,
        weaker: ScoreModel,
        scale: float | Tensor,
        *,
        interval: tuple[float, float] | None = None,
    ):
        super().__init__()
        if model.sde != weaker.sde:
            raise ValueError(
                f"both models must stand on one process, got {model.sde} and {weaker.sde}"
            )
        self.model, self.weaker, self.sde = model, weaker, model.sde
        self._hold(scale, interval)

    def check_condition(self, **condition: Any) -> None:
        self.model.check_condition(**condition)
        self.weaker.check_condition(**condition)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        scale = self._scale_at(x, t)
        c = self.model.predict(x, t, **condition)
        if isinstance(scale, float) and scale == 1.0:
            return c
        u = self.weaker.predict(x, t, **condition)
        return _Blend(c, lambda form: (getattr(c, form), getattr(u, form)), scale, x, t, c.spread)
