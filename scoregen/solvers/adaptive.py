"""Embedded Runge-Kutta pairs whose steps every sample chooses for itself."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._checks import check_choice, check_count, check_number, check_numbers
from .._rows import against, row_rms
from ..models import ScoreModel
from ..noise import Noise
from ..processes import SDE, Level
from ..sampling import Solver
from .coordinate import coordinate
from .exponential import Form, ddim, output

__all__ = ["AdaptiveDPM", "AdaptiveHeun", "AdaptiveState", "Status"]

SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0
LOOK = 4  # steps between looks at whether every sample has arrived: each look waits for the device


class Status(IntEnum):
    """How an adaptive run stands, per sample.

    >>> Status.ARRIVED.value
    1
    """

    RUNNING = 0
    ARRIVED = 1
    OUT_OF_STEPS = 2
    STEP_TOO_SMALL = 3
    NOT_FINITE = 4


FAILED = {
    Status.OUT_OF_STEPS: "out of steps",
    Status.STEP_TOO_SMALL: "no step meets the tolerance",
    Status.NOT_FINITE: "the model is not finite",
}


def shortfall(
    status: Tensor, accepted: Tensor, rejected: Tensor, t: Tensor, *, limits: str
) -> str | None:
    """Which rows did not arrive, why, at which time and after how many steps; None if all did."""
    rows = (status > Status.ARRIVED).nonzero().flatten().tolist()
    if not rows:
        return None
    parts = [
        f"row {row}: {FAILED[Status(int(status[row]))]} at t = {float(t[row]):.6g}, "
        f"{int(accepted[row])} steps taken and {int(rejected[row])} refused"
        for row in rows[:3]
    ]
    more = f"; {len(rows) - 3} more rows" if len(rows) > 3 else ""
    return (
        "; ".join(parts) + more + f" ({limits}); loosen the tolerances, raise max_steps, or check "
        "that the model is finite there"
    )


class AdaptiveState(NamedTuple):
    """What became of each sample; tensors of shape (batch,) but for the last three.

    Attributes:
        status: a `Status`.
        accepted: steps taken so far.
        rejected: steps tried and not taken.
        t: time reached, float64.
        step: length of the next step in the solver's own coordinate, float64.
        errors: scaled errors of the last two steps taken, shape (2, batch), float64.
        reached: state at `t`, shape (batch, *event), also of samples that did not arrive.

    >>> AdaptiveState._fields[:2]
    ('status', 'accepted')
    """

    status: Tensor
    accepted: Tensor
    rejected: Tensor
    t: Tensor
    step: Tensor
    errors: Tensor
    reached: Tensor


@dataclass(frozen=True)
class _Adaptive(Solver):
    """The loop: a trial, its error against the tolerance, and the next step, row by row."""

    rtol: float = 1e-3
    atol: float = 1e-4
    max_steps: int = 10_000
    pid: tuple[float, float, float] = (0.2, 0.6, 0.0)
    direction = "both"
    nfe = None
    exponent: ClassVar[int]

    def __post_init__(self) -> None:
        check_number("rtol", self.rtol, 0.0)
        check_number("atol", self.atol, 0.0, open_low=True)
        check_count("max_steps", self.max_steps)
        if len(check_numbers("pid", self.pid)) != 3:
            raise ValueError(f"pid must be three coefficients, got {self.pid!r}")
        for name, value in zip(("p", "i", "d"), self.pid, strict=True):
            check_number(f"pid's {name}", value, 0.0)
        check_number("pid's i", self.pid[1], 0.0, open_low=True)

    @abstractmethod
    def span(self, sde: SDE, t: Level, s: Level) -> tuple[Level, Level]:
        """The levels between which steps are adapted; x0 or DDIM's move does the rest."""

    @abstractmethod
    def place(self, sde: SDE, level: Level) -> float:
        """A level's coordinate."""

    @abstractmethod
    def level(self, sde: SDE, u: Tensor, x: Tensor) -> Level:
        """Levels of one coordinate per sample, that broadcast against x."""

    @abstractmethod
    def trial(self, model: ScoreModel, x: Tensor, u: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The results of order exponent - 1 and exponent after a step h from u, both (batch,)."""

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        first, last = self.span(model.sde, t, s)
        a, b = self.place(model.sde, first), self.place(model.sde, last)
        old = state or self._fresh(x, a, b)
        going = old.status <= Status.ARRIVED  # what failed in an earlier move stays where it was
        if first is not t:
            x = ddim(model(x, t), first)
        now, u = self._advance(model, x, a, b, going, old)
        x, arrived = now.reached, now.status == Status.ARRIVED
        if last is not s:
            p = model(x, last)
            x = p.x0 if s.sigma == 0 else ddim(p, s)
        time = self.level(model.sde, u, u).t.double()
        time = torch.where(arrived, s.t, torch.where(going, time, old.t))
        reached = _where(arrived, x, _where(going, now.reached, old.reached))
        x = _where(arrived, x, x.new_tensor(math.nan))
        return x, now._replace(t=time, reached=reached)

    def failure(self, state: Any) -> str | None:
        limits = f"rtol = {self.rtol:g}, atol = {self.atol:g}, max_steps = {self.max_steps}"
        return shortfall(*state[:4], limits=limits)

    def _fresh(self, x: Tensor, a: float, b: float) -> AdaptiveState:
        rows = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        errors = torch.ones_like(rows).expand(2, -1)
        return AdaptiveState(none, none, none, rows, rows + abs(b - a) / 20, errors, x)

    def _advance(
        self, model: ScoreModel, x: Tensor, a: float, b: float, going: Tensor, old: AdaptiveState
    ) -> tuple[AdaptiveState, Tensor]:
        """The rows that are `going`, from coordinate a to b or as far as they come."""
        sign, floor = math.copysign(1.0, b - a), 1e-10 * abs(b - a)
        status, accepted, rejected, _, step, errors, _ = old
        status = torch.where(going, int(Status.RUNNING), status)
        u = torch.full_like(step, a)
        for count in range(self.max_steps):
            running = status == Status.RUNNING
            if count % LOOK == 0 and not bool(running.any()):
                break
            left = (b - u).abs()
            closing = step >= left
            size = torch.where(running, torch.minimum(step, left), 0.0)
            low, high = self.trial(model, x, u, sign * size)
            error = self._error(x, low, high)
            finite = error.isfinite()
            good = running & finite & (error <= 1)
            x = _where(good, high, x)
            u = torch.where(good, torch.where(closing, b, u + sign * size), u)
            scaled = error.clamp(min=1e-10)
            factor = torch.where(finite, self._factor(scaled, errors), SHRINK)
            # a step cut short by the end does not shrink the next
            grown = torch.where(good & closing, torch.maximum(size * factor, step), size * factor)
            step = torch.where(running, grown, step)
            errors = torch.where(good, torch.stack([scaled, errors[0]]), errors)
            accepted, rejected = accepted + good, rejected + (running & ~good)
            tiny = running & ~good & (step < floor)
            status = torch.where(good & closing, int(Status.ARRIVED), status)
            status = torch.where(tiny & finite, int(Status.STEP_TOO_SMALL), status)
            status = torch.where(tiny & ~finite, int(Status.NOT_FINITE), status)
        status = torch.where(status == Status.RUNNING, int(Status.OUT_OF_STEPS), status)
        return AdaptiveState(status, accepted, rejected, u, step, errors, x), u

    def _error(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Root mean square of (high - low) / (atol + rtol max(abs x, abs high)), per sample."""
        scale = self.atol + self.rtol * torch.maximum(x.abs(), high.abs())
        return row_rms(((high - low) / scale).double())

    def _factor(self, error: Tensor, errors: Tensor) -> Tensor:
        """PID control of the logarithm of the step."""
        p, i, d = self.pid
        k = self.exponent
        change = error ** (-(p + i + d) / k) * errors[0] ** ((p + 2 * d) / k)
        return (SAFETY * change * errors[1] ** (-d / k)).clamp(SHRINK, GROW)


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(against(rows, yes), yes, no)


@dataclass(frozen=True)
class AdaptiveHeun(_Adaptive):
    """Heun's method on the probability-flow ODE in time, its error that of Euler's: 1(2).

    x' = x + h (v + v') / 2 with v = dx/dt at (x, t) and v' at (x + h v, t + h); on a chain, whose
    rates jump at its knots, the same in the angle, as in `ProbabilityFlow`. A step is taken when
    rms((x' - x - h v) / (atol + rtol max(abs x, abs x'))) <= 1. Each sample has its own time, step
    and verdict, so batch mates never matter. A move to below t_min integrates to t_min and returns
    x0 there (Jolicoeur-Martineau et al. 2021, 2105.14080, without noise).

    All rows are evaluated until the last has arrived. A sample that is not finite, finds no step or
    runs out of them ends as NaN, and `run` raises with its status, time and steps; the state of
    `Sampler.iterate`, an `AdaptiveState`, holds them too.

    Args:
        rtol: relative tolerance per step.
        atol: absolute tolerance per step.
        max_steps: most steps of a move, refused ones included.
        pid: coefficients of the step controller; (0, 1, 0) is the plain one.

    >>> AdaptiveHeun(rtol=1e-2).max_steps
    10000
    """

    exponent: ClassVar[int] = 2

    def span(self, sde: SDE, t: Level, s: Level) -> tuple[Level, Level]:
        return t, sde.level(sde.t_min) if s.t < sde.t_min * (1 - 1e-9) else s

    def place(self, sde: SDE, level: Level) -> float:
        return coordinate(sde).place(level)

    def level(self, sde: SDE, u: Tensor, x: Tensor) -> Level:
        return sde.level_of(coordinate(sde).times(sde, u), x)

    def trial(self, model: ScoreModel, x: Tensor, u: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        on, step = coordinate(model.sde), against(h.to(x.dtype), x)
        t, s = self.level(model.sde, u, x), self.level(model.sde, u + h, x)
        slope = on.slope(model(x, t))
        base, step = on.carry(t, s) * x, on.scale(s) * step
        low = base + step * slope
        ahead = on.slope(model(low, s))
        return low, base + step / 2 * (slope + ahead)


@dataclass(frozen=True)
class AdaptiveDPM(_Adaptive):
    """DPM-Solver-23: third order with a second-order error, in lam = log(alpha / sigma): 2(3).

    Stages at h / 3 and 2 h / 3; both results are straight lines in lam through the output at 0 and
    one stage, integrated exactly, as in `DPMSolverSingle` (Lu et al. 2022, 2206.00927, appendix C).
    Tolerances, control and failures as in `AdaptiveHeun`. Where lam is infinite the steps begin or
    end at abs(lam) = log(1 / atol) / 2, which is as near as the tolerance sees.

    Args:
        rtol: relative tolerance per step.
        atol: absolute tolerance per step.
        max_steps: most steps of a move, refused ones included.
        pid: coefficients of the step controller; (0, 1, 0) is the plain one.
        form: "eps", or "x0" for DPM-Solver++.

    >>> AdaptiveDPM(form="x0").rtol
    0.001
    """

    form: Form = "x0"
    exponent: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("form", self.form, ("x0", "eps"))

    def span(self, sde: SDE, t: Level, s: Level) -> tuple[Level, Level]:
        far = max(1.0, -math.log(self.atol) / 2)
        ends = []
        for level in (t, s):
            if sde.t_min > 0 and level.sigma == 0:
                level = sde.level(sde.t_min)
            elif math.isinf(level.lam):
                level = sde.level_at(math.copysign(far, level.lam))
            ends.append(level)
        return ends[0], ends[1]

    def place(self, sde: SDE, level: Level) -> float:
        return float(level.lam)

    def level(self, sde: SDE, u: Tensor, x: Tensor) -> Level:
        return sde.level_of(sde.time(u), x)

    def trial(self, model: ScoreModel, x: Tensor, u: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        t = self.level(model.sde, u, x)
        m, n, s = (self.level(model.sde, u + part * h, x) for part in (1 / 3, 2 / 3, 1.0))

        def move(to: Level, part: float, far: Tensor | None, place: float) -> Tensor:
            flat, bend = _moments(part * h, 1.0 if self.form == "x0" else -1.0)
            flat, bend = against(flat.to(x.dtype), x), against(bend.to(x.dtype), x)
            if self.form == "x0":
                carry, scale = to.sigma / t.sigma, to.alpha
            else:
                carry, scale = to.alpha / t.alpha, -to.sigma
            y = carry * x + scale * flat * here
            return y if far is None else y + scale * bend * (part / place) * (far - here)

        here = output(self.form, model(x, t))
        near = output(self.form, model(move(m, 1 / 3, None, 1.0), m))
        far = output(self.form, model(move(n, 2 / 3, near, 1 / 3), n))
        return move(s, 1.0, near, 1 / 3), move(s, 1.0, far, 2 / 3)


def _moments(h: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """h phi_1(w) and h phi_2(w) at w = -rate h: the integrals of exp(rate (u - h)) 1 and u / h."""
    w = -rate * h
    small = w.abs() < 1e-2
    safe = torch.where(small, 1.0, w)
    series = 1 / 2 + w * (1 / 6 + w * (1 / 24 + w * (1 / 120 + w / 720)))
    flat = torch.where(small, 1 + w * series, torch.expm1(safe) / safe)
    return h * flat, h * torch.where(small, series, (flat - 1) / safe)
