"""Score-based generative modelling: processes, models, solvers, grids and what they cost.

The names below are what a first script needs; everything else stands in its package:
`sg.solvers.SEEDS2`, `sg.mcmc.ess`, `sg.metrics.Frechet`, `sg.objectives.SlicedScoreMatching`.
"""

# The packages are names of their own, `sg.solvers` and so on.
# ruff: noqa: F401
from . import (
    analysis,
    comparison,
    data,
    densities,
    energies,
    flowmaps,
    grids,
    guidance,
    interop,
    inverse,
    likelihood,
    mcmc,
    metrics,
    models,
    networks,
    noise,
    objectives,
    processes,
    sampling,
    solvers,
    training,
    tuning,
)
from ._checks import DivergenceError
from ._version import __version__ as __version__
from .analysis import output_law
from .comparison import compare
from .data import Data, digits
from .densities import Empirical, Gaussian, GaussianMixture
from .energies import EnergyModel, Potential, energy_from_score
from .grids import (
    Constant,
    Karras,
    Knots,
    Reversed,
    Staircase,
    Strided,
    Times,
    UniformLam,
    UniformTime,
)
from .guidance import ClassifierFree
from .interop import (
    from_azula,
    from_diffusers,
    from_distribution,
    from_edm,
    from_guided_diffusion,
    from_k_diffusion,
    from_lucidrains,
    from_score_sde,
    from_torchebm,
    from_velocity,
)
from .likelihood import log_prob
from .mcmc import HMC, MALA, Langevin, run_chains
from .models import (
    EDM,
    X0,
    Eps,
    HalfLogSNR,
    Index,
    LogSigma,
    RawTime,
    Score,
    ScoreModel,
    ScoreNetwork,
    V,
    Velocity,
)
from .networks import MLP, UNet
from .objectives import DenoisingScoreMatching
from .processes import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    Level,
    RectifiedSDE,
    StaticSDE,
    SubVPSDE,
)
from .sampling import Sampler, Solver
from .solvers import (
    DDIM,
    Ancestral,
    Dopri5,
    DPMSolverPP,
    EulerMaruyama,
    KarrasHeun,
    ProbabilityFlow,
    SDEDPMSolverPP,
    UniPC,
)
from .training import digits_model, fit, load, save
from .tuning import recommended, tune

__all__ = [
    "Ancestral",
    "ClassifierFree",
    "Constant",
    "CosineVPSDE",
    "DDIM",
    "DPMSolverPP",
    "Data",
    "DenoisingScoreMatching",
    "DiscreteVESDE",
    "DiscreteVPSDE",
    "DivergenceError",
    "Dopri5",
    "EDM",
    "EDMSDE",
    "Empirical",
    "EnergyModel",
    "Eps",
    "EulerMaruyama",
    "Gaussian",
    "GaussianMixture",
    "HMC",
    "HalfLogSNR",
    "Index",
    "Karras",
    "KarrasHeun",
    "Knots",
    "Langevin",
    "Level",
    "LogSigma",
    "MALA",
    "MLP",
    "Potential",
    "ProbabilityFlow",
    "RawTime",
    "RectifiedSDE",
    "Reversed",
    "SDE",
    "SDEDPMSolverPP",
    "Sampler",
    "Score",
    "ScoreModel",
    "ScoreNetwork",
    "Solver",
    "Staircase",
    "StaticSDE",
    "Strided",
    "SubVPSDE",
    "Times",
    "UNet",
    "UniPC",
    "UniformLam",
    "UniformTime",
    "V",
    "VESDE",
    "VPSDE",
    "Velocity",
    "X0",
    "compare",
    "digits",
    "digits_model",
    "energy_from_score",
    "fit",
    "from_azula",
    "from_diffusers",
    "from_distribution",
    "from_edm",
    "from_guided_diffusion",
    "from_k_diffusion",
    "from_lucidrains",
    "from_score_sde",
    "from_torchebm",
    "from_velocity",
    "load",
    "log_prob",
    "output_law",
    "recommended",
    "run_chains",
    "save",
    "tune",
]
