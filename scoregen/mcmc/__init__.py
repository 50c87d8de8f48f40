"""Markov chain Monte Carlo at fixed noise levels, with diagnostics and estimates of log Z.

Start with `MALA`, `HMC`, `Langevin`, `run_chains` and `annealed_importance`.
"""

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
from .evidence import Evidence, annealed_importance, thermodynamic_integration
from .hamiltonian import HMC, leapfrog
from .kinetic import BAOAB, OBABO, Kinetic, KineticState
from .langevin import Langevin, NCSNStep, NCSNv2Step
from .metropolis import MALA, ChainState, Metropolis, StepSize
from .sgld import SGLD, PolynomialDecay, PosteriorEnergy
from .tuning import DualAveraging, TunedState

__all__ = [
    "BAOAB",
    "ChainReport",
    "ChainState",
    "Chains",
    "DualAveraging",
    "Evidence",
    "HMC",
    "Kinetic",
    "KineticState",
    "Langevin",
    "MALA",
    "Metropolis",
    "NCSNStep",
    "NCSNv2Step",
    "OBABO",
    "PolynomialDecay",
    "SGLD",
    "StepSize",
    "PosteriorEnergy",
    "TunedState",
    "annealed_importance",
    "autocorrelation",
    "autocorrelation_time",
    "chain_report",
    "ess",
    "leapfrog",
    "rank_normalised",
    "run_chains",
    "split_rhat",
    "thermodynamic_integration",
]
