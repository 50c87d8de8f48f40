"""Training, averages of weights, and checkpoints that execute nothing.

Start with `fit`, `save` and `load`.
"""

from .checkpoint import CheckpointError, card, digits_model, fingerprint, load, save
from .ema import EMA
from .fit import fit
from .loop import TrainingError, TrainStep
from .posthoc import PostHoc, PowerEMA, reconstruct
from .settings import TrainSettings

__all__ = [
    "CheckpointError",
    "EMA",
    "PostHoc",
    "PowerEMA",
    "TrainSettings",
    "TrainStep",
    "TrainingError",
    "card",
    "digits_model",
    "fingerprint",
    "fit",
    "load",
    "reconstruct",
    "save",
]
