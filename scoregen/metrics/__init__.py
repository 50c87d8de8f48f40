"""How good samples are: each metric compares samples with a reference and gives an Estimate."""

from .c2st import C2ST
from .classes import ClassAccuracy, Diversity
from .digits_features import (
    DigitsClassifier,
    digits_classifier,
    digits_features,
)
from .estimate import Direction, Estimate, FunctionMetric, Measured, Metric, TwoSample, title
from .frechet import DebiasedFrechet, Frechet, MomentError
from .inception import InceptionFeatures
from .mmd import KID, MMD, median_lengthscale
from .modes import MissingModes, ModeCovariances, ModeMeans, ModeWeights
from .neighbours import Coverage, Density, Precision, Recall
from .posterior import PosteriorCoverage
from .sliced import SlicedWasserstein

__all__ = [
    "C2ST",
    "ClassAccuracy",
    "Coverage",
    "DebiasedFrechet",
    "Density",
    "DigitsClassifier",
    "Direction",
    "Diversity",
    "Estimate",
    "Frechet",
    "FunctionMetric",
    "InceptionFeatures",
    "KID",
    "MMD",
    "Measured",
    "Metric",
    "MissingModes",
    "ModeCovariances",
    "ModeMeans",
    "ModeWeights",
    "MomentError",
    "PosteriorCoverage",
    "Precision",
    "Recall",
    "SlicedWasserstein",
    "TwoSample",
    "digits_classifier",
    "digits_features",
    "median_lengthscale",
    "title",
]
