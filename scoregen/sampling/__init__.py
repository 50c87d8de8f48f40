"""The base class of solvers and the only sampling loop.

Start with `Sampler(solver, grid)`; `Picard` runs the moves of one in parallel.
"""

from .compiled import Compiled
from .picard import Picard, PicardState
from .sampler import Sampler, Step
from .solver import Direction, EtaSolver, Solver, Wrapped

__all__ = [
    "Compiled",
    "Direction",
    "EtaSolver",
    "Picard",
    "PicardState",
    "Sampler",
    "Solver",
    "Step",
    "Wrapped",
]
