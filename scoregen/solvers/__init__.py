"""Solvers: each moves x from time t to time s; one file per family of methods.

Start with `DDIM`, `DPMSolverPP`, `KarrasHeun`, `Ancestral` or `EulerMaruyama`.
"""

from .adams import DEIS, IPNDM, LMS, PNDM, GammaAveraging, VelocityAB
from .adaptive import AdaptiveDPM, AdaptiveHeun, AdaptiveState, Status
from .adaptive_sde import AdaptiveSDE, AdaptiveSDEState
from .ancestral import DDIM, Ancestral, ReverseDiffusion
from .angular import AngularAB
from .corrector import PredictorCorrector, SNRLangevin
from .edm import KarrasHeun
from .flow import EULER, HEUN, MIDPOINT, RK4, Dopri5, ProbabilityFlow, Tableau
from .history import History, Multistep
from .multistep import DPMSolver, DPMSolver3MAsPublished, DPMSolverPP, EulerStart, ExponentialAB
from .restart import Restart
from .sa import SASolver, TauInterval
from .sde_dpm import AncestralODE, SDEDPMSolverPP, SDEDPMSolverPP2S
from .seeds import SEEDS2, ExponentialEuler, StochasticHeun
from .singlestep import DPMSolverSingle
from .stochastic import EulerMaruyama
from .unipc import UniPC

__all__ = [
    "AdaptiveDPM",
    "AdaptiveHeun",
    "AdaptiveSDE",
    "AdaptiveSDEState",
    "AdaptiveState",
    "Ancestral",
    "AncestralODE",
    "AngularAB",
    "DDIM",
    "DEIS",
    "DPMSolver",
    "DPMSolver3MAsPublished",
    "DPMSolverPP",
    "DPMSolverSingle",
    "Dopri5",
    "EULER",
    "EulerMaruyama",
    "EulerStart",
    "ExponentialAB",
    "ExponentialEuler",
    "GammaAveraging",
    "HEUN",
    "History",
    "IPNDM",
    "KarrasHeun",
    "LMS",
    "MIDPOINT",
    "Multistep",
    "PNDM",
    "PredictorCorrector",
    "ProbabilityFlow",
    "RK4",
    "Restart",
    "ReverseDiffusion",
    "SASolver",
    "SDEDPMSolverPP",
    "SDEDPMSolverPP2S",
    "SEEDS2",
    "SNRLangevin",
    "Status",
    "StochasticHeun",
    "Tableau",
    "TauInterval",
    "UniPC",
    "VelocityAB",
]
