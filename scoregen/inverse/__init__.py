"""Posterior sampling for inverse problems y = A(x) + noise, and inpainting.

Models that add an estimate of grad log p(y | x_t) to the score, for any solver: `PiGDM`, `TMPD`.
Solvers that bring the measurement in at each move: `DPS`, `DiffPIR`, `Replacement`, `RePaint`, and
`GuidedAncestral` for a classifier. `TwistedSMC` alone is exact as its particles grow.
`exact_posterior`, or `prior * measurement`, is the answer itself where the prior is a Gaussian or a
mixture of them.
"""

from .inpainting import RePaint, Replacement
from .measurement import LinearMeasurement, exact_posterior
from .models import TMPD, PiGDM
from .particles import TwistedSMC
from .solvers import DPS, DiffPIR, GuidedAncestral

__all__ = [
    "DPS",
    "DiffPIR",
    "GuidedAncestral",
    "LinearMeasurement",
    "PiGDM",
    "RePaint",
    "Replacement",
    "TMPD",
    "TwistedSMC",
    "exact_posterior",
]
