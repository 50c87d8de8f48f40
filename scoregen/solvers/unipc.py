"""UniPC: a predictor, and a corrector that takes its evaluation from the next move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .._checks import check_choice
from ..models import Prediction
from ..processes import SDE, Level
from .corrected import Corrected
from .exponential import Form, check_order, output, plan
from .history import Plan

__all__ = ["UniPC"]


@dataclass(frozen=True)
class UniPC(Corrected):
    """UniPC-p (Zhao et al. 2023, 2302.04867): one evaluation a move.

    The predictor interpolates the last p outputs; when the output at s is known, which the next
    move needs anyway, the same move is made again with it as one more node. All weights fulfil the
    moment conditions; "bh1" and "bh2" take the paper's short cut where only one difference is used,
    with B = h and B = exp(h) - 1. The last move is not corrected.

    Args:
        order: the paper's p, outputs of the predictor, 1 to 3. Corrected, the error falls with
            order p + 1.
        form: "x0", the paper's choice, or "eps".
        variant: "exact", or the short cuts "bh1" and "bh2".

    >>> UniPC(2).order, UniPC(2).nfe
    (2, 1)
    """

    order: int = 3
    form: Form = "x0"
    variant: Literal["exact", "bh1", "bh2"] = "exact"

    def __post_init__(self) -> None:
        check_order("order", self.order, 3)
        check_choice("form", self.form, ("x0", "eps"))
        check_choice("variant", self.variant, ("exact", "bh1", "bh2"))

    def output(self, p: Prediction) -> Tensor:
        return output(self.form, p)

    def stage_plan(self, sde: SDE, t: Level, s: Level, levels: tuple[Level, ...]) -> Plan:
        return plan(self.form, t, s, levels, self.variant)
