"""The density of a model by its probability-flow ODE.

d x / dt = velocity(x, t) carries p_{t_min} to p_{t_max}, and along it
log p_{t_min}(x) = log p_{t_max}(x_{t_max}) + int div velocity dt (Chen et al. 2018, 1806.07366;
Song et al. 2021, 2011.13456, appendix D.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_data, check_kind, check_number
from .._ode import StepsError, integrate, worst_row
from .._rows import flat
from ..models import ScoreModel
from ..models.base import check_model, evaluating
from ..processes import SDE, DiscreteSDE, Level
from .traces import Exact, Hutchinson

__all__ = ["LogProb", "decode", "encode", "log_prob"]


class LogProb(NamedTuple):
    """A log-density with its uncertainty.

    Attributes:
        value: log p_{t_min}(x) in nats, shape (batch,).
        stderr: standard error of each value over the probes, shape (batch,): 0 for the exact
            trace, NaN for a single probe.
        nfe: evaluations of the model plus products with its Jacobian, per sample.
        t_min: the time whose density this is; 0 is the data.

    >>> LogProb(torch.zeros(2), torch.zeros(2), 10, 1e-3).nfe
    10
    """

    value: Tensor
    stderr: Tensor
    nfe: int
    t_min: float


def log_prob(
    model: ScoreModel,
    x: Tensor,
    *,
    trace: Exact | Hutchinson = Exact(),
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float | None = None,
    t_max: float | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    max_steps: int = 10_000,
) -> LogProb:
    """log p_{t_min}(x) by the probability-flow ODE, solved by Dormand-Prince 4(5) of torchdiffeq.

    log p_{t_min}(x) = log p_{t_max}(x_{t_max}) + int_{t_min}^{t_max} div velocity(x_t, t) dt. The
    step is small enough for the worst row. Gradients flow to x, and to the model's parameters,
    through the solver's own steps if x.requires_grad and gradients are on; on an exact model the
    gradient with respect to x is the score at t_min.

    Args:
        model: a score model; bind its condition by `model.given(...)`. It is evaluated in
            evaluation mode.
        x: points of shape (batch, *event).
        trace: `Exact()`, d products with the Jacobian at each evaluation, or `Hutchinson(probes)`.
        rtol: relative tolerance, of x and of the log-density.
        atol: absolute tolerance, in the units of x and in nats.
        t_min: where the integral starts and whose density is returned; the process' own unless
            given. Only where velocities are finite at 0 may it be 0.
        t_max: where it ends; the process' own unless given.
        prior: log-density at t_max, (batch, *event) -> (batch,); N(0, prior_std^2) unless given.
        max_steps: most internal steps before giving up.

    Raises:
        ValueError, TypeError: for a bad x, time or tolerance, or under torch.inference_mode().
        RuntimeError: if the solver gives up.

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> x = torch.zeros(1, 2, dtype=torch.float64)
    >>> round(float(log_prob(model, x).value), 3), round(-math.log(2 * math.pi), 3)
    (-1.838, -1.838)
    """
    low, high = _span(check_model(model).sde, t_min, t_max)
    _check(x, rtol, atol, max_steps)
    check_kind("trace", trace, (Exact, Hutchinson), "Exact()")
    if prior is not None:
        check_callable("prior", prior, "(batch, *event) -> (batch,), the log-density at t_max")
    _check_derivatives(x)
    if len(x) == 0:
        return LogProb(x.new_zeros(0), x.new_zeros(0), 0, low)
    probes = trace.products(x)
    evaluations = 0

    def field(level: Level, rate: float, y: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        state = y[:, :d].reshape(x.shape)

        def velocity(u: Tensor) -> Tensor:
            return rate * model.predict(u, level).velocity

        out, pull, *_ = torch.func.vjp(velocity, state)
        graph = torch.is_grad_enabled()
        with torch.enable_grad():  # some backward kernels of torch refuse vmap without
            turned = torch.func.vmap(lambda v: pull(v)[0], chunk_size=trace.chunk)(probes)
        turned = turned if graph else turned.detach()
        terms = (probes * turned).reshape(len(probes), len(x), d).sum(2)
        return torch.cat([out.reshape(len(x), d), trace.sums(terms).mT], 1)

    def norm(error: Tensor) -> Tensor:
        return torch.maximum(worst_row(error[:, :d]), error[:, d:].abs().max())

    d = x[0].numel()
    with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad), evaluating(model):
        logs = trace.sums(x.new_zeros(len(probes), len(x))).mT
        start = torch.cat([x.reshape(len(x), d), logs], 1)
        end = _solve(model.sde, field, start, low, high, rtol, atol, norm, max_steps)
        last = end[:, :d].reshape(x.shape)
        at_end = log_normal(last, model.sde.prior_std(high)) if prior is None else prior(last)
        values = at_end + end[:, d:].mT
    stderr = values.new_zeros(len(x))
    if isinstance(trace, Hutchinson):
        count = len(values)
        stderr = values.detach().std(0) / math.sqrt(count) if count > 1 else stderr + math.nan
    return LogProb(values.mean(0), stderr, evaluations * (1 + len(probes)), low)


def encode(
    model: ScoreModel,
    x: Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float | None = None,
    t_max: float | None = None,
    max_steps: int = 10_000,
) -> Tensor:
    """The latent x_{t_max} that the probability-flow ODE carries x = x_{t_min} to.

    Args:
        model: a score model.
        x: points of shape (batch, *event).
        rtol, atol, t_min, t_max, max_steps: as in `log_prob`.

    Returns:
        Tensor shaped like x; `decode` undoes it to the tolerance.

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> encode(model, torch.ones(1, 2))
    tensor([[1., 1.]])
    """
    low, high = _span(check_model(model).sde, t_min, t_max)
    return _carry(model, x, low, high, rtol, atol, max_steps)


def decode(
    model: ScoreModel,
    x: Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float | None = None,
    t_max: float | None = None,
    max_steps: int = 10_000,
) -> Tensor:
    """The point x_{t_min} that the probability-flow ODE carries the latent x = x_{t_max} to.

    Args:
        model: a score model.
        x: latents of shape (batch, *event).
        rtol, atol, t_min, t_max, max_steps: as in `log_prob`.

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> decode(model, torch.ones(1, 2))
    tensor([[1., 1.]])
    """
    low, high = _span(check_model(model).sde, t_min, t_max)
    return _carry(model, x, high, low, rtol, atol, max_steps)


def _span(sde: SDE, t_min: float | None, t_max: float | None) -> tuple[float, float]:
    high = sde.t_max if t_max is None else check_number("t_max", t_max, 0.0, sde.t_max)
    low = check_number("t_min", sde.t_min if t_min is None else t_min, 0.0, high, open_high=True)
    if sde.level(high).sigma == 0:
        raise ValueError(f"{type(sde).__name__} has no noise, so no ODE leads to a known density")
    clean = sde.level(low).sigma == 0
    if clean and (isinstance(sde, DiscreteSDE) or not math.isfinite(sde.rates_at(low)[1])):
        raise ValueError(
            f"the velocity is infinite at t_min = {low:g}; the density is known from "
            f"{sde.t_min:g} on"
        )
    return low, high


def _check(x: Tensor, rtol: float, atol: float, max_steps: int) -> None:
    check_data(x)
    check_number("rtol", rtol, 0.0, open_low=True)
    check_number("atol", atol, 0.0, open_low=True)
    check_count("max_steps", max_steps)


def _check_derivatives(x: Tensor) -> None:
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise ValueError(
            "the divergence needs derivatives, which torch.inference_mode() forbids; use "
            "torch.no_grad(), and clone tensors that were made under inference mode"
        )


def _carry(
    model: ScoreModel, x: Tensor, t: float, s: float, rtol: float, atol: float, max_steps: int
) -> Tensor:
    _check(x, rtol, atol, max_steps)
    if len(x) == 0:
        return x

    def field(level: Level, rate: float, y: Tensor) -> Tensor:
        return rate * model.predict(y, level).velocity

    with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad), evaluating(model):
        return _solve(model.sde, field, x, t, s, rtol, atol, worst_row, max_steps)


def _solve(
    sde: SDE,
    field: Callable[[Level, float, Tensor], Tensor],
    y: Tensor,
    t: float,
    s: float,
    rtol: float,
    atol: float,
    norm: Callable[[Tensor], Tensor],
    max_steps: int,
) -> Tensor:
    """y at s from y at t, where dy/dt = field(level, 1, y); `rate` is dt / d(clock)."""

    def by_time(time: float, y: Tensor) -> Tensor:
        return field(sde.level(time), 1.0, y)

    def by_lam(lam: float, y: Tensor) -> Tensor:
        # the rates of a chain jump at every knot, where an adaptive step would falter; lam is the
        # clock in which its path is smooth
        level = sde.level_at(lam)
        alpha_rate, sigma_rate = sde.rates_at(level.t)
        return field(level, 1 / (alpha_rate / level.alpha - sigma_rate / level.sigma), y)

    chain = isinstance(sde, DiscreteSDE)
    a, b = (sde.level(t).lam, sde.level(s).lam) if chain else (t, s)
    try:
        # the first step is given: torchdiffeq's guess looks beyond the end, with a stray gradient
        return integrate(
            by_lam if chain else by_time,
            y,
            a,
            b,
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
            norm=norm,
            first_step=abs(b - a) / 1024,
        )
    except StepsError as error:
        raise RuntimeError(
            f"the ODE from t = {t:g} to {s:g} could not be solved to rtol = {rtol:g}, "
            f"atol = {atol:g} in {max_steps} steps ({error}); loosen the tolerances, raise t_min, "
            "or use float64"
        ) from error


def log_normal(x: Tensor, std: float) -> Tensor:
    """log N(x; 0, std^2) of each sample, shape (batch,)."""
    rows = flat(x)
    d = rows.shape[1]
    return -0.5 * (rows / std).square().sum(1) - d * (math.log(std) + 0.5 * math.log(2 * math.pi))
