"""Steps versus quality: samplers compared on one network with common noise.

Start with `compare`.
"""

from .plan import Cell, plan
from .report import plot_quality, plot_samples
from .run import Comparison, compare
from .table import Row, markdown

__all__ = [
    "Cell",
    "Comparison",
    "Row",
    "compare",
    "markdown",
    "plan",
    "plot_quality",
    "plot_samples",
]
