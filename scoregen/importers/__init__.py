"""Models of other libraries as models of this one, and back; one file per origin."""

from .distributions import from_distribution
from .torchebm import from_torchebm, to_torchebm

__all__ = ["from_distribution", "from_torchebm", "to_torchebm"]
