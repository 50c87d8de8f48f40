"""The reverse SDE with a step that every sample chooses for itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._checks import check_count, check_number
from .._rows import against, flat, row_finite, row_rms
from ..models import ScoreModel
from ..noise import Noise
from ..processes import SDE, Level
from ..sampling import Solver
from .adaptive import Status, shortfall

__all__ = ["AdaptiveSDE", "AdaptiveSDEState"]


DEPTH = 24  # most halvings of a move


class AdaptiveSDEState(NamedTuple):
    """What became of each sample; tensors of shape (batch,) but for `reached`.

    Attributes:
        status: a `Status`.
        accepted, rejected: steps so far.
        t: time reached.
        reached: state there, shape (batch, *event), also of samples that did not arrive.
        step: next step to try, in log(alpha / sigma).

    >>> AdaptiveSDEState._fields[0]
    'status'
    """

    status: Tensor
    accepted: Tensor
    rejected: Tensor
    t: Tensor
    reached: Tensor
    step: Tensor


class _Path:
    """One Brownian path per sample over a move, known on dyadic intervals of log(alpha / sigma).

    A stack holds the increments still to come, the next interval on top. A refused step splits it
    in two by a Brownian bridge whose draw is keyed by the interval, so the path does not depend on
    the steps that are tried (Rackauckas and Nie 2017; Li et al. 2020, 2001.01328).
    """

    def __init__(self, whole: Tensor, end: Tensor, keys: list[int]):
        self.ends = end.new_zeros((DEPTH + 1, len(end)))
        self.rises = whole.new_zeros((DEPTH + 1, *whole.shape))
        self.nodes = torch.ones_like(self.ends, dtype=torch.long)
        self.ends[0], self.rises[0] = end, whole
        self.top = torch.zeros_like(end, dtype=torch.long)
        self.rows = torch.arange(len(end), device=end.device)
        self.keys = keys

    def end(self) -> Tensor:
        return self.ends[self.top, self.rows]

    def rise(self) -> Tensor:
        return self.rises[self.top, self.rows]

    def halve(self, here: Tensor, where: Tensor) -> None:
        """Cut the next interval of the samples `where`, which begins at `here`, in two."""
        rows = where.nonzero().flatten()
        top, whole = self.top[rows], self.rise()[rows]
        node, start, end = self.nodes[top, rows], here[rows], self.end()[rows]
        middle = (start + end) / 2
        a, m, b = ((-2 * lam).exp() for lam in (start, middle, end))
        z = torch.empty(whole.shape)
        for i, (row, place) in enumerate(zip(rows.tolist(), node.tolist(), strict=True)):
            bits = np.random.Philox(key=self.keys[row], counter=place << 64)
            draw = np.random.Generator(bits).standard_normal(whole.shape[1:], dtype=np.float32)
            z[i] = torch.as_tensor(draw)
        share, spread = (a - m) / (a - b), ((a - m) * (m - b) / (a - b)).sqrt()
        part = wide(share, whole) * whole + wide(spread, whole) * z.to(whole)
        self.rises[top, rows], self.nodes[top, rows] = whole - part, 2 * node + 1
        self.rises[top + 1, rows], self.nodes[top + 1, rows] = part, 2 * node
        self.ends[top + 1, rows] = middle
        self.top = self.top + where.long()


def path_keys(x: Tensor, t: Level, noise: Noise) -> list[int]:
    """A key for each sample's path, from the source of noise: about 100 random bits each."""
    size = max(1, math.prod(x.shape[1:]))
    draws = [flat(noise(x, t, t))[:, :4] for _ in range(math.ceil(4 / size))]
    bits = torch.cat(draws, 1).float().cpu().contiguous().view(torch.int32)
    words = [
        np.random.SeedSequence(row).generate_state(2, np.uint64)
        for row in bits.numpy().view(np.uint32)
    ]
    return [int(low) | int(high) << 64 for low, high in words]


def wide(v: Tensor, x: Tensor) -> Tensor:
    """One number a sample, in x's dtype and shaped to broadcast against x."""
    return against(v.to(x.dtype), x)


@dataclass(frozen=True)
class AdaptiveSDE(Solver):
    """Stochastic improved Euler with step control for each sample (2105.14080).

    Jolicoeur-Martineau et al. (2021): a step of Euler-Maruyama to x', the same step with the mean
    of eps before and after it to x'', accepted if the root mean square of
    (x' - x'') / max(atol, rtol |x'|, rtol |x' before|) is at most 1, and x'' kept; then the step is
    multiplied by safety / error^exponent. Here the steps are taken in x / alpha against
    sigma / alpha, where the noise is exact; their lengths are those of the move in
    log(alpha / sigma) over powers of two; and each sample keeps one Brownian path, so that refusing
    a step does not bend the law (the paper draws again, which favours tame draws). A move to
    sigma = 0 or below t_min goes to t_min and returns x0 there.

    A sample that is not finite, finds no step or runs out of them ends as NaN, and `run` raises
    with its status, time and steps; the state of `Sampler.iterate` holds them too. All rows are
    evaluated until the last has arrived, two evaluations a step, and the host waits for each step.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance.
        eta: noise of the reverse SDE, 0 for none and 1 for the standard one.
        first: first step to try, in log(alpha / sigma).
        max_steps: most steps of a move, refused ones included.
        safety: the paper's theta, at most 0.99, so that a refused step is not tried again.
        exponent: the paper's r.

    >>> AdaptiveSDE().nfe is None
    True
    """

    rtol: float = 0.02
    atol: float = 0.005
    eta: float = 1.0
    first: float = 0.1
    max_steps: int = 10_000
    safety: float = 0.9
    exponent: float = 0.9
    nfe = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "first", "exponent"):
            check_number(name, getattr(self, name), 0.0, open_low=True)
        # a refused step must become shorter than the rounding of lengths to halves allows for
        check_number("safety", self.safety, 0.0, 0.99, open_low=True)
        check_number("eta", self.eta, 0.0)
        check_count("max_steps", self.max_steps)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        sde = model.sde
        if t.alpha == 0:
            raise ValueError(
                f"sigma / alpha is infinite at t = {t.t:g}, and no step is small beside it; start "
                "the grid a little below t_max"
            )
        floor = sde.t_min if sde.t_min > 0 else 1e-3 * sde.t_max
        short = s.sigma == 0 or s.t < sde.t_min * (1 - 1e-9)
        end = sde.level(floor) if short else s
        old = state or self._begin(x)
        if end.t < t.t and len(x):
            old = self._advance(model, x, t, end, old, noise)
            x = old.reached
        if short:
            x = model(x, sde.level(min(end.t, t.t))).x0
        good = wide((old.status <= Status.ARRIVED).to(x.dtype), x) > 0
        return torch.where(good, x, x.new_tensor(math.nan)), old

    def failure(self, state: Any) -> str | None:
        limits = f"rtol = {self.rtol:g}, atol = {self.atol:g}, max_steps = {self.max_steps}"
        return shortfall(*state[:4], limits=limits)

    def _begin(self, x: Tensor) -> AdaptiveSDEState:
        none = torch.zeros(len(x), dtype=torch.long, device=x.device)
        first = torch.full((len(x),), self.first, dtype=torch.float64, device=x.device)
        return AdaptiveSDEState(none + int(Status.ARRIVED), none, none, first * math.nan, x, first)

    def _advance(
        self,
        model: ScoreModel,
        x: Tensor,
        t: Level,
        end: Level,
        old: AdaptiveSDEState,
        noise: Noise,
    ) -> AdaptiveSDEState:
        sde = model.sde
        span = math.exp(-2 * t.lam) - math.exp(-2 * end.lam)
        whole = math.sqrt(span) * noise(x, t, end)
        path = _Path(whole, torch.full_like(old.step, end.lam), path_keys(x, t, noise))
        lost = old.status != Status.ARRIVED  # in an earlier move: such a sample stays where it was
        x = torch.where(wide(lost.to(x.dtype), x) > 0, old.reached, x)
        here, before, step = torch.full_like(old.step, t.lam), x, old.step
        accepted, rejected = old.accepted, old.rejected
        status = torch.where(lost, old.status, int(Status.RUNNING))
        for _ in range(self.max_steps):
            if not bool((status == Status.RUNNING).any()):
                break
            for _ in range(DEPTH):
                long = (status == Status.RUNNING) & (path.end() - here > 1.01 * step)
                cut = long & (path.top < DEPTH)
                if not bool(cut.any()):
                    break
                path.halve(here, cut)
            # what is still too long was halved as often as it can be
            stuck = (status == Status.RUNNING) & ~(path.end() - here <= 1.01 * step)
            status = torch.where(stuck, int(Status.STEP_TOO_SMALL), status)
            active = status == Status.RUNNING
            goal = path.end()
            low, high, error = self._try(model, x, here, goal, path.rise(), before)
            good = active & (error <= 1)
            # a NaN is an error too large for any step: the smallest factor
            factor = (self.safety * error.clamp(min=1e-12) ** -self.exponent).nan_to_num(0.1)
            step = torch.where(active, (goal - here) * factor.clamp(0.1, 5.0), step)
            x = torch.where(wide(good.to(x.dtype), x) > 0, high, x)
            before = torch.where(wide(good.to(x.dtype), x) > 0, low, before)
            here = torch.where(good, goal, here)
            accepted, rejected = accepted + good.long(), rejected + (active & ~good).long()
            arrived = good & (path.top == 0)
            path.top = (path.top - good.long()).clamp(min=0)
            status = torch.where(arrived, int(Status.ARRIVED), status)
        finite = row_finite(x)
        status = torch.where(status == Status.RUNNING, int(Status.OUT_OF_STEPS), status)
        status = torch.where(finite, status, int(Status.NOT_FINITE))
        time = torch.where(lost, old.t, sde.time(here))
        return AdaptiveSDEState(status, accepted, rejected, time, x, step)

    def _try(
        self, model: ScoreModel, x: Tensor, here: Tensor, goal: Tensor, rise: Tensor, before: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Euler-Maruyama's x', the improved x'', and the error of each sample."""
        t, s = _level(model.sde, here, x), _level(model.sde, goal, x)
        # per-row coefficients in float64: alpha_s (r_s - r_t) = -sigma_s (exp(lam_s - lam_t) - 1)
        push = -(1 + self.eta) * s.sigma * wide(torch.expm1(goal - here), x)
        eps = model(x, t).eps
        base = s.alpha / t.alpha * x + math.sqrt(self.eta) * s.alpha * rise
        low = base + push * eps
        high = base + push / 2 * (eps + model(low, s).eps)
        allowed = self.rtol * torch.maximum(low.abs(), before.abs())
        ratio = (low - high) / allowed.clamp(min=self.atol)
        return low, high, row_rms(ratio.double())


def _level(sde: SDE, lam: Tensor, x: Tensor) -> Level:
    """The level of one log(alpha / sigma) for each sample."""
    return sde.level_of(sde.time(lam), x)
