"""The hand-made samplers that a fit may begin at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from .._checks import check_count, check_kind
from ..processes import SDE
from ..sampling import Sampler
from ..solvers import IPNDM, AngularAB, DPMSolverPP, EulerStart, ExponentialAB, UniPC
from .interior import Interior, SinhSpacing, Spacing, VPTimeSpacing

__all__ = ["candidates"]

_SOLVERS = (
    EulerStart(AngularAB(1)),
    EulerStart(AngularAB(2)),
    EulerStart(ExponentialAB(2, "eps")),
    EulerStart(DPMSolverPP(2)),
    UniPC(2),
    IPNDM(3),
)
_SPACINGS: tuple[Spacing, ...] = (
    SinhSpacing(0.6, 1.2),
    SinhSpacing(0.3, 0.7),
    VPTimeSpacing(2.0),
    VPTimeSpacing(1.0),
)


def candidates(sde: SDE, nfe: int) -> Iterator[Sampler]:
    """96 samplers of nfe evaluations: 6 solvers, 4 spacings, 2 first and 2 last noise levels.

    They begin at sigma / alpha = 20 or at t_max, and end, before the last move to 0, at 0.05 or
    0.15.

    Args:
        sde: the process.
        nfe: evaluations, at least 2.

    >>> from scoregen import VPSDE
    >>> len(list(candidates(VPSDE(), 5)))
    96
    """
    check_kind("sde", sde, SDE, "VPSDE()")
    check_count("nfe", nfe, 2)
    # a process without data at t_max has no log(alpha / sigma) there, and no form but v
    highest = None if math.isfinite(sde.level(sde.t_max).lam) else 1e3
    choices = product(_SOLVERS, _SPACINGS, (20.0, highest), (0.05, 0.15))
    return (
        Sampler(solver, Interior(nfe, high, low, spacing)) for solver, spacing, high, low in choices
    )
