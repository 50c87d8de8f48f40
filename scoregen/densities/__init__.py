"""Data whose score is known in closed form at every noise level, and distances between laws.

Start with `Gaussian`, `GaussianMixture` and `gaussian_w2`.
"""

from .base import Analytic
from .divergences import (
    energy_distance_1d,
    gaussian_fisher,
    gaussian_kl,
    gaussian_mmd2,
    gaussian_w2,
    isotropic_kl,
    ot_map,
)
from .empirical import Empirical
from .gaussian import Gaussian
from .mixture import GaussianMixture

__all__ = [
    "Analytic",
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "energy_distance_1d",
    "gaussian_fisher",
    "gaussian_kl",
    "gaussian_mmd2",
    "gaussian_w2",
    "isotropic_kl",
    "ot_map",
]
