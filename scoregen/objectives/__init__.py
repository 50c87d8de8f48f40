"""Objectives: one loss per sample, (model, x0, *, generator, **condition) -> (batch,)."""

from .classification import NoiseClassification
from .contrastive import (
    ContrastiveDivergence,
    NoiseContrastive,
    PersistentContrastiveDivergence,
    ReplayBuffer,
)
from .denoising import DenoisingScoreMatching, Objective
from .implicit import ImplicitScoreMatching
from .laws import (
    AtKnots,
    Stratified,
    TimeLaw,
    UniformLamLaw,
    UniformLaw,
)
from .normal import LogitNormal, LogNormalSigma
from .recovery import DiffusionRecovery
from .sliced import SlicedScoreMatching
from .variational import Hybrid, LossAwareKnots, VariationalBound
from .weights import EDMWeight, Likelihood, MinSNR, Simple, Unit, Weight

__all__ = [
    "Hybrid",
    "LossAwareKnots",
    "VariationalBound",
    "ContrastiveDivergence",
    "DiffusionRecovery",
    "ImplicitScoreMatching",
    "NoiseClassification",
    "NoiseContrastive",
    "PersistentContrastiveDivergence",
    "ReplayBuffer",
    "SlicedScoreMatching",
    "AtKnots",
    "DenoisingScoreMatching",
    "EDMWeight",
    "Likelihood",
    "LogNormalSigma",
    "LogitNormal",
    "MinSNR",
    "Objective",
    "Simple",
    "Stratified",
    "TimeLaw",
    "UniformLamLaw",
    "UniformLaw",
    "Unit",
    "Weight",
]
