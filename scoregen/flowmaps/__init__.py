"""Flow maps: consistency, shortcut, Lagrangian and mean-flow models, for one or two evaluations.

Start with `FlowMap(net, sde, parameterization)` and `Jump()`; train with `Trajectories` from a
score model, or from scratch with `Lagrangian` or `Shortcut`.
"""

from .model import (
    AngleSpan,
    ConsistencyModel,
    FlowMap,
    FlowMapModel,
    GaussianFlowMap,
    flow_map,
    jump,
)
from .objectives import (
    Consistency,
    ConsistencyDistillation,
    Lagrangian,
    LagrangianSteps,
    MeanFlow,
    Shortcut,
)
from .pairs import Pairs
from .solvers import Jump, Renoise
from .trajectories import Trajectories, from_score_network, trajectories

__all__ = [
    "AngleSpan",
    "Consistency",
    "ConsistencyDistillation",
    "ConsistencyModel",
    "FlowMap",
    "FlowMapModel",
    "GaussianFlowMap",
    "Jump",
    "Lagrangian",
    "LagrangianSteps",
    "MeanFlow",
    "Pairs",
    "Renoise",
    "Shortcut",
    "Trajectories",
    "flow_map",
    "from_score_network",
    "jump",
    "trajectories",
]
