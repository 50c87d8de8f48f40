"""Grids and solvers fitted to a process or to a network.

Start with `tune`, or with `trajectory_grid` where the solver is given.
"""

from .candidates import candidates
from .grids import OptimalGaussian, trajectory_grid
from .interior import Interior, SinhSpacing, VPTimeSpacing
from .search import tune
from .tuned import Fit, Tuned
from .unroll import as_table

__all__ = [
    "Fit",
    "Interior",
    "OptimalGaussian",
    "SinhSpacing",
    "Tuned",
    "VPTimeSpacing",
    "as_table",
    "candidates",
    "trajectory_grid",
    "tune",
]
