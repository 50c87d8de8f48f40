"""Training, averages of weights, and checkpoints that execute nothing.

Start with `fit`, `save` and `load`.
"""

from .checkpoint import CheckpointError, card, digits_model, load, save
from .ema import EMA
from .fingerprints import fingerprint
from .fit import fit
from .posthoc import PostHoc, PowerEMA, reconstruct
from .settings import TrainSettings
from .step import TrainingError, TrainStep
from .watch import Validation, Watch, validate

__all__ = [
    "CheckpointError",
    "EMA",
    "PostHoc",
    "PowerEMA",
    "TrainSettings",
    "TrainStep",
    "TrainingError",
    "Validation",
    "Watch",
    "card",
    "digits_model",
    "fingerprint",
    "fit",
    "load",
    "reconstruct",
    "save",
    "validate",
]
