"""Score models: what a network predicts at a noise level, and how its output is read.

Start with `ScoreNetwork(net, sde, parameterization, clock)`; `Eps`, `V`, `X0`, `Velocity`, `Score`
and `EDM` are the parameterizations.
"""

from .base import Given, ScoreModel, Wrapped, check_model
from .clocks import Clock, HalfLogSNR, Index, LogSigma, RawTime
from .conditions import Shared
from .counting import Counted
from .network import Conditions, Network, conditions_of
from .parameterization import EDM, X0, Eps, LearnedVariance, Parameterization, Score, V, Velocity
from .prediction import Prediction
from .score_network import ScoreNetwork

__all__ = [
    "Clock",
    "Conditions",
    "Counted",
    "EDM",
    "Eps",
    "Given",
    "HalfLogSNR",
    "Index",
    "LearnedVariance",
    "LogSigma",
    "Network",
    "Parameterization",
    "Prediction",
    "RawTime",
    "Score",
    "ScoreModel",
    "ScoreNetwork",
    "Shared",
    "V",
    "Velocity",
    "Wrapped",
    "X0",
    "check_model",
    "conditions_of",
]
