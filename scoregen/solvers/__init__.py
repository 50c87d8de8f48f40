"""Solvers: each moves x from time t to time s."""

from .ancestral import DDIM, Ancestral, ReverseDiffusion
from .base import Solver
from .edm import KarrasHeun
from .flow import EULER, HEUN, MIDPOINT, RK4, Dopri5, ProbabilityFlow, Tableau
from .multistep import DPMSolverPP
from .stochastic import EulerMaruyama, Langevin, NCSNStep

__all__ = [
    "DDIM",
    "EULER",
    "HEUN",
    "MIDPOINT",
    "RK4",
    "Ancestral",
    "DPMSolverPP",
    "Dopri5",
    "EulerMaruyama",
    "KarrasHeun",
    "Langevin",
    "NCSNStep",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "Solver",
    "Tableau",
]
