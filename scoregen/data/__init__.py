"""Data: the handwritten digits, two-dimensional targets, and a user's own files."""

from .batch import Batch
from .dataset import Data
from .digits import digits
from .files import load
from .levels import from_levels, to_levels
from .source import Source, as_source
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
from .units import Units

__all__ = [
    "Batch",
    "Data",
    "Modes",
    "Source",
    "Units",
    "as_source",
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
