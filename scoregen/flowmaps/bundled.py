"""The bundled flow map of the digits."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from .._files import CheckpointError
from ..training import load
from .model import FlowMap

__all__ = ["digits_map"]

DIGITS_MAP = Path(str(files("scoregen.data").joinpath("digits_map")))


def digits_map() -> FlowMap:
    """The bundled map: one or two evaluations for 8x8 digits, classes 0..9 and 10 for none.

    Distilled from `digits_model()` by `benchmarks/training/train_flow_map.py` with `Trajectories`;
    its jumps run from noise to data.

    >>> from scoregen import Sampler
    >>> from scoregen.flowmaps import Jump
    >>> from scoregen.grids import UniformAngle
    >>> one = Sampler(Jump(), UniformAngle(1))
    >>> one.sample(digits_map(), (3, 1, 8, 8), condition={"label": 7}).shape
    torch.Size([3, 1, 8, 8])
    """
    model = load(DIGITS_MAP)
    if not isinstance(model, FlowMap):
        raise CheckpointError(f"{DIGITS_MAP} must hold a FlowMap, got {type(model).__name__}")
    return model
