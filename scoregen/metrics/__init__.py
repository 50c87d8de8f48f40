"""How good samples are: each metric compares samples with a reference and answers an Estimate."""

from scoregen.metrics.classes import ClassAccuracy, Diversity
from scoregen.metrics.digits_features import (
    DigitsClassifier,
    digits_classifier,
    digits_features,
)
from scoregen.metrics.estimate import Direction, Estimate, Metric, title
from scoregen.metrics.frechet import Frechet, MomentError
from scoregen.metrics.mmd import MMD, median_lengthscale
from scoregen.metrics.modes import MissingModes, ModeCovariances, ModeMeans, ModeWeights
from scoregen.metrics.sliced import SlicedWasserstein

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
