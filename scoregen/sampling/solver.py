"""What a solver is: it moves x from time t to time s."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level

__all__ = ["EtaSolver", "Solver"]


class Solver(ABC):
    """One move of a sampler; subclasses are frozen dataclasses that write `step`.

    `moves` says which grids suit: "down" (towards the data), "up" (either way: ODEs), "stay" (MCMC
    at t == s, or falling) or "turns" (every move changes the time). `order` is the order of the
    output of a noise-free method in the step size, `weak_order` the order of the output law, and
    `nfe` the evaluations of a move; None where none is claimed. A last move to sigma = 0 returns
    x0.

    >>> from scoregen import DDIM
    >>> DDIM().order, DDIM().nfe
    (1, 1)
    """

    moves: ClassVar[Literal["down", "up", "stay", "turns"]] = "down"
    order: int | None = None
    weak_order: int | None = None
    nfe: int | None = 1

    @property
    def population(self) -> bool:
        """Whether the rows of a batch are one population, which chunks or ranks would split."""
        return False

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
    """A solver whose `eta` says how much noise enters; with none it is an ODE solver.

    Without noise its order is that of its law, and it may walk either way.

    >>> from scoregen import DDIM
    >>> DDIM(eta=0.5).order, DDIM(eta=0.5).moves, DDIM().moves
    (None, 'down', 'up')
    """

    eta: float

    @property
    def moves(self) -> Literal["down", "up"]:  # type: ignore[override]
        return "down" if self.eta else "up"

    @property
    def order(self) -> int | None:  # type: ignore[override]
        return None if self.eta else self.weak_order
