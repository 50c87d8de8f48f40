"""Data: the handwritten digits, two-dimensional targets, and a user's own files."""

from .dataset import Data, Units, from_levels, to_levels
from .digits import digits
from .files import load
from .targets import (
    Modes,
    checkerboard,
    eight_gaussians,
    eight_gaussians_modes,
    grid_modes,
    moons,
    rings,
    sixteen_modes,
    swiss_roll,
)

__all__ = [
    "Data",
    "Modes",
    "Units",
    "checkerboard",
    "digits",
    "eight_gaussians",
    "eight_gaussians_modes",
    "from_levels",
    "grid_modes",
    "load",
    "moons",
    "rings",
    "sixteen_modes",
    "swiss_roll",
    "to_levels",
]
