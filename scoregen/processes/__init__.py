"""Noising processes: how data becomes noise, x_t = alpha x_0 + sigma eps.

Start with `VPSDE`, `EDMSDE` or `RectifiedSDE`; `DiscreteVPSDE` is the chain of a DDPM.
"""

from .base import SDE, Level
from .continuous import EDMSDE, VESDE, VPSDE, CosineVPSDE, RectifiedSDE, StaticSDE, SubVPSDE
from .discrete import DiscreteSDE, DiscreteVESDE, DiscreteVPSDE

__all__ = [
    "DiscreteSDE",
    "CosineVPSDE",
    "DiscreteVESDE",
    "DiscreteVPSDE",
    "EDMSDE",
    "Level",
    "RectifiedSDE",
    "SDE",
    "StaticSDE",
    "SubVPSDE",
    "VESDE",
    "VPSDE",
]
