"""Flow maps: models that predict where the probability flow carries x, in one evaluation."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import check_callable, check_flag, check_kind, check_state
from ..densities import Gaussian
from ..densities.base import column
from ..models import (
    Clock,
    Conditions,
    HalfLogSNR,
    Parameterization,
    Prediction,
    ScoreModel,
    ScoreNetwork,
    Wrapped,
    check_model,
)
from ..models.network import evaluate
from ..processes import SDE, Level
from .angles import angle

__all__ = [
    "AngleSpan",
    "ConsistencyModel",
    "FlowMap",
    "FlowMapModel",
    "GaussianFlowMap",
    "flow_map",
    "jump",
]

Span = Callable[[SDE, Level, Level, Tensor], Tensor]
"""(sde, t, s, x) -> the second clock, one number per sample, shape (batch,)."""


@dataclass(frozen=True)
class AngleSpan:
    """theta_t - theta_s with theta = atan(sigma / alpha): how far the jump goes, in [0, pi / 2].

    Args:
        inverts: whether jumps towards more noise, where it is negative, are trained too.

    >>> clean, noisy = Level(0.0, 1.0, 0.0, float("inf")), Level(1.0, 0.0, 1.0, float("-inf"))
    >>> AngleSpan()(None, noisy, clean, torch.zeros(2, 3))
    tensor([1.5708, 1.5708])
    """

    inverts: bool = False

    def __post_init__(self) -> None:
        check_flag("inverts", self.inverts)

    def __call__(self, sde: SDE, t: Level, s: Level, x: Tensor) -> Tensor:
        span = angle(t) - angle(s)
        if isinstance(span, Tensor):
            return span.reshape(-1).expand(len(x)).to(x.dtype)
        return torch.full((len(x),), span, dtype=x.dtype, device=x.device)


class FlowMapModel(ScoreModel):
    """A model with a second level: `predict(x, t, to=s)` holds for the whole jump from t to s.

        X(x, t, s) = alpha_s x0_hat + sigma_s eps_hat,      x = alpha_t x0_hat + sigma_t eps_hat

    On the diagonal, s = t, x0_hat is the posterior mean, so it is a score model there: without
    `to` every sampler, likelihood and energy works on it (Boffi et al. 2025, 2505.18825).

    >>> from scoregen import VPSDE
    >>> exact = GaussianFlowMap(VPSDE(), torch.zeros(2), 0.25)
    >>> isinstance(exact, FlowMapModel)
    True
    """

    @property
    def inverts(self) -> bool:
        """Whether jumps towards more noise are known too."""
        return True

    @abstractmethod
    def predict(
        self, x: Tensor, t: Level, *, to: Level | None = None, **condition: Any
    ) -> Prediction:
        """The prediction for the jump from t to `to`; for the diagonal without it.

        Args:
            x: state at t, shape (batch, *event).
            t: level now, of floats or of tensors that broadcast against x.
            to: level after, likewise.
        """

    def jump(self, x: Tensor, t: float | Level, s: float | Level, **condition: Any) -> Tensor:
        """X(x, t, s), where the flow from x at t arrives at s, shaped like x.

        Args:
            x: state at t, shape (batch, *event).
            t: time or level now.
            s: time or level after.

        Raises:
            ValueError: for times outside the process, or a jump that the map was not trained for.
        """
        check_event(self, x)
        start = t if isinstance(t, Level) else self.level(t, x)
        stop = s if isinstance(s, Level) else self.level(s, x)
        p = self.predict(x, start, to=stop, **condition)
        return p.combine(stop.alpha, stop.sigma, "the jump")


class FlowMap(FlowMapModel):
    """A network with two clocks, decoded like any prediction, for the whole jump.

    Args:
        net: callable net(x, clock, span=second, **condition) with the output shaped like x; `MLP`
            and `UNet` take a second clock if built with `second_clock=True`.
        sde: the process.
        parameterization: what the output means; `V`, or `Velocity` on straight paths. With `Eps`
            the jump from the noisy end divides by alpha.
        clock: the first clock, of t; half the log-SNR unless given.
        span: the second clock, a callable (sde, t, s, x) -> (batch,); `AngleSpan()` unless given.
            Jumps towards more noise are refused unless it is `AngleSpan(inverts=True)`.

    Raises:
        TypeError: for a network with one clock.

    >>> from scoregen import MLP, V, VPSDE
    >>> model = FlowMap(MLP(event=(2,), second_clock=True), VPSDE(), V())
    >>> model.jump(torch.zeros(4, 2), 1.0, 0.0).shape
    torch.Size([4, 2])
    """

    net: Any

    def __init__(
        self,
        net: Callable[..., Any],
        sde: SDE,
        parameterization: Parameterization,
        clock: Clock | None = None,
        span: Span | None = None,
    ):
        super().__init__()
        _check_two_clocks(net)
        # the four slots, checked where score networks check them
        plain = ScoreNetwork(net, sde, parameterization, clock)
        self.net, self.sde, self.parameterization = plain.net, sde, parameterization
        self.clock: Clock = HalfLogSNR() if clock is None else clock
        self.span: Span = AngleSpan() if span is None else span
        check_callable("span", self.span, "(sde, t, s, x) -> (batch,), such as AngleSpan()")

    def predict(
        self, x: Tensor, t: Level, *, to: Level | None = None, **condition: Any
    ) -> Prediction:
        self._check_jump(t, to)
        scale = self.parameterization.input_scale(self.sde, t)
        inner = x if isinstance(scale, float) and scale == 1.0 else scale * x
        like = x if x.dtype in (torch.float32, torch.float64) else x.float()
        span = self.span(self.sde, t, t if to is None else to, like)
        second = {**condition, "span": span}
        out = evaluate(self.net, inner, self.clock(self.sde, t, like), second, x.dtype)
        return self.parameterization.decode(self.sde, t, x, out)

    @property
    def inverts(self) -> bool:
        return isinstance(self.span, AngleSpan) and self.span.inverts

    def _check_jump(self, t: Level, to: Level | None) -> None:
        if to is None or isinstance(t.t, Tensor) or isinstance(to.t, Tensor) or to.t <= t.t:
            return
        if not self.inverts:
            raise ValueError(
                f"this map was trained from noise to data, and the jump goes from t = {t.t:g} up "
                f"to s = {to.t:g}; train it both ways, with span=AngleSpan(inverts=True)"
            )

    @property
    def conditions(self) -> Conditions | None:
        return ScoreNetwork(self.net, self.sde, self.parameterization, self.clock).conditions

    def check_condition(self, **condition: Any) -> None:
        plain = ScoreNetwork(self.net, self.sde, self.parameterization, self.clock)
        plain.check_condition(**condition)


class ConsistencyModel(FlowMap):
    """A flow map that was trained on jumps to t = 0 alone (Song et al. 2023, 2303.01469).

    It has no score and no jumps to s > 0: those are refused. Sample it by `Renoise()`.

    >>> from scoregen import MLP, V, VPSDE
    >>> model = ConsistencyModel(MLP(event=(2,), second_clock=True), VPSDE(), V())
    >>> model.jump(torch.zeros(4, 2), 1.0, 0.0).shape
    torch.Size([4, 2])
    """

    def _check_jump(self, t: Level, to: Level | None) -> None:
        clean = to is not None and (isinstance(to.t, Tensor) or to.t == 0)
        if not clean:
            raise ValueError(
                "a consistency model is trained on jumps to t = 0 alone, so it has neither a score "
                "nor jumps to s > 0: sample it with Renoise(), or with Jump() in one move"
            )


def _check_two_clocks(net: object) -> None:
    """Refuse a network that cannot be given a second clock, before the first evaluation."""
    called = net.forward if isinstance(net, torch.nn.Module) else net
    if not callable(called):
        return  # refused with the other slots
    parameters = inspect.signature(called).parameters
    keywords = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "span" not in parameters and not keywords:
        raise TypeError(
            f"{type(net).__name__} has one clock, and a flow map is called as net(x, clock, "
            "span=second): add the argument, or build MLP or UNet with second_clock=True"
        )


def flow_map(model: ScoreModel) -> FlowMapModel:
    """The flow map inside a model and its wrappers (a bound condition, guidance, an edit).

    Raises:
        TypeError: if there is none.

    >>> from scoregen import VPSDE
    >>> exact = GaussianFlowMap(VPSDE(), torch.zeros(2), 0.25)
    >>> flow_map(Wrapped(exact)) is exact
    True
    """
    inner = check_model(model)
    while isinstance(inner, Wrapped):
        inner = inner.model
    if not isinstance(inner, FlowMapModel):
        raise TypeError(
            f"{type(inner).__name__} predicts at one level and knows no jumps: use a flow map "
            "(scoregen.flowmaps.FlowMap), or a solver such as DDIM()"
        )
    return inner


def check_direction(model: ScoreModel, upwards: bool) -> None:
    """Refuse to train a map on jumps that it is later refused."""
    if upwards and not flow_map(model).inverts:
        raise ValueError(
            "the pairs hold jumps towards noise, which this map does not know: build it with "
            "span=AngleSpan(inverts=True), or train it with inverts=0"
        )


def check_event(model: ScoreModel, x: Tensor) -> None:
    """Refuse what is no batch of the model's event; of any event where the model knows none."""
    check_state(x)
    if model.event is not None and tuple(x.shape[1:]) != tuple(model.event):
        raise ValueError(
            f"x must have shape (batch, *event) with event {model.event}, got {tuple(x.shape)}"
        )


def jump(model: ScoreModel, x: Tensor, t: Level, s: Level, **condition: Any) -> Tensor:
    """X(x, t, s) of a flow map, also through wrappers: alpha_s x0_hat + sigma_s eps_hat.

    NaN stays in its row: samplers find it there.

    Args:
        model: a flow map, or one in wrappers.
        x: state at t, shape (batch, *event).
        t: level now.
        s: level after.

    Raises:
        ValueError, TypeError: for what is no score model, no batch of its event, or no level.

    >>> from scoregen import VPSDE
    >>> sde = VPSDE()
    >>> exact = GaussianFlowMap(sde, torch.zeros(2), 1.0)
    >>> x = torch.ones(1, 2)
    >>> torch.allclose(jump(exact, x, sde.level(1.0), sde.level(0.0)), x)
    True
    """
    check_event(check_model(model), x)
    for name, level in (("t", t), ("s", s)):
        check_kind(name, level, Level, f"model.sde.level({name})")
    return model.predict(x, t, to=s, **condition).combine(s.alpha, s.sigma, "the jump")


class GaussianFlowMap(Gaussian, FlowMapModel):
    """The exact flow map of Gaussian data N(m, S).

        X(x, t, s) = alpha_s m + (C_s / C_t)^(1/2) (x - alpha_t m)

    with C_t = alpha_t^2 S + sigma_t^2 I.

    Args:
        sde: the process.
        mean: m, shaped like an event.
        covariance: S, a variance, one per coordinate, or a matrix.

    >>> from scoregen import RectifiedSDE
    >>> exact = GaussianFlowMap(RectifiedSDE(), torch.zeros(1), 0.25)
    >>> exact.jump(torch.ones(1, 1), 1.0, 0.0)
    tensor([[0.5000]])
    """

    def predict(
        self, x: Tensor, t: Level, *, to: Level | None = None, **condition: Any
    ) -> Prediction:
        if to is None:
            return Gaussian.predict(self, x, t, **condition)
        u, alpha_t, sigma_t = self._inward(x, t)
        alpha_s, sigma_s = column(to.alpha, x), column(to.sigma, x)
        total_t = alpha_t**2 * self.variances + sigma_t**2
        total_s = alpha_s**2 * self.variances + sigma_s**2
        gain = (total_s / total_t).sqrt()
        # u = alpha_t x0 + sigma_t eps and gain u = alpha_s x0 + sigma_s eps, solved for both;
        # on the diagonal the two are one, and the posterior mean is the limit
        det = torch.as_tensor(alpha_t * sigma_s - sigma_t * alpha_s, dtype=torch.float64).to(u)
        same = det == 0
        det = torch.where(same, torch.ones_like(det), det)
        x0 = torch.where(same, alpha_t * self.variances / total_t, (sigma_s - sigma_t * gain) / det)
        eps = torch.where(same, sigma_t / total_t, (alpha_t * gain - alpha_s) / det)
        return Prediction(
            self.sde,
            t,
            x,
            x0=(self.mean + self._outward(x0 * u)).to(x.dtype).reshape(x.shape),
            eps=self._outward(eps * u).to(x.dtype).reshape(x.shape),
        )
