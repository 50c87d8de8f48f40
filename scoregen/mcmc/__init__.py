"""Markov chain Monte Carlo at fixed noise levels, with diagnostics and estimates of log Z.

Start with `MALA`, `HMC`, `Langevin`, `run_chains` and `annealed_importance`.
"""

from ..sampling.resampling import Population, effective, systematic
from .diagnostics import (
    ChainReport,
    Chains,
    autocorrelation,
    autocorrelation_time,
    chain_report,
    ess,
    rank_normalised,
    run_chains,
    split_rhat,
)
from .evidence import (
    Evidence,
    annealed_importance,
    both_directions,
    reverse_annealed_importance,
)
from .exchange import ReplicaExchange, Replicas
from .hamiltonian import HMC, leapfrog
from .integration import thermodynamic_integration
from .kernel import Kernel, MoveReport, StepSize
from .kinetic import BAOAB, OBABO, Kinetic, KineticState
from .langevin import Langevin, NCSNStep, NCSNv2Step
from .levels import adaptive_levels
from .metropolis import MALA, ChainState, Metropolis
from .nuts import NUTS, TreeState
from .rates import factors, tilt_rate, weight_rate
from .sgld import SGLD, PolynomialDecay, PosteriorEnergy
from .smc import FeynmanKac
from .steering import RewardSteering
from .superposition import Superposition
from .transitions import transition_log_prob
from .tuning import DualAveraging, Scaled, TunedState

__all__ = [
    "BAOAB",
    "ChainReport",
    "ChainState",
    "Chains",
    "DualAveraging",
    "Evidence",
    "FeynmanKac",
    "HMC",
    "Kernel",
    "Kinetic",
    "KineticState",
    "Langevin",
    "MALA",
    "Metropolis",
    "MoveReport",
    "NCSNStep",
    "NCSNv2Step",
    "NUTS",
    "OBABO",
    "PolynomialDecay",
    "Population",
    "ReplicaExchange",
    "Replicas",
    "RewardSteering",
    "SGLD",
    "Scaled",
    "StepSize",
    "Superposition",
    "PosteriorEnergy",
    "TreeState",
    "TunedState",
    "adaptive_levels",
    "annealed_importance",
    "autocorrelation",
    "autocorrelation_time",
    "both_directions",
    "chain_report",
    "effective",
    "factors",
    "ess",
    "leapfrog",
    "rank_normalised",
    "reverse_annealed_importance",
    "run_chains",
    "split_rhat",
    "systematic",
    "thermodynamic_integration",
    "tilt_rate",
    "transition_log_prob",
    "weight_rate",
]
