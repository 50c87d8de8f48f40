"""Data whose score is known exactly at every noise level: Gaussians, mixtures, point clouds."""

from .base import Analytic
from .empirical import Empirical
from .gaussian import Gaussian
from .mixture import GaussianMixture

__all__ = ["Analytic", "Empirical", "Gaussian", "GaussianMixture"]
