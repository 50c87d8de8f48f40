"""Data: the handwritten digits, two-dimensional targets, and a user's own files."""

from scoregen.data.dataset import Data, from_levels, to_levels
from scoregen.data.digits import digits
from scoregen.data.files import load
from scoregen.data.targets import (
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
