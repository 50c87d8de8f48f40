"""Steps versus quality: samplers compared on one network with common noise.

Start with `compare`; `load` reads back what it wrote.
"""

from .execute import Executor
from .figures import plot_quality, plot_samples
from .page import write_page
from .plan import Baseline, Cell, Cost, plan
from .run import compare
from .statistics import Interval, Summary, Verdict
from .study import Comparison, load
from .table import Row

__all__ = [
    "Baseline",
    "Cell",
    "Comparison",
    "Cost",
    "Executor",
    "Interval",
    "Row",
    "Summary",
    "Verdict",
    "compare",
    "load",
    "plan",
    "plot_quality",
    "plot_samples",
    "write_page",
]
