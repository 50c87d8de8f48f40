"""Weights of exponential and plain multistep formulas, from their moment conditions in float64.

In lam = log(alpha / sigma) the probability-flow ODE is linear up to the network (Lu et al. 2022,
2206.00927 and 2211.01095): with h = lam_s - lam_t and u counted from lam_t,

    x_s = (sigma_s / sigma_t) x + alpha_s int_0^h exp(u - h) x0(u) du
        = (alpha_s / alpha_t) x - sigma_s int_0^h exp(h - u) eps(u) du.

A formula replaces x0 or eps by a polynomial through values at known nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from operator import truediv
from typing import Literal

from torch import Tensor

from .._checks import check_count
from ..models import Prediction
from ..models.prediction import mix
from ..processes import Level

__all__ = ["Form", "moment_weights", "phi"]

Form = Literal["x0", "eps"]


def phi(k: int, w: float) -> float:
    """phi_k(w) = sum_n w^n / (n + k)! = int_0^1 exp((1 - v) w) v^(k-1) / (k-1)! dv.

    The recurrence phi_(k+1) = (phi_k - 1 / k!) / w cancels near w = 0, so the series serves there
    (Hochbruck and Ostermann 2010).

    Args:
        k: at least 1.
        w: any real number.

    >>> phi(1, 1e-9)
    1.0000000005
    """
    if abs(w) > 2.0:
        value = math.expm1(w) / w
        for j in range(1, k):
            value = (value - 1 / _FACTORIALS[j]) / w
        return value
    return math.fsum(map(truediv, _powers(w), _FACTORIALS[k : k + 28]))


_FACTORIALS = tuple(float(math.factorial(n)) for n in range(171))


@lru_cache(maxsize=1)
def _powers(w: float) -> tuple[float, ...]:
    """w^0 .. w^27, which the moments of one formula share."""
    return tuple(w**n for n in range(28))


@lru_cache(maxsize=65536)
def moment_weights(rate: float, h: float, nodes: tuple[float, ...]) -> tuple[float, ...]:
    """Weights w_j with sum_j w_j q(u_j) = int_0^h exp(rate (u - h)) q(u) du for deg q < len(nodes).

    Args:
        rate: 1 for the x0 form, -1 for the eps form, 0 for plain Adams weights.
        h: length of the move in the coordinate u; negative when it falls.
        nodes: the u_j, all different; 0 is where the move starts.

    Returns:
        One weight for each node.

    >>> moment_weights(0.0, 1.0, (0.0, -1.0))
    (1.5, -0.5)
    """
    # int_0^1 exp(rate h (v - 1)) v^k dv = k! phi_(k+1)(-rate h)
    moments = [_FACTORIALS[k] * phi(k + 1, -rate * h) for k in range(len(nodes))]
    places = [u / h for u in nodes]
    weights = []
    for j, place in enumerate(places):
        basis = [1.0]  # Lagrange's polynomial of node j, lowest power first
        for i, other in enumerate(places):
            if i != j:
                gap = place - other
                shifted = [0.0, *basis]
                basis = [(a - other * b) / gap for a, b in zip(shifted, [*basis, 0.0], strict=True)]
        weights.append(h * math.fsum(m * b for m, b in zip(moments, basis, strict=True)))
    return tuple(weights)


def half_weights(
    rate: float, h: float, nodes: tuple[float, ...], rule: Literal["bh1", "bh2"]
) -> tuple[float, float]:
    """Two-node weights whose first moment is h B / 2, with B = 1 (bh1) or phi_1(-rate h) (bh2).

    Exact for constants, and for straight lines up to O(h^3): the published short cut of
    second-order members (Lu et al. 2022; Zhao et al. 2023, 2302.04867).
    """
    total = h * phi(1, -rate * h)
    far = (h if rule == "bh1" else total) / 2 * h / (nodes[1] - nodes[0])
    return total - far, far


@lru_cache(maxsize=65536)
def plan(
    form: Form, t: Level, s: Level, levels: tuple[Level, ...], rule: str
) -> tuple[float, tuple[float, ...]]:
    """(carry, weights) of the move x_s = carry x + sum_j weights_j out_j, outs at `levels`.

    `rule` is "exact" for the moment conditions, "bh1" or "bh2" for the two-node short cuts.
    """
    h = s.lam - t.lam
    rate = 1.0 if form == "x0" else -1.0
    nodes = tuple(level.lam - t.lam for level in levels)
    if rule == "exact" or len(nodes) != 2:
        weights = moment_weights(rate, h, nodes)
    else:
        weights = half_weights(rate, h, nodes, "bh1" if rule == "bh1" else "bh2")
    carry, scale = (s.sigma / t.sigma, s.alpha) if form == "x0" else (s.alpha / t.alpha, -s.sigma)
    return carry, tuple(scale * w for w in weights)


def combine(carry: float, x: Tensor, weights: Sequence[float], outs: Sequence[Tensor]) -> Tensor:
    """carry x + sum_j weights_j out_j, one kernel a term."""
    y = carry * x
    for weight, out in zip(weights, outs, strict=True):
        y = y.add_(out, alpha=weight)
    return y


def check_order(name: str, value: object, most: int) -> None:
    """Refuse what is not a whole number from 1 to `most`."""
    if check_count(name, value) > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


def output(form: Form, p: Prediction) -> Tensor:
    """The form of a prediction that the formula interpolates."""
    return p.x0 if form == "x0" else p.eps


def ddim(p: Prediction, s: Level) -> Tensor:
    """DDIM's move, which also works from pure noise and from clean data, where lam is infinite."""
    return mix(s.alpha, p.x0, s.sigma, p.eps)
