"""Flow maps: consistency, shortcut, Lagrangian and mean-flow models, for one or two evaluations.

Start with `FlowMap(net, sde, parameterization)` and `Jump()`; train with `Trajectories` from a
score model, or from scratch with `Lagrangian` or `Shortcut`.
"""

from .bundled import digits_map
from .consistency import Consistency, ConsistencyDistillation
from .density import MapLogProb, log_prob
from .lagrangian import Lagrangian, LagrangianSteps
from .mean_flow import MeanFlow
from .model import (
    AngleSpan,
    ConsistencyModel,
    FlowMap,
    FlowMapModel,
    GaussianFlowMap,
    flow_map,
    jump,
)
from .objective import Draw, JumpObjective
from .pairs import GrowingPairs, Pairs
from .shortcut import Shortcut
from .solvers import Jump, Renoise
from .trajectories import Trajectories, from_score_network, trajectories

__all__ = [
    "AngleSpan",
    "Consistency",
    "ConsistencyDistillation",
    "ConsistencyModel",
    "Draw",
    "FlowMap",
    "FlowMapModel",
    "GaussianFlowMap",
    "GrowingPairs",
    "Jump",
    "JumpObjective",
    "Lagrangian",
    "LagrangianSteps",
    "MapLogProb",
    "MeanFlow",
    "Pairs",
    "Renoise",
    "Shortcut",
    "Trajectories",
    "digits_map",
    "flow_map",
    "from_score_network",
    "jump",
    "log_prob",
    "trajectories",
]
