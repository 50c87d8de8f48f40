"""Score models: what a network predicts at a noise level, and how its output is read.

Start with `ScoreNetwork(net, sde, parameterization, clock)`; `Eps`, `V`, `X0`, `Velocity`, `Score`
and `EDM` are the parameterizations.
"""

from .base import Counted, Given, ScoreModel, ScoreNetwork
from .clocks import Clock, HalfLogSNR, Index, LogSigma, RawTime
from .parameterization import EDM, X0, Eps, LearnedVariance, Parameterization, Score, V, Velocity
from .prediction import Prediction

__all__ = [
    "Clock",
    "Counted",
    "EDM",
    "Eps",
    "Given",
    "HalfLogSNR",
    "Index",
    "LearnedVariance",
    "LogSigma",
    "Parameterization",
    "Prediction",
    "RawTime",
    "Score",
    "ScoreModel",
    "ScoreNetwork",
    "V",
    "Velocity",
    "X0",
]
