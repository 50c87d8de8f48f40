"""The levels of a grid on a process, found once."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

from .._checks import check_grid
from ..grids import Grid
from ..processes import SDE, Level
from .solver import Direction


def levels_of(grid: Grid, sde: SDE, direction: Direction) -> list[Level]:
    """The n + 1 levels of a grid on a process, checked for a direction.

    Remembered where grid and process are values, which always give the same times: frozen
    dataclasses that compare by all their fields. Whatever else may change, and is evaluated again.
    """
    find = _remembered if _is_value(grid) and _is_value(sde) else _found
    return list(find(grid, sde, direction))


def _found(grid: Grid, sde: SDE, direction: Direction) -> tuple[Level, ...]:
    return tuple(sde.levels(check_grid(grid(sde), sde.t_max, sde.t_min, direction)))


_remembered = lru_cache(maxsize=1024)(_found)


def _is_value(thing: Any) -> bool:
    if not is_dataclass(thing) or not thing.__dataclass_params__.frozen:  # type: ignore[union-attr]
        return False
    if not all(field.compare for field in fields(thing)):
        return False
    try:
        hash(thing)
    except TypeError:  # a list among its fields
        return False
    return True
