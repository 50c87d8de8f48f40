"""UniPC: a predictor, and a corrector that takes its evaluation from the next move."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from torch import Tensor

from .._checks import check_choice
from ..models import Prediction
from ..processes import SDE, Level
from .exponential import Form, check_order, output, plan
from .history import Multistep

__all__ = ["UniPC"]


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC-p (Zhao et al. 2023, 2302.04867): one evaluation a move, order p + 1.

    The predictor interpolates the last p outputs; when the output at s is known, which the next
    move needs anyway, the same move is made again with it as one more node. All weights fulfil the
    moment conditions; "bh1" and "bh2" take the paper's short cut where only one difference is used,
    with B = h and B = exp(h) - 1. The last move is not corrected.

    Args:
        p: outputs of the predictor, 1 to 3.
        form: "x0", the paper's choice, or "eps".
        variant: "exact", or the short cuts "bh1" and "bh2".

    >>> UniPC(2).order, UniPC(2).nfe
    (3, 1)
    """

    p: int = 3
    form: Form = "x0"
    variant: Literal["exact", "bh1", "bh2"] = "exact"

    def __post_init__(self) -> None:
        check_order("p", self.p, 3)
        check_choice("form", self.form, ("x0", "eps"))
        check_choice("variant", self.variant, ("exact", "bh1", "bh2"))

    @property
    def order(self) -> int:
        return self.p + 1

    @property
    def points(self) -> int:
        return self.p + 1

    @property
    def start_nfe(self) -> int:
        # corrected, the first move of p = 2 is accurate enough; p = 3 needs third order
        return 3 if self.p == 3 else 1

    def output(self, p: Prediction) -> Tensor:
        return output(self.form, p)

    def plan(
        self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]
    ) -> tuple[float, tuple[float, ...]]:
        return corrected_plan(self.form, self.variant, self.p, t, s, levels)

    def stage_plan(
        self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]
    ) -> tuple[float, tuple[float, ...]]:
        return plan(self.form, t, s, levels, self.variant)


@lru_cache(maxsize=65536)
def corrected_plan(
    form: Form, variant: str, p: int, t: Level, s: Level, levels: tuple[Level, ...]
) -> tuple[float, tuple[float, ...]]:
    """The corrector of the last move and the predictor of this one, as one linear combination.

    levels[1:] are the nodes of the predictor that led from levels[1] to t; the corrector replaces
    its weights by those with the node t as well.
    """
    before = levels[1:]
    carry, ahead = plan(form, t, s, levels[:p], variant)
    weights = [*ahead, *[0.0] * (len(levels) - len(ahead))]
    if before:
        _, predicted = plan(form, before[0], t, before, variant)
        _, corrected = plan(form, before[0], t, (*before, t), variant)
        change = (corrected[-1], *(c - w for c, w in zip(corrected[:-1], predicted, strict=True)))
        weights = [w + carry * c for w, c in zip(weights, change, strict=True)]
    return carry, tuple(weights)
