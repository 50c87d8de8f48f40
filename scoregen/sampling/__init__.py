"""The base class of solvers and the only sampling loop.

Start with `Sampler(solver, grid)`; `Picard` runs the moves of one in parallel,
`sharded` spreads a batch over ranks.
"""

from .compiled import Compiled
from .picard import Picard, PicardState
from .sampler import Sampler, Step
from .sharded import Sharded, sharded
from .solver import Direction, EtaSolver, Solver, Wrapped

__all__ = [
    "Compiled",
    "Direction",
    "EtaSolver",
    "Picard",
    "PicardState",
    "Sampler",
    "Sharded",
    "Solver",
    "Step",
    "Wrapped",
    "sharded",
]
