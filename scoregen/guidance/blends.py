"""Guidance between two predictions: u + scale (c - u)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._checks import check_entries, check_number
from ..models import Prediction, ScoreModel, ScoreNetwork, Wrapped, check_model
from ..models.base import twin
from ..models.conditions import Kept, fill, join, kept, select
from ..processes import SDE, Level

__all__ = ["AutoGuidance", "ClassifierFree"]

Pair = Callable[[Any, Any, str], tuple[Tensor, Tensor]]
Scale = float | Tensor | Callable[[Level], float | Tensor]


class _Blend(Prediction):
    """u + scale (c - u): every form is a combination p x0 + q eps, and those are interpolated.

    Args:
        pair: (p, q, name) -> that combination of both parts, (c, u).
        weight: the scale, a number or a tensor that broadcasts against x.
        score: the blended score, where both parts were made from a score.
    """

    __slots__ = ("_pair", "_weight")

    def __init__(
        self,
        sde: SDE,
        t: Level,
        x: Tensor,
        pair: Pair,
        weight: float | Tensor,
        *,
        score: Tensor | None,
        spread: Tensor | None,
    ):
        super().__init__(sde, t, x, score=score, spread=spread)
        self._pair, self._weight = pair, weight

    def combine(self, p: Any, q: Any, name: str = "this form") -> Tensor:
        c, u = self._pair(p, q, name)
        return _interpolated(u, c, self._weight)


def _interpolated(u: Tensor, c: Tensor, weight: float | Tensor) -> Tensor:
    # lerp is exact at both ends: 0 is u and 1 is c to the last bit
    return torch.lerp(u, c, weight.to(u.dtype) if isinstance(weight, Tensor) else weight)


def _apart(c: Prediction, u: Prediction) -> tuple[Pair, tuple[Tensor, Tensor] | None]:
    """The pair of two predictions, and their scores where both were made from one."""

    def pair(p: Any, q: Any, name: str) -> tuple[Tensor, Tensor]:
        return c.combine(p, q, name), u.combine(p, q, name)

    known = c.made_from_score and u.made_from_score
    return pair, (c.score, u.score) if known else None


def _halves(both: Prediction, n: int) -> tuple[Pair, tuple[Tensor, Tensor] | None]:
    """The pair of one prediction on a batch of c and u, n samples each."""

    def pair(p: Any, q: Any, name: str) -> tuple[Tensor, Tensor]:
        whole = both.combine(_twice(p, n), _twice(q, n), name)
        return whole[:n], whole[n:]

    known = both.made_from_score
    return pair, (both.score[:n], both.score[n:]) if known else None


def _twice(value: Any, n: int) -> Any:
    """A coefficient of n samples for the batch stacked on itself."""
    each = isinstance(value, Tensor) and value.dim() > 0 and len(value) == n > 1
    return torch.cat([value, value]) if each else value


def _checked_scale(scale: Any) -> Any:
    if isinstance(scale, Tensor):
        if not scale.is_floating_point() or scale.dim() > 1:
            raise TypeError(
                "a guidance scale is a number, a floating tensor of shape () or (batch,), or a "
                f"function of the level, got {tuple(scale.shape)} {scale.dtype}"
            )
        if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
            raise ValueError(f"guidance scales must be finite and at least 0, got {scale.tolist()}")
        return scale
    if callable(scale) and not isinstance(scale, type):
        return scale
    return check_number("the guidance scale", scale, 0.0)


def _checked_interval(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    if interval is None:
        return None
    ends = check_entries("interval", interval, "real numbers")
    if len(ends) != 2:
        raise ValueError(f"interval must be (low, high), got {ends}")
    low = check_number("the low end of the interval", ends[0], 0.0)
    return low, check_number("the high end of the interval", ends[1], low, infinite=True)


class _Guided(Wrapped):
    """What scale holds at a level: 1 (no guidance) outside the interval."""

    def __init__(self, model: ScoreModel, scale: Scale, interval: tuple[float, float] | None):
        super().__init__(model)
        scale = _checked_scale(scale)
        self.interval = _checked_interval(interval)
        self.scale = None if isinstance(scale, Tensor) else scale
        self.register_buffer("scales", scale if isinstance(scale, Tensor) else None)
        self.scales: Tensor | None

    def rows(self, part: slice | Tensor, batch: int) -> ScoreModel:
        found: Any = super().rows(part, batch)
        if self.scales is None or not self.scales.dim():
            return found
        if len(self.scales) != batch:
            raise _scales_of_another_batch(batch, self.scales)
        found = twin(self) if found is self else found
        found.scales = select(self.scales, part)
        return found

    def _scale_at(self, x: Tensor, t: Level) -> float | Tensor:
        scale: Any = self.scale
        if self.scales is not None:
            scale = self.scales
            if scale.dim() and len(scale) != len(x):
                raise _scales_of_another_batch(len(x), scale)
            scale = scale.reshape(-1, *(1,) * (x.dim() - 1))
        elif not isinstance(scale, float):
            scale = scale(t)
            if not isinstance(scale, Tensor):
                scale = check_number("the guidance scale at this level", scale, 0.0)
        if self.interval is None:
            return scale
        low, high = self.interval
        if isinstance(t.t, Tensor):
            inside = (t.t >= low) & (t.t <= high)
            return torch.where(inside, torch.as_tensor(scale).to(t.t), torch.ones_like(t.t))
        return scale if low <= t.t <= high else 1.0


def _scales_of_another_batch(batch: int, scales: Tensor) -> ValueError:
    return ValueError(f"need one guidance scale, or one per sample ({batch}), got {len(scales)}")


class ClassifierFree(_Guided):
    """Classifier-free guidance u + scale (c - u) (Ho and Salimans 2022, 2207.12598).

    The unconditional branch u sees each condition named in `null` replaced by its null, whole,
    whether it is one per sample or shared; other conditions go into both branches. Scale 1 costs
    one evaluation, and so does 0 without `rescale`; any other scale two, in one batch where a
    network declares its conditions and their shapes agree. Outside `interval` the prediction is
    the conditional one (Kynkaanniemi et al. 2024, 2404.07724). The reverse variance (`spread`) is
    the conditional one. This is not a sampler of the tilted density; `scoregen.guidance`
    gives the laws it leads to for Gaussians.

    With rescale = phi the guided output g of the network becomes
    g (phi std(c) / std(g) + 1 - phi), standard deviations over each sample's coordinates (Lin et
    al. 2023, 2305.08891). It is the network's own output; v, the paper's, for any other model.

    Args:
        model: a model with a condition; call the result with it, or bind it:
            `ClassifierFree(model, 2.0).given(label=label)`.
        scale: 0 unconditional, 1 conditional, beyond extrapolates; a number, one per sample, or a
            function of the level.
        interval: (low, high) in t where guidance acts; everywhere unless given.
        null: what stands for "no condition", by name: {"label": 10}. A number or a tensor, in the
            structure of the condition (`models.conditions.fill` has the rule): one for all or one
            per sample, of the condition's shape or of another length. Unless given, what the
            network declares.
        rescale: phi, in [0, 1]; 0 leaves the output as it is.

    Raises:
        ValueError: for a scale that is negative or not finite.
        TypeError: for a model that declares no null condition where none is given.

    >>> from scoregen import MLP, VPSDE, Eps, ScoreNetwork
    >>> model = ScoreNetwork(MLP(event=(2,), classes=3), VPSDE(), Eps())
    >>> guided = ClassifierFree(model, 2.0).given(label=torch.tensor([0, 2]))
    >>> guided(torch.zeros(2, 2), 0.5).x0.shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        model: ScoreModel,
        scale: Scale,
        *,
        interval: tuple[float, float] | None = None,
        null: Mapping[str, Any] | None = None,
        rescale: float = 0.0,
    ):
        super().__init__(model, scale, interval)
        self.null = _checked_null(model, null)
        self.rescale = check_number("rescale", rescale, 0.0, 1.0)
        # without a declaration nothing is known of a condition's axes: each branch gets its own
        self._batched = isinstance(model, ScoreNetwork) and model.conditions is not None
        self._kept: Kept | None = None

    def rows(self, part: slice | Tensor, batch: int) -> ScoreModel:
        found: Any = super().rows(part, batch)
        found = twin(self) if found is self else found
        found._kept = kept(self._kept, part, batch)
        return found

    def check_condition(self, **condition: Any) -> None:
        missing = sorted(n for n in self.null if condition.get(n) is None)
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
        scale, n = self._scale_at(x, t), len(x)
        if isinstance(scale, float) and scale == 1.0:
            return self.model.predict(x, t, **condition)
        without = self._without(condition)
        if isinstance(scale, float) and scale == 0.0 and not self.rescale:
            return self.model.predict(x, t, **without)
        both = join(condition, without, n) if self._batched else None
        if both is None:
            c = self.model.predict(x, t, **condition)
            pair, scores = _apart(c, self.model.predict(x, t, **without))
            spread = c.spread
        else:
            level = Level(*(_twice(v, n) for v in t))
            whole = self.model.predict(torch.cat([x, x]), level, **both)
            pair, scores = _halves(whole, n)
            spread = None if whole.spread is None else whole.spread[:n]
        if self.rescale:
            return self._rescaled(x, t, pair, scale, spread)
        score = None if scores is None else _interpolated(scores[1], scores[0], scale)
        return _Blend(self.sde, t, x, pair, scale, score=score, spread=spread)

    def _rescaled(
        self, x: Tensor, t: Level, pair: Pair, scale: float | Tensor, spread: Tensor | None
    ) -> Prediction:
        a, b = -t.sigma, t.alpha
        if isinstance(self.model, ScoreNetwork):
            a, b = self.model.parameterization.coefficients(self.sde, t)
        c, u = pair(a, b, "the rescaled output")
        out = _interpolated(u, c, scale)
        std_c, std_out = _std(c), _std(out)
        # an output of equal coordinates has no spread to be restored
        ratio = torch.where(std_out > 0, std_c / std_out, 1.0)
        out = out * (self.rescale * ratio + 1 - self.rescale)
        return Prediction(self.sde, t, x, form=(a, b, out), spread=spread)

    def _without(self, condition: Mapping[str, Any]) -> dict[str, Any]:
        """The condition with the null values in place."""
        if any(condition.get(name) is None for name in self.null):
            self.check_condition(**condition)
        empty = dict(condition)
        for name, value in self.null.items():
            empty[name] = fill(value, condition[name], name, self._kept)
        return empty


def _std(x: Tensor) -> Tensor:
    """Standard deviation over each sample's coordinates, to broadcast against x."""
    axes = tuple(range(1, x.dim()))
    if not axes:
        return torch.zeros_like(x)
    return (x - x.mean(axes, keepdim=True)).square().mean(axes, keepdim=True).sqrt()


def _checked_null(model: ScoreModel, null: Mapping[str, Any] | None) -> dict[str, Any]:
    if null is None:
        declared = model.conditions
        null = {} if declared is None else declared.null
    elif not isinstance(null, Mapping):
        raise TypeError(f'null must give values by name, as in {{"label": 10}}, got {null!r}')
    if not null:
        raise TypeError(
            "classifier-free guidance needs a class-conditional network (classes=K, whose null "
            f"class is K), and this {type(model).__name__} declares no condition; if it has one, "
            'give what stands for its absence: null={"label": ...}'
        )
    return dict(null)


class AutoGuidance(_Guided):
    """Guidance by a weaker version of the model itself (Karras et al. 2024, 2406.02507).

    weaker + scale (model - weaker): scale 1 is the model alone, beyond 1 leads away from the
    weaker model's errors.

    Args:
        model: the model.
        weaker: a smaller or less trained model on the same process and with the same condition.
        scale: at least 0: a number, one per sample, or a function of the level.
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
        scale: Scale,
        *,
        interval: tuple[float, float] | None = None,
    ):
        super().__init__(model, scale, interval)
        check_model(weaker, "weaker")
        if model.sde != weaker.sde:
            raise ValueError(
                f"both models must stand on one process, got {model.sde} and {weaker.sde}"
            )
        self.weaker = weaker

    def check_condition(self, **condition: Any) -> None:
        self.model.check_condition(**condition)
        self.weaker.check_condition(**condition)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        scale = self._scale_at(x, t)
        c = self.model.predict(x, t, **condition)
        if isinstance(scale, float) and scale == 1.0:
            return c
        pair, scores = _apart(c, self.weaker.predict(x, t, **condition))
        score = None if scores is None else _interpolated(scores[1], scores[0], scale)
        return _Blend(self.sde, t, x, pair, scale, score=score, spread=c.spread)
