"""Data: the handwritten digits, two-dimensional targets, and a user's own files."""

from .augmented import Augmentation, Augmented, HorizontalFlip
from .batch import Batch
from .dataset import Data
from .datasets import FromDataset
from .digits import digits
from .files import load
from .levels import from_levels, to_levels
from .nonleaking import NonLeaking
from .source import Source, as_source
from .streams import FromBatches, replayed
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
    "Augmentation",
    "Augmented",
    "Batch",
    "Data",
    "FromBatches",
    "FromDataset",
    "HorizontalFlip",
    "Modes",
    "NonLeaking",
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
    "replayed",
    "rings",
    "sixteen_modes",
    "swiss_roll",
    "to_levels",
]
