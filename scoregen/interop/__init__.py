"""Models of other libraries as models of this one, and back; one file per origin.

Start with `from_distribution` or `from_torchebm`.
"""

from .distributions import from_distribution
from .torchebm import from_torchebm, to_torchebm

__all__ = [
    "from_distribution",
    "from_torchebm",
    "to_torchebm",
]
