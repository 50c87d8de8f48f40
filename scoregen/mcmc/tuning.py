"""Step sizes that find themselves: dual averaging towards a target acceptance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .._checks import check_count, check_number
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver
from .metropolis import ChainState, Metropolis, refuse_clean, step_at

__all__ = ["DualAveraging", "TunedState"]


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

    @property
    def acceptance(self) -> Tensor:
        return self.inner.acceptance

    @property
    def divergent(self) -> Tensor:
        return self.inner.divergent

    @property
    def step_size(self) -> Any:
        return self.inner.step_size


@dataclass(frozen=True)
class DualAveraging(Solver):
    """A Metropolis solver whose step is tuned for `warmup` moves, then frozen, for each sample.

    x_{k+1} = log 10 - sqrt(k) / gamma mean(target - acceptance), averaged with weights k^-kappa
    (Hoffman and Gelman 2014, 1111.4246, section 3.2). Draws of the warmup are to be discarded. On
    a falling grid the factor multiplies the solver's own rule.

    Args:
        solver: MALA or HMC, with a first guess of the step.
        warmup: moves that tune.
        target: acceptance; the solver's own unless given (0.574 for MALA, 0.8 for HMC).
        gamma: shrinkage towards ten times the first guess.
        delay: moves that count less at the start.
        kappa: forgetting of the average, in (1/2, 1].

    >>> from scoregen.mcmc import MALA
    >>> DualAveraging(MALA(0.1), warmup=200).warmup
    200
    """

    solver: Metropolis
    warmup: int
    target: float | None = None
    gamma: float = 0.05
    delay: float = 10.0
    kappa: float = 0.75
    direction = "fixed"
    nfe = None

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Metropolis):
            raise TypeError(
                f"only a solver that accepts or rejects can be tuned, got {self.solver!r}; use "
                "MALA(step) or HMC(step)"
            )
        check_count("warmup", self.warmup)
        if self.target is not None:
            check_number("target", self.target, 0.0, 1.0, open_low=True, open_high=True)
        check_number("gamma", self.gamma, 0.0, open_low=True)
        check_number("delay", self.delay, 0.0)
        check_number("kappa", self.kappa, 0.5, 1.0, open_low=True)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if s.sigma == 0 < t.sigma:
            return model(x, t).x0, None
        refuse_clean(self, model, t)
        if state is None:
            zero = x.new_zeros(len(x))
            state = TunedState(None, 0, zero, zero, zero)
        warm = state.move < self.warmup
        factor = (state.log_factor if warm else state.log_average).exp()
        h = step_at(self.solver.step_size, t) * factor
        x, inner = self.solver.stride(model, x, t, s, h, state.inner, noise)
        if not warm:
            return x, state._replace(inner=inner, move=state.move + 1)
        return x, self._tuned(state, inner)

    def _tuned(self, state: TunedState, inner: ChainState) -> TunedState:
        k = state.move + 1
        target = self.solver.target if self.target is None else self.target
        share = 1 / (k + self.delay)
        error = (1 - share) * state.error + share * (target - inner.acceptance)
        log_factor = math.log(10) - math.sqrt(k) / self.gamma * error
        forget = k**-self.kappa
        log_average = forget * log_factor + (1 - forget) * state.log_average
        return TunedState(inner, k, log_factor, log_average, error)
