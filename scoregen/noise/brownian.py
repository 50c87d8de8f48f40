"""One Brownian path for any number of steps: noise that is keyed on the interval of a move."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..processes import Level
from .sources import SampleNoise, moved

__all__ = ["BrownianNoise"]

_EDGE = 12.0  # the path is built for log(alpha / sigma) in [-12, 12]
_DEPTH = 20  # halvings of that interval; a leaf is 2.3e-5 long
_LEAF = 2 * _EDGE / 2**_DEPTH
# draw numbers out of the reach of sources that count their draws from 0
_PATH, _LOOSE = 2**62, 2**61


class BrownianNoise(SampleNoise):
    """Noise from one Brownian path for each sample, so that n and 2n steps share it.

    noise(like, t, s) is (W(c_t) - W(c_s)) / sqrt(c_t - c_s) with W a Brownian motion in the natural
    clock of the process c = (sigma / alpha)^2, in which the noise of every move is an increment.
    It depends on (seed, sample, t, s) alone, not on the order or the number of calls, and
    increments add up: sqrt(c_t - c_m) z(t, m) + sqrt(c_m - c_s) z(m, s) = sqrt(c_t - c_s) z(t, s).
    With t = s (MCMC, correctors) each call is an independent draw.

    W is a virtual tree (Gaines and Lyons 1997; Li et al. 2020, 2001.01328): its value in the middle
    of a cell of log(alpha / sigma) is a Brownian bridge in c between the cell's ends, drawn from
    Philox keyed by (seed, samples, cell), down to cells 2.3e-5 long; inside a leaf one more draw
    serves every point. So the law of any moves longer than a leaf is exact, and shorter ones are
    refused; so are levels with sigma / alpha below exp(-12) = 6e-6 other than clean data itself,
    which the tree does not resolve. Beyond log(alpha / sigma) = -12, c is capped at exp(24),
    where it stands for infinity too. A new time costs about 20 draws, less what it shares with the
    time before; the last branches are kept in memory, about 20 states in float64.

    Args:
        seed: an integer in [0, 2**88).
        first: index of the first sample of this batch, for chunks and ranks.
        indices: as for `SampleNoise`.

    >>> from scoregen import EDMSDE
    >>> t, m, s = (EDMSDE().level(v) for v in (5.0, 4.0, 3.0))
    >>> noise, like = BrownianNoise(0), torch.zeros(2, 3)
    >>> whole, halves = 4 * noise(like, t, s), 3 * noise(like, t, m) + 7**0.5 * noise(like, m, s)
    >>> bool(torch.allclose(whole, halves, atol=1e-5))
    True
    """

    def __init__(self, seed: int, first: int = 0, *, indices: Sequence[int] | None = None):
        super().__init__(seed, first, indices=indices)
        self._shape: tuple[int, ...] | None = None

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        shape = tuple(like.shape)
        if t.lam == s.lam:
            z = self.rows(shape[0], shape[1:], _LOOSE + self.draw)
            self.draw += 1
            return moved(z, like)
        here, there = self._place(t), self._place(s)
        if abs(here - there) < _LEAF:
            raise ValueError(
                f"a Brownian path is resolved to {_LEAF:.2g} in log(alpha / sigma), and the move "
                f"from t = {t.t:g} to {s.t:g} is shorter: take fewer steps, or SampleNoise"
            )
        if shape != self._shape:
            self._plant(shape)
        before, after = self._value(shape, here), self._value(shape, there)
        self._points.clear()
        self._points.update({here: before, there: after})
        scale = 1 / math.sqrt(abs(_clock(here) - _clock(there)))
        return moved((before - after) * scale, like)

    def _place(self, t: Level) -> float:
        if isinstance(t.lam, Tensor):
            raise TypeError("BrownianNoise needs levels of floats, one for the whole batch")
        if _EDGE < t.lam < math.inf:
            raise ValueError(
                f"a Brownian path is resolved down to sigma / alpha = {math.exp(-_EDGE):.2g}, and "
                f"t = {t.t:g} has {math.exp(-t.lam):.2g}: build the process with a larger t_min, "
                "or use SampleNoise"
            )
        return max(float(t.lam), -_EDGE)

    def _plant(self, shape: tuple[int, ...]) -> None:
        """Start a tree for states of this shape, with the path at both of its ends."""
        self._shape = shape
        self._branch: list[tuple[int, Tensor]] = []
        self._points: dict[float, Tensor] = {}
        self._clean = math.sqrt(_clock(_EDGE)) * self._normal(shape, 0)
        step = math.sqrt(_clock(-_EDGE) - _clock(_EDGE))
        self._noisy = self._clean + step * self._normal(shape, 1)

    def _normal(self, shape: tuple[int, ...], cell: int) -> Tensor:
        """The draw of one cell of the tree, float64."""
        return self.rows(shape[0], shape[1:], _PATH + cell).double()

    def _value(self, shape: tuple[int, ...], lam: float) -> Tensor:
        """W at one place, float64."""
        if lam in self._points:
            return self._points[lam]
        clean, noisy, near, far = _EDGE, -_EDGE, self._clean, self._noisy
        if lam == math.inf:
            return torch.zeros_like(near)
        cell = 4  # 0 and 1 are the ends; the children of k are 2k and 2k + 1
        for depth in range(_DEPTH):
            middle = (clean + noisy) / 2
            if depth < len(self._branch) and self._branch[depth][0] == cell:
                value = self._branch[depth][1]
            else:
                z = self._normal(shape, cell)
                value = _bridge(_clock(clean), near, _clock(noisy), far, middle, z)
                self._branch[depth:] = [(cell, value)]
            if lam >= middle:
                noisy, far, cell = middle, value, 2 * cell
            else:
                clean, near, cell = middle, value, 2 * cell + 1
        z = self._normal(shape, cell)
        return _bridge(_clock(clean), near, _clock(noisy), far, lam, z)


def _clock(lam: float) -> float:
    """(sigma / alpha)^2."""
    return math.exp(-2 * lam)


def _bridge(low: float, near: Tensor, high: float, far: Tensor, lam: float, z: Tensor) -> Tensor:
    """W at lam, from its values at the clocks low and high, and a fresh normal."""
    now = _clock(lam)
    share = (now - low) / (high - low)
    spread = math.sqrt(max((now - low) * (high - now) / (high - low), 0.0))
    return near + share * (far - near) + spread * z
