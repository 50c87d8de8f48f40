"""Which times to visit: `grid(sde)` gives n + 1 times; consecutive pairs are the moves."""

from .chains import Knots, Strided
from .focused import Focused
from .lists import Constant, Reversed, Staircase, Times
from .named import BetaQuantiles, Interpolated, PolyExponential, Polynomial, RestartGrid
from .spaced import Grid, Karras, Quadratic, UniformLam, UniformTime

__all__ = [
    "BetaQuantiles",
    "Constant",
    "Focused",
    "Grid",
    "Interpolated",
    "Karras",
    "Knots",
    "PolyExponential",
    "Polynomial",
    "Quadratic",
    "RestartGrid",
    "Reversed",
    "Staircase",
    "Strided",
    "Times",
    "UniformLam",
    "UniformTime",
]
