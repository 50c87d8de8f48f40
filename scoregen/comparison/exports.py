"""The rows in other libraries' tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from .table import Row


def frame(rows: Sequence[Row]) -> Any:
    """A pandas DataFrame, a line per row."""
    try:
        pandas: Any = import_module("pandas")
    except ImportError as error:
        raise ImportError("frame needs pandas: pip install pandas") from error
    return pandas.DataFrame([vars(r) for r in rows])


def dataset(rows: Sequence[Row], name: Callable[[Row], str]) -> Any:
    """An xarray Dataset over metric, sampler, budget (-1: its own) and seed."""
    try:
        xarray: Any = import_module("xarray")
    except ImportError as error:
        raise ImportError("to_xarray needs xarray: pip install xarray") from error
    axes: dict[str, list[Any]] = {
        "metric": list(dict.fromkeys(r.metric for r in rows)),
        "sampler": list(dict.fromkeys(name(r) for r in rows)),
        "budget": sorted({-1 if r.budget is None else r.budget for r in rows}),
        "seed": sorted({r.seed for r in rows}),
    }
    shape = [len(v) for v in axes.values()]
    found = {k: np.full(shape, np.nan) for k in ("value", "stderr", "nfe", "depth", "seconds")}
    for row in rows:
        spot = (row.metric, name(row), -1 if row.budget is None else row.budget, row.seed)
        place = tuple(v.index(s) for v, s in zip(axes.values(), spot, strict=True))
        for key, array in found.items():
            array[place] = getattr(row, key)
    return xarray.Dataset({k: (list(axes), v) for k, v in found.items()}, coords=axes)
