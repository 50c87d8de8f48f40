"""Energies: models with a density up to a constant, made from functions, networks or scores.

Start with `Potential`, `EnergyNetwork` and `energy_from_score`.
"""

from .composition import GeometricPath, Mixture, Negated, Product, Tempered
from .conservative import (
    Curl,
    PathEnergy,
    ScoreEnergy,
    check_energy_sign,
    curl,
    energy_change,
    energy_from_score,
)
from .denoiser import DenoiserEnergy
from .energy import (
    EnergyModel,
    EnergyNetwork,
    EnergyPrediction,
    Potential,
    ReconstructionEnergy,
    energy_of,
)
from .line import LineIntegral, line_integral

__all__ = [
    "GeometricPath",
    "Curl",
    "DenoiserEnergy",
    "ReconstructionEnergy",
    "EnergyModel",
    "EnergyNetwork",
    "EnergyPrediction",
    "LineIntegral",
    "Mixture",
    "Negated",
    "PathEnergy",
    "Potential",
    "Product",
    "ScoreEnergy",
    "Tempered",
    "check_energy_sign",
    "curl",
    "energy_change",
    "energy_from_score",
    "energy_of",
    "line_integral",
]
