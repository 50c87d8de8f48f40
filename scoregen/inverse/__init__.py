"""Posterior sampling for inverse problems y = A(x) + noise, and inpainting.

Models that add an estimate of grad log p(y | x_t) to the score, for any solver: `PiGDM`, `TMPD`.
Solvers that bring the measurement in at each move: `DPS`, `DiffPIR`, `Replacement`, `RePaint`, and
`GuidedAncestral` for a classifier. `TwistedSMC` alone is exact as its particles grow.
"""

from .inpainting import RePaint, Replacement
from .measurement import LinearMeasurement
from .models import TMPD, PiGDM
from .particles import Particles, TwistedSMC
from .solvers import DPS, DiffPIR, GuidedAncestral

__all__ = [
    "DPS",
    "DiffPIR",
    "GuidedAncestral",
    "LinearMeasurement",
    "Particles",
    "PiGDM",
    "RePaint",
    "Replacement",
    "TMPD",
    "TwistedSMC",
]
