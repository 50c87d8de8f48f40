"""Grids and solvers fitted to a process or to a network.

Start with `recommended`, which chooses by a rule, or `tune`, which fits to the network at hand.
"""

from .candidates import candidates
from .files import load_sampler, save_sampler
from .grids import OptimalGaussian, trajectory_grid
from .interior import Interior, SinhSpacing, VPTimeSpacing
from .recommended import recommended
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
    "load_sampler",
    "recommended",
    "save_sampler",
    "trajectory_grid",
    "tune",
]
