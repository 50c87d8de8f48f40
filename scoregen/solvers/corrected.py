"""The frame of multistep methods whose last move is made again with the evaluation of the next."""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache

from ..processes import SDE, Level
from .history import Multistep, Plan

__all__ = ["Corrected"]


class Corrected(Multistep):
    """A predictor through the last `order` outputs, and a corrector that costs no evaluation.

    The output at s is known when the next move begins, which needs it anyway: the same move is then
    made again with it as one more node (Adams-Moulton; UniC of Zhao et al. 2023, 2302.04867), and
    the next move starts from there. Both are one linear combination of the outputs. The last move
    is not corrected. The error falls with one order more than `order`, 4 at most, since the start
    is of third order.

    >>> from scoregen.solvers import UniPC
    >>> UniPC(2).order, UniPC(2).points, UniPC(2).start_nfe
    (2, 3, 1)
    """

    @property
    @abstractmethod
    def order(self) -> int:
        """Outputs that predict."""

    @property
    def points(self) -> int:
        return self.order + 1

    @property
    def start_nfe(self) -> int:
        # corrected, the first move of order 2 is accurate enough; above, it needs third order
        return 1 if self.order <= 2 else 3

    @abstractmethod
    def stage_plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        """`plan` of one polynomial through the outs at `levels`, t the first of them."""

    def plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        return corrected_plan(self, sde, t, s, levels)


@lru_cache(maxsize=65536)
def corrected_plan(
    solver: Corrected, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]
) -> Plan:
    """The corrector of the last move and the predictor of this one, as one linear combination.

    levels[1:] are the nodes of the predictor that led from levels[1] to t; the corrector replaces
    its weights by those with the node t as well.
    """
    before = levels[1:]
    carry, ahead = solver.stage_plan(sde, t, s, levels[: solver.order])
    weights = [*ahead, *[0.0] * (len(levels) - len(ahead))]
    if before:
        _, predicted = solver.stage_plan(sde, before[0], t, before)
        _, corrected = solver.stage_plan(sde, before[0], t, (*before, t))
        change = (corrected[-1], *(c - w for c, w in zip(corrected[:-1], predicted, strict=True)))
        weights = [w + carry * c for w, c in zip(weights, change, strict=True)]
    return carry, tuple(weights)
