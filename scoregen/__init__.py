"""Score-based generative modelling: processes, models, solvers, grids and what they cost.

The names below are what a first script needs; everything else stands in its package:
`sg.solvers.SEEDS2`, `sg.mcmc.ess`, `sg.metrics.Frechet`, `sg.objectives.SlicedScoreMatching`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# The packages are names of their own, `sg.solvers` and so on.
# ruff: noqa: F401
from . import data, densities, grids, models, networks, noise, processes, sampling, solvers
from ._checks import DivergenceError
from ._version import __version__ as __version__
from .data import Data, digits
from .densities import Empirical, Gaussian, GaussianMixture
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

# Sampling needs none of these: they are imported when first used, so that importing scoregen costs
# little more than importing torch.
if TYPE_CHECKING:
    from . import (
        analysis,
        baselines,
        comparison,
        energies,
        flowmaps,
        guidance,
        interop,
        inverse,
        latent,
        likelihood,
        mcmc,
        metrics,
        objectives,
        training,
        tuning,
    )
    from .analysis import output_law
    from .comparison import compare
    from .energies import EnergyModel, Potential, energy_from_score
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
    from .objectives import DenoisingScoreMatching
    from .training import digits_model, fit, load, save
    from .tuning import recommended, tune

_ON_USE = {
    "analysis": ("output_law",),
    "baselines": (),
    "comparison": ("compare",),
    "energies": ("EnergyModel", "Potential", "energy_from_score"),
    "flowmaps": (),
    "guidance": ("ClassifierFree",),
    "interop": (
        "from_azula", "from_diffusers", "from_distribution", "from_edm", "from_guided_diffusion",
        "from_k_diffusion", "from_lucidrains", "from_score_sde", "from_torchebm", "from_velocity",
    ),
    "inverse": (),
    "latent": (),
    "likelihood": ("log_prob",),
    "mcmc": ("HMC", "MALA", "Langevin", "run_chains"),
    "metrics": (),
    "objectives": ("DenoisingScoreMatching",),
    "training": ("digits_model", "fit", "load", "save"),
    "tuning": ("recommended", "tune"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for package, names in _ON_USE.items():
        if name == package or name in names:
            module = import_module(f".{package}", __name__)
            value = module if name == package else getattr(module, name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ON_USE})


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
