"""Which times to visit: `grid(sde)` gives n + 1 times; consecutive pairs are the moves."""

from .chains import Knots, Strided
from .lists import Constant, Reversed, Staircase, Times
from .spaced import Grid, Karras, Quadratic, UniformLam, UniformTime

__all__ = [
    "Constant",
    "Grid",
    "Karras",
    "Knots",
    "Quadratic",
    "Reversed",
    "Staircase",
    "Strided",
    "Times",
    "UniformLam",
    "UniformTime",
]
