"""Parts of a batch: which rows they are, where they start, what noise and conditions are theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import check_counts, shown
from ..models import ScoreModel
from ..models.conditions import rows as rows_of
from ..noise import Noise, SampleNoise, TorchNoise
from ..processes import Level
from .solver import Solver


def check_shape(shape: Sequence[int], dtype: object = torch.float32) -> tuple[int, ...]:
    """(batch, *event) of a state of this dtype."""
    if not len(shape := check_counts("shape", shape, 0)):
        raise ValueError("shape must be (batch, *event), got an empty one")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a real floating-point dtype, got {shown(dtype)}")
    return shape


def check_rows(rows: Sequence[int] | None, batch: int) -> Sequence[int]:
    if rows is None:
        return range(batch)
    if isinstance(rows, range) and rows.step == 1 and rows.start >= 0 and rows.stop <= batch:
        return rows
    wanted = check_counts("rows", rows, 0)
    if wanted and max(wanted) >= batch:
        raise ValueError(f"rows must lie in [0, {batch}), got {max(wanted)}")
    return wanted


def check_parts(
    solver: Solver,
    seed: int | torch.Generator,
    first: int,
    rows: Sequence[int] | None,
    chunked: bool,
) -> None:
    """Refuse parts of a batch where the draws or the solver know only the whole of it."""
    part = "first" if first else "rows" if rows is not None else ""
    if part and isinstance(seed, torch.Generator):
        raise ValueError(
            f"{part} needs an integer seed: the draws of a torch.Generator have no index, so "
            "they cannot be those of other samples; give seed=0 or another integer"
        )
    part = part or ("chunk" if chunked else "")
    if part and solver.population:
        raise ValueError(
            f"{type(solver).__name__} acts on the whole batch, so {part} would change its "
            "answer: sample the whole batch at once"
        )


def begin(
    model: ScoreModel,
    level: Level,
    like: Tensor,
    seed: int | torch.Generator,
    first: int,
    rows: Sequence[int],
) -> tuple[Tensor, Noise]:
    """The prior's draw at a level for some rows of the batch, like `like`, and their noise."""
    std = model.sde.prior_std(level.t)
    # the start has a source of its own: a failed run rewinds to the draw behind it
    if isinstance(seed, torch.Generator):
        return std * TorchNoise(seed)(like, level, level), TorchNoise(seed)
    x = std * _source(seed, first, rows, 0)(like, level, level)
    return x, _source(seed, first, rows, 1)


def _source(seed: int, first: int, rows: Sequence[int], draw: int) -> SampleNoise:
    """The noise of some rows of the batch that begins with sample `first`."""
    if isinstance(rows, range):
        return SampleNoise(seed, first + rows.start, draw)
    return SampleNoise(seed, first, draw, indices=rows)


def bound(
    model: ScoreModel, condition: dict[str, Any], batch: int, rows: Sequence[int]
) -> ScoreModel:
    """The model with its condition bound for some rows of a batch."""
    if isinstance(rows, range):
        if len(rows) == batch:
            return model.given(**condition)
        part: slice | Tensor = slice(rows.start, rows.stop)
    else:
        part = torch.tensor(list(rows), dtype=torch.long)
    return model.rows(part, batch).given(**rows_of(condition, part, batch))


def bad_rows(x: Tensor) -> list[int]:
    """Indices of the samples that are not finite."""
    return (~torch.isfinite(x.reshape(len(x), -1)).all(1)).nonzero().flatten().tolist()
