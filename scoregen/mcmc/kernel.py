"""What an MCMC kernel is: it moves x at one noise level, and leaves the level as it is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from .._checks import check_number
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level, StaticSDE
from ..sampling import Direction, Solver

__all__ = ["Kernel", "MoveReport", "StepSize"]

StepSize = float | Callable[[Level], float]


def check_step_size(step_size: object) -> None:
    """A finite positive number, or a rule that gives one from the level."""
    if not callable(step_size):
        check_positive("step_size", step_size)


def check_positive(name: str, value: object) -> None:
    check_number(name, value, 0.0, open_low=True)


def step_at(step_size: StepSize, t: Level) -> float:
    return step_size(t) if callable(step_size) else step_size


def refuse_clean(kernel: Solver, model: ScoreModel, t: Level) -> None:
    """MCMC has no density to stay in at sigma = 0 of a noising process."""
    if t.sigma == 0 and not isinstance(model.sde, StaticSDE):
        lowest = f"{max(model.sde.t_min, 1e-3):g}"
        raise ValueError(
            f"{type(kernel).__name__} cannot move at sigma = 0 (t = {t.t:g}) of "
            f"{type(model.sde).__name__}, where the score may not exist: stay at t >= {lowest}, "
            f"for instance Constant({lowest}, steps), or end a Staircase with denoise=True; a "
            "time-free energy lives on StaticSDE"
        )


class MoveReport(NamedTuple):
    """How the last move of every chain went.

    Attributes:
        acceptance: probability with which the proposal was accepted, shape (batch,).
        divergent: whether the integrator failed, shape (batch,).
        step_size: the step used, a float or one per sample.

    >>> import torch
    >>> MoveReport(torch.ones(2), torch.zeros(2, dtype=torch.bool), 0.1).step_size
    0.1
    """

    acceptance: Tensor
    divergent: Tensor
    step_size: Any


class Kernel(Solver):
    """A Markov chain at a fixed noise level; subclasses write `transition`.

    On a falling grid a kernel moves at t and then calls the state s; a last move to sigma = 0
    returns x0. A kernel that leaves p_t exactly as it is declares `invariant`.

    >>> from scoregen.mcmc import HMC, MALA, Langevin
    >>> MALA(0.1).invariant, HMC(0.1).invariant, Langevin(0.1).invariant
    (True, True, False)
    """

    @property
    def direction(self) -> Direction:
        return "fixed"

    @abstractmethod
    def transition(
        self, model: ScoreModel, x: Tensor, t: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """One move of the chain at level t.

        Args:
            model: predicts at a level.
            x: state, shape (batch, *event).
            t: the level, with sigma > 0 unless the model is time-free.
            state: what the last move left, None on the first; never mutated.
            noise: gives fresh N(0, I) draws, requested as noise(like, t, t).

        Returns:
            (the next x, state for the next move).
        """

    def report(self, state: Any) -> MoveReport | None:
        """How the move that left this state went; None for kernels that accept everything."""
        return None

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if s.sigma == 0 < t.sigma:
            return model(x, t).x0, None
        refuse_clean(self, model, t)
        return self.transition(model, x, t, state, noise)
