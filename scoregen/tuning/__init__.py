"""Grids and solvers fitted to a process or to a network.

Start with `trajectory_grid`.
"""

from .grids import OptimalGaussian, trajectory_grid

__all__ = [
    "OptimalGaussian",
    "trajectory_grid",
]
