"""What a solver is: it moves x from time t to time s."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from torch import Tensor

from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level

__all__ = ["Direction", "EtaSolver", "Solver", "Wrapped"]

Direction = Literal["down", "both", "fixed", "any"]


class Solver(ABC):
    """One move of a sampler; subclasses are frozen dataclasses that write `step`.

    What a caller must know of a solver is a read-only property, which wrappers forward. A subclass
    whose claim never changes writes it as a class attribute (`weak_order = 1`). A last move to
    sigma = 0 returns x0.

    >>> from scoregen import DDIM
    >>> DDIM().order, DDIM().nfe, DDIM().invariant
    (1, 1, False)
    """

    @property
    def direction(self) -> Direction:
        """Which grids suit.

        "down" (towards the data), "both" (either way: ODEs), "fixed" (MCMC at t == s, or falling)
        or "any" (up and down within one grid).
        """
        return "down"

    @property
    def order(self) -> int | None:
        """Order of the output of a noise-free method in the step size; None claims none."""
        return None

    @property
    def weak_order(self) -> int | None:
        """Order of the output law in the step size; None claims none."""
        return None

    @property
    def nfe(self) -> int | None:
        """Evaluations of a move; None where it depends on the data."""
        return 1

    @property
    def invariant(self) -> bool:
        """Whether a move at a level leaves the law p_t of that level exactly as it is.

        Evidence estimates and composed models need it; unadjusted, adapting or tempered kernels
        do not have it.
        """
        return False

    @property
    def population(self) -> bool:
        """Whether the rows of a batch are one population, which chunks or ranks would split."""
        return False

    def failure(self, state: Any) -> str | None:
        """Why rows are not finite, from the state of the move that left them; None if unknown."""
        return None

    @abstractmethod
    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """The state at s from the state at t.

        Args:
            model: predicts at a level.
            x: state at t, shape (batch, *event).
            t: level now.
            s: level after.
            state: what the last move left, None on the first; never mutated.
            noise: gives fresh N(0, I) draws.

        Returns:
            (x at s, state for the next move).
        """


class EtaSolver(Solver):
    """A solver whose `eta` is the share of noise; with none it is an ODE solver.

    Without noise its order is that of its law, and grids may run either way.

    >>> from scoregen import DDIM
    >>> DDIM(eta=0.5).order, DDIM(eta=0.5).direction, DDIM().direction
    (None, 'down', 'both')
    """

    eta: float

    @property
    def direction(self) -> Direction:
        return "down" if self.eta else "both"

    @property
    def order(self) -> int | None:
        return None if self.eta else self.weak_order


class Wrapped(Solver):
    """A solver around another one, whose claims are the inner one's where a subclass has no own.

    >>> from scoregen import KarrasHeun
    >>> from scoregen.solvers import Restart
    >>> Restart(KarrasHeun()).nfe, Restart(KarrasHeun()).population
    (2, False)
    """

    solver: Solver

    @property
    def direction(self) -> Direction:
        return self.solver.direction

    @property
    def order(self) -> int | None:
        return self.solver.order

    @property
    def weak_order(self) -> int | None:
        return self.solver.weak_order

    @property
    def nfe(self) -> int | None:
        return self.solver.nfe

    @property
    def invariant(self) -> bool:
        return self.solver.invariant

    @property
    def population(self) -> bool:
        return self.solver.population

    def failure(self, state: Any) -> str | None:
        return self.solver.failure(state)
