"""The sampler to take where nothing else is known: by number of evaluations and kind of model."""

from __future__ import annotations

from .._checks import check_count
from ..densities import Analytic
from ..grids import UniformLam
from ..models import EDM, X0, ScoreModel, V, Velocity, check_model
from ..processes import StaticSDE
from ..sampling import Sampler
from ..solvers import IPNDM, AngularAB, EulerStart, UniPC
from .interior import Interior, SinhSpacing, VPTimeSpacing
from .tuned import parameterizations

__all__ = ["recommended"]


def recommended(model: ScoreModel, nfe: int) -> Sampler:
    """The sampler to take for a number of evaluations, where nothing else is known.

    | evaluations | network | exact density (`densities.Analytic`) |
    |---|---|---|
    | 1 to 5 | `IPNDM(3)`, 20 to 0.15, `VPTimeSpacing(2)` | `AngularAB(2)`, t_max to 0.15, \
`SinhSpacing(0.3, 0.7)` |
    | 6 to 12 | `IPNDM(3)`, 40 to 0.01, `SinhSpacing(0.6, 1.2)`; from 10 on `AngularAB(2)`, 60 to \
0.01 | `AngularAB(4)`, t_max to 0.6 / nfe, `SinhSpacing(0.3, 0.85)` |
    | 13 to 30 | `UniPC(2)`, `UniformLam`; from 14 on `UniPC(3)`, 100 to 0.005, \
`SinhSpacing(0.3, 0.7)`, for networks that predict x0, v, a velocity or EDM's F | `AngularAB(4)`, \
t_max to 0.6 / nfe, `SinhSpacing(0.35, 0.7)` |
    | more | `UniPC(2)`, `UniformLam` | `AngularAB(4)`, t_max to 0.75 / nfe, \
`SinhSpacing(0.4, 0.85)` |

    Ends are in sigma / alpha; the exact ones have a smooth end and weights without bound. What is
    no `ScoreNetwork`, such as an energy, counts as an eps-network. Every sampler ends with a move
    to 0, and all evaluations are counted. For networks the weights stay of the size of a move: from
    10 evaluations on, an error in one evaluation's eps reaches data of standard deviation 1/2 with
    a gain of at most 1 (`scoregen.analysis.amplification`). An exact density has no error to
    enlarge, and gets the method of highest order, whose gain is 8 and more.
    `docs/how-to/few-steps.md` has the errors that this rule comes from; a sampler fitted to the
    network (`tune`) is better than any rule.

    Args:
        model: any score model on a process with noise.
        nfe: evaluations per sample; guidance calls the network more than once in each.

    >>> from scoregen import MLP, VPSDE, Eps, ScoreNetwork
    >>> recommended(ScoreNetwork(MLP(), VPSDE(), Eps()), 20)
    Sampler(solver=UniPC(order=2, form='x0', variant='exact'), grid=UniformLam(steps=20, \
start=None, stop=0.0, margin=0.001))
    """
    check_count("nfe", nfe)
    if isinstance(check_model(model).sde, StaticSDE):
        raise ValueError(
            "a StaticSDE has no noise to remove; sample its one law with a Markov chain, such as "
            "scoregen.MALA on Constant"
        )
    if isinstance(model, Analytic):
        return _exact(nfe)
    if nfe <= 5:
        return Sampler(IPNDM(3), Interior(nfe, 20.0, 0.15, VPTimeSpacing(2.0)))
    if nfe <= 9:
        return Sampler(IPNDM(3), Interior(nfe, 40.0, 0.01, SinhSpacing(0.6, 1.2)))
    if nfe <= 12:
        solver = EulerStart(AngularAB(2))
        return Sampler(solver, Interior(nfe, 60.0, 0.01, SinhSpacing(0.6, 1.2)))
    if 14 <= nfe <= 30 and parameterizations(model) <= {X0, V, Velocity, EDM}:
        return Sampler(EulerStart(UniPC(3)), Interior(nfe, 100.0, 0.005, SinhSpacing(0.3, 0.7)))
    return Sampler(UniPC(2), UniformLam(nfe))


def _exact(nfe: int) -> Sampler:
    if nfe <= 5:
        solver = EulerStart(AngularAB(2, smooth_end=True, bounded=False))
        return Sampler(solver, Interior(nfe, None, 0.15, SinhSpacing(0.3, 0.7)))
    solver = EulerStart(AngularAB(4, smooth_end=True, bounded=False))
    if nfe <= 12:
        return Sampler(solver, Interior(nfe, None, 0.6 / nfe, SinhSpacing(0.3, 0.85)))
    if nfe <= 30:
        return Sampler(solver, Interior(nfe, None, 0.6 / nfe, SinhSpacing(0.35, 0.7)))
    return Sampler(solver, Interior(nfe, None, 0.75 / nfe, SinhSpacing(0.4, 0.85)))
