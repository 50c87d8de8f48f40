"""How good samples are: each metric compares samples with a reference and answers an Estimate."""

from .classes import ClassAccuracy, Diversity
from .digits_features import (
    DigitsClassifier,
    digits_classifier,
    digits_features,
)
from .estimate import Direction, Estimate, Metric, title
from .frechet import Frechet, MomentError
from .mmd import MMD, median_lengthscale
from .modes import MissingModes, ModeCovariances, ModeMeans, ModeWeights
from .sliced import SlicedWasserstein

__all__ = [
    "ClassAccuracy",
    "DigitsClassifier",
    "Direction",
    "Diversity",
    "Estimate",
    "Frechet",
    "MMD",
    "Metric",
    "MissingModes",
    "ModeCovariances",
    "ModeMeans",
    "ModeWeights",
    "MomentError",
    "SlicedWasserstein",
    "digits_classifier",
    "digits_features",
    "median_lengthscale",
    "title",
]
