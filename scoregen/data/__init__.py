"""Data: bundled images, two-dimensional targets, and what a user has, in memory or not.

`Data` holds samples in memory, `FromDataset` and `FromBatches` read a user's datasets, `Augmented`
changes images at random. All are a `Source`, which is what a training reads.
"""

from .augmented import Augmentation, Augmented, HorizontalFlip
from .batch import Batch
from .cifar import cifar10
from .dataset import Data
from .datasets import FromDataset
from .digits import digits
from .files import load
from .levels import from_levels, to_levels
from .nonleaking import NonLeaking
from .photographs import patches
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
    "cifar10",
    "digits",
    "eight_gaussians",
    "eight_gaussians_modes",
    "from_levels",
    "grid_modes",
    "load",
    "moons",
    "patches",
    "replayed",
    "rings",
    "sixteen_modes",
    "swiss_roll",
    "to_levels",
]
