"""Sources of the standard normal draws that solvers use.

Start with `SampleNoise`, whose sample i depends on (seed, i) alone; `BrownianNoise` gives n and 2n
steps the same path.
"""

from .brownian import BrownianNoise
from .sources import Noise, ReplayNoise, Rewindable, SampleNoise, TorchNoise

__all__ = [
    "BrownianNoise",
    "Noise",
    "ReplayNoise",
    "Rewindable",
    "SampleNoise",
    "TorchNoise",
]
