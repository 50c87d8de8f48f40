"""Training, averages of weights, and checkpoints that execute nothing.

Start with `fit`, `save` and `load`.
"""

from .checkpoint import CheckpointError, card, digits_model, fingerprint, load, save
from .ema import EMA
from .fit import fit
from .loop import TrainingError, TrainStep
from .settings import TrainSettings

__all__ = [
    "CheckpointError",
    "EMA",
    "TrainSettings",
    "TrainStep",
    "TrainingError",
    "card",
    "digits_model",
    "fingerprint",
    "fit",
    "load",
    "save",
]
