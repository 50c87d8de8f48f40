"""The density of a flow map that runs both ways, by the change of variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_data, check_numbers
from .._rows import row_rms
from ..likelihood.ode import log_normal
from ..models import ScoreModel
from ..models.modes import evaluating
from ..processes import SDE, Level
from .model import check_event, flow_map, jump

__all__ = ["MapLogProb", "log_prob"]


class MapLogProb(NamedTuple):
    """A log-density with the latent it was read at, and how far the map is from its own inverse.

    Attributes:
        value: log-density at the first time in nats, shape (batch,).
        latent: where the map carries x, shaped like x.
        gap: root mean square of x less what comes back from the latent, shape (batch,): 0 for the
            exact map. The density is that of the noise carried back by the inverse of the jumps
            towards noise; of the jumps towards data only where this is small.

    >>> MapLogProb(torch.zeros(2), torch.zeros(2, 3), torch.zeros(2)).gap
    tensor([0., 0.])
    """

    value: Tensor
    latent: Tensor
    gap: Tensor


def log_prob(
    model: ScoreModel,
    x: Tensor,
    *,
    times: Sequence[float] | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    chunk: int | None = None,
) -> MapLogProb:
    """log p(x) of a flow map: log p_T(z) + log |det dz/dx|, z = X(x, t_min, t_max).

    Exact for the map, since it is one function and no integral; d products with its Jacobian a
    jump, whose determinant is taken in float64 on the host. (For the ODE behind it, at many more
    evaluations: `scoregen.log_prob`.)

    Args:
        model: a flow map with `AngleSpan(inverts=True)`; bind a condition by `model.given(...)`.
        x: points at the first time, shape (batch, *event).
        times: rising times of the jumps; (t_min, t_max) unless given. No network is evaluated at
            0, so where the process has t_min = 0 they start at a thousandth of t_max.
        prior: log-density at the last time, (batch, *event) -> (batch,); N(0, prior_std^2) unless
            given.
        chunk: most products with the Jacobian at a time; all unless given.

    Raises:
        ValueError: for a map that was trained one way only, or times that do not rise.
        TypeError: for a model that is no flow map.

    >>> from scoregen import VPSDE
    >>> from scoregen.flowmaps import GaussianFlowMap
    >>> exact = GaussianFlowMap(VPSDE(), torch.zeros(2), 1.0)
    >>> round(float(log_prob(exact, torch.zeros(1, 2)).value), 3)
    -1.838
    """
    flow_map(model)
    check_event(model, check_data(x, "x"))
    if prior is not None:
        check_callable("prior", prior, "(batch, *event) -> (batch,), the log-density at the end")
    if chunk is not None:
        check_count("chunk", chunk)
    levels = [model.sde.level(t) for t in _rising(model.sde, times)]
    with torch.no_grad(), evaluating(model):
        z, total = x, torch.zeros(len(x), dtype=torch.float64)
        for t, s in pairwise(levels):
            z, volume = _stretched(model, z, t, s, chunk)
            total += volume
        at_end = log_normal(z, model.sde.prior_std(levels[-1].t)) if prior is None else prior(z)
        back = z
        for t, s in pairwise(levels[::-1]):
            back = jump(model, back, t, s)
    return MapLogProb(at_end + total.to(at_end.dtype).to(x.device), z, row_rms(back - x))


def _rising(sde: SDE, times: Sequence[float] | None) -> tuple[float, ...]:
    if times is None:
        return (sde.t_min if sde.t_min > 0 else 1e-3 * sde.t_max, sde.t_max)
    rising = check_numbers("times", times, 0.0, sde.t_max)
    if len(rising) < 2 or any(b <= a for a, b in pairwise(rising)):
        raise ValueError(f"times must rise, from data to noise, such as (1e-3, 1.0); got {rising}")
    return rising


def _stretched(
    model: ScoreModel, x: Tensor, t: Level, s: Level, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """X(x, t, s) and log |det dX/dx| per sample, float64 on the host."""
    out, pull, *_ = torch.func.vjp(lambda u: jump(model, u, t, s), x)
    d = max(1, math.prod(x.shape[1:]))
    basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])
    rows = torch.func.vmap(lambda v: pull(v)[0], chunk_size=chunk)(basis.expand(d, *x.shape))
    jacobian = rows.reshape(d, len(x), d).transpose(0, 1)
    return out, torch.linalg.slogdet(jacobian.cpu().double()).logabsdet
