"""Solvers: each moves x from time t to time s."""

from .adams import DEIS, IPNDM, LMS, PNDM, GammaAveraging, VelocityAB
from .adaptive import AdaptiveDPM, AdaptiveHeun, AdaptiveState, Status
from .adaptive_sde import AdaptiveSDE, AdaptiveSDEState
from .ancestral import DDIM, Ancestral, ReverseDiffusion
from .angle import AngleAdams
from .base import Noisy, Solver
from .corrector import PredictorCorrector, SNRLangevin
from .edm import KarrasHeun
from .flow import EULER, HEUN, MIDPOINT, RK4, Dopri5, ProbabilityFlow, Tableau
from .hamiltonian import HMC, leapfrog
from .history import History, Multistep
from .kinetic import BAOAB, OBABO, Kinetic, KineticState
from .metropolis import MALA, ChainState, Metropolis, StepSize
from .multistep import (
    DPMSolver,
    DPMSolver3MAsPublished,
    DPMSolverPP,
    EulerStart,
    ExponentialAB,
)
from .restart import Restart
from .sa import SASolver, TauBand
from .sde_dpm import AncestralODE, SDEDPMSolverPP, SDEDPMSolverPP2S
from .seeds import SEEDS2, ExponentialEuler, StochasticHeun
from .sgld import SGLD, PolynomialDecay, SumOfTerms
from .singlestep import DPMSolverSingle
from .stochastic import EulerMaruyama, Langevin, NCSNStep, NCSNv2Step
from .tuning import DualAveraging, TunedState
from .unipc import UniPC

__all__ = [
    "BAOAB",
    "HMC",
    "MALA",
    "OBABO",
    "SGLD",
    "ChainState",
    "DualAveraging",
    "Kinetic",
    "KineticState",
    "Metropolis",
    "Noisy",
    "NCSNv2Step",
    "PolynomialDecay",
    "StepSize",
    "SumOfTerms",
    "TunedState",
    "leapfrog",
    "AngleAdams",
    "DDIM",
    "EULER",
    "HEUN",
    "MIDPOINT",
    "RK4",
    "Ancestral",
    "DPMSolverPP",
    "DEIS",
    "IPNDM",
    "LMS",
    "PNDM",
    "AdaptiveDPM",
    "AdaptiveHeun",
    "AdaptiveState",
    "DPMSolver",
    "DPMSolver3MAsPublished",
    "DPMSolverSingle",
    "EulerStart",
    "ExponentialAB",
    "GammaAveraging",
    "History",
    "Multistep",
    "Status",
    "UniPC",
    "VelocityAB",
    "Dopri5",
    "EulerMaruyama",
    "KarrasHeun",
    "Langevin",
    "NCSNStep",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "Solver",
    "Tableau",
    "AdaptiveSDE",
    "AdaptiveSDEState",
    "PredictorCorrector",
    "SNRLangevin",
    "Restart",
    "SASolver",
    "TauBand",
    "AncestralODE",
    "SDEDPMSolverPP",
    "SDEDPMSolverPP2S",
    "SEEDS2",
    "ExponentialEuler",
    "StochasticHeun",
]
