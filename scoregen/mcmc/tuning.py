"""Step sizes that find themselves: dual averaging towards a target acceptance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from .._checks import check_callable, check_count, check_number
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level
from .kernel import Kernel, MoveReport, StepSize, check_positive, step_at
from .metropolis import ChainState, Metropolis
from .nuts import NUTS, TreeState

__all__ = ["DualAveraging", "Scaled", "TunedState"]


class TunedState(NamedTuple):
    """A chain and its step rule, per sample: logs of the factor on the solver's step.

    Attributes:
        inner: state of the chain.
        move: moves so far.
        log_factor: of the step now, shape (batch,).
        log_average: of the step after warmup, shape (batch,).
        error: running mean of target - acceptance, shape (batch,).

    >>> TunedState(None, 0, None, None, None).move
    0
    """

    inner: Any
    move: int
    log_factor: Any
    log_average: Any
    error: Any


@dataclass(frozen=True)
class Scaled:
    """A step rule times a factor.

    Args:
        rule: gives the step from the level.
        factor: positive.

    >>> Scaled(lambda t: 2 * t.sigma, 0.5)(Level(1.0, 1.0, 3.0, -1.1))
    3.0
    """

    rule: Callable[[Level], float]
    factor: float

    def __post_init__(self) -> None:
        check_callable("rule", self.rule, "(level) -> float")
        check_positive("factor", self.factor)

    def __call__(self, t: Level) -> float:
        return self.factor * self.rule(t)


@dataclass(frozen=True)
class DualAveraging(Kernel):
    """A Metropolis solver whose step is tuned for `warmup` moves, then frozen, for each sample.

    x_{k+1} = log 10 - sqrt(k) / gamma mean(target - acceptance), averaged with weights k^-kappa
    (Hoffman and Gelman 2014, 1111.4246, section 3.2). Draws of the warmup are to be discarded. On
    a falling grid the factor multiplies the solver's own rule. A step that depends on the past of
    its chain leaves no law exactly as it is, during the warmup or after it; `frozen` makes the
    solver that does, for estimates of log Z.

    Args:
        solver: MALA, HMC or NUTS, with a first guess of the step.
        warmup: moves that tune.
        target: acceptance; the solver's own unless given (0.574 for MALA, 0.8 for
            HMC and NUTS).
        gamma: shrinkage towards ten times the first guess.
        delay: moves that count less at the start.
        kappa: forgetting of the average, in (1/2, 1].

    >>> from scoregen.mcmc import MALA
    >>> DualAveraging(MALA(0.1), warmup=200).warmup
    200
    """

    solver: Metropolis | NUTS
    warmup: int
    target: float | None = None
    gamma: float = 0.05
    delay: float = 10.0
    kappa: float = 0.75
    nfe = None

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Metropolis | NUTS):
            raise TypeError(
                f"only a solver that accepts or rejects can be tuned, got {self.solver!r}; use "
                "MALA(step) or HMC(step)"
            )
        check_count("warmup", self.warmup)
        if self.target is not None:
            check_number("target", self.target, 0.0, 1.0, open_low=True, open_high=True)
        check_positive("gamma", self.gamma)
        check_number("delay", self.delay, 0.0)
        check_number("kappa", self.kappa, 0.5, 1.0, open_low=True)

    def report(self, state: Any) -> MoveReport | None:
        return None if state is None else self.solver.report(state.inner)

    def frozen(self, state: TunedState) -> Metropolis | NUTS:
        """The solver with one step for all chains: its own times the mean factor found so far.

        Args:
            state: what a run left, at the end of its warmup or later.
        """
        if state.move < self.warmup:
            raise ValueError(
                f"the step is tuned for {self.warmup} moves, and {state.move} are done"
            )
        factor = math.exp(float(state.log_average.mean()))
        own = self.solver.step_size
        step: StepSize = Scaled(own, factor) if callable(own) else own * factor
        solver = self.solver
        if isinstance(solver, NUTS):
            return replace(solver, step_size=step)
        return replace(solver, step_size=step)  # type: ignore[type-var]

    def transition(
        self, model: ScoreModel, x: Tensor, t: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if state is None:
            zero = x.new_zeros(len(x))
            state = TunedState(None, 0, zero, zero, zero)
        warm = state.move < self.warmup
        factor = (state.log_factor if warm else state.log_average).exp()
        h = step_at(self.solver.step_size, t) * factor
        x, inner = self.solver.move(model, x, t, h, state.inner, noise)
        if not warm:
            return x, state._replace(inner=inner, move=state.move + 1)
        return x, self._tuned(state, inner)

    def _tuned(self, state: TunedState, inner: ChainState | TreeState) -> TunedState:
        k = state.move + 1
        target = self.solver.target if self.target is None else self.target
        share = 1 / (k + self.delay)
        error = (1 - share) * state.error + share * (target - inner.acceptance)
        log_factor = math.log(10) - math.sqrt(k) / self.gamma * error
        forget = k**-self.kappa
        log_average = forget * log_factor + (1 - forget) * state.log_average
        return TunedState(inner, k, log_factor, log_average, error)
