"""Grids: the times that a sampler visits.

Start with `UniformLam` or `Karras`; `Knots` and `Strided` are for chains, `Constant`
and `Staircase` for MCMC, `Shifted` for large flow models, `UniformAngle` for flow maps.
"""

from .angle import UniformAngle
from .knots import Knots, Strided
from .lists import Constant, Reversed, Staircase, Times
from .named import BetaQuantiles, Interpolated, PolyExponential, Polynomial, RestartGrid
from .shifted import Shifted
from .sinh import SinhLam
from .spaced import Grid, Karras, Quadratic, UniformLam, UniformTime

__all__ = [
    "BetaQuantiles",
    "Constant",
    "SinhLam",
    "Grid",
    "Interpolated",
    "Karras",
    "Knots",
    "PolyExponential",
    "Polynomial",
    "Quadratic",
    "RestartGrid",
    "Reversed",
    "Shifted",
    "Staircase",
    "Strided",
    "Times",
    "UniformAngle",
    "UniformLam",
    "UniformTime",
]
