"""A solver driven from outside: somebody else evaluates the network, one evaluation at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..models import Prediction, ScoreModel
from ..noise import Noise
from ..processes import SDE, Level
from ..sampling import Solver

__all__ = ["Inverted", "evaluations"]


class _Needed(Exception):
    """Leaves a step where it needs an evaluation that has not been made yet."""

    def __init__(self, x: Tensor, t: Level):
        super().__init__()
        self.x, self.t = x, t


class _Evaluated(ScoreModel):
    """The evaluations of one move so far, in order."""

    def __init__(self, sde: SDE, known: Sequence[Prediction]):
        super().__init__()
        self.sde, self.rest = sde, list(known)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        if not self.rest:
            raise _Needed(x, t)
        return self.rest.pop(0)


class _Kept:
    """The draws of one move: new ones are kept, and repeated when the move is replayed."""

    def __init__(self, drawn: list[Tensor], noise: Noise):
        self.drawn, self.noise, self.index = drawn, noise, 0

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        if self.index == len(self.drawn):
            self.drawn.append(self.noise(like, t, s))
        self.index += 1
        return self.drawn[self.index - 1]


class Inverted:
    """A solver on levels, that stops wherever it needs the network.

    A move is replayed from its start with the evaluations and the draws recorded so far, until it
    needs one more; so the solver is the one in `scoregen.solvers`, whatever it remembers, draws
    or evaluates.

    Args:
        solver: any solver.
        sde: the process.
        levels: of the grid.
        x: state at the first level.
        noise: where z comes from.
        start: index of the first move.

    Attributes:
        query, level: where the network is to be evaluated next; level is None at the end.

    >>> import torch
    >>> from scoregen import DDIM, EDMSDE
    >>> sde = EDMSDE()
    >>> run = Inverted(DDIM(), sde, sde.levels([2.0, 1.0]), torch.ones(1, 2), lambda *a: a[0])
    >>> run.level.t, run.query
    (2.0, tensor([[1., 1.]]))
    >>> run.answer(Prediction(sde, run.level, run.query, x0=torch.zeros(1, 2)))
    tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self,
        solver: Solver,
        sde: SDE,
        levels: Sequence[Level],
        x: Tensor,
        noise: Noise,
        start: int = 0,
    ):
        self.solver, self.sde, self.levels, self.noise = solver, sde, levels, noise
        self.x, self.move = x, start
        self.state: Any = None
        self.known: list[Prediction] = []
        self.drawn: list[Tensor] = []
        self.query, self.level = self._advance()

    def moved(self, x: Tensor) -> None:
        """The state that is to be evaluated, as the outside gives it back, maybe edited."""
        if self.query is self.x:
            self.x = x
        self.query = x

    def answer(self, prediction: Prediction) -> Tensor:
        """Takes the evaluation at `query`; returns the next query, or the last state."""
        self.known.append(prediction)
        self.query, self.level = self._advance()
        return self.query

    def _advance(self) -> tuple[Tensor, Level | None]:
        while self.move < len(self.levels) - 1:
            t, s = self.levels[self.move], self.levels[self.move + 1]
            answers, kept = _Evaluated(self.sde, self.known), _Kept(self.drawn, self.noise)
            try:
                self.x, self.state = self.solver.step(answers, self.x, t, s, self.state, kept)
            except _Needed as needed:
                return needed.x, needed.t
            self.known, self.drawn, self.move = [], [], self.move + 1
        return self.x, None


def evaluations(
    solver: Solver, sde: SDE, levels: Sequence[Level], x: Tensor
) -> list[tuple[int, Level]]:
    """(move, level) of every evaluation of a run, found by running it on a wavy x0.

    Args:
        solver: any solver.
        sde: the process.
        levels: of the grid.
        x: a small state, shape (batch, *event).

    >>> import torch
    >>> from scoregen import EDMSDE, KarrasHeun
    >>> sde = EDMSDE()
    >>> levels = sde.levels([2.0, 1.0, 0.0])
    >>> [(i, t.t) for i, t in evaluations(KarrasHeun(), sde, levels, torch.ones(1, 1))]
    [(0, 2.0), (0, 1.0), (1, 1.0)]
    """
    run = Inverted(solver, sde, levels, x, lambda like, t, s: like * 0)
    found = []
    while run.level is not None:
        found.append((run.move, run.level))
        x0 = (3 * run.query).sin()
        eps = (run.query - run.level.alpha * x0) / (run.level.sigma or 1.0)
        run.answer(Prediction(sde, run.level, run.query, x0=x0, eps=eps))
    return found
