"""Fit a multistep solver, its times included, to the trajectories of one network."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._checks import check_count, check_counts, check_flag
from ..densities import Analytic
from ..models import ScoreModel, check_model
from ..models.base import evaluating
from ..models.conditions import named
from ..noise import SampleNoise
from ..sampling import Sampler
from .candidates import candidates
from .levenberg import Data, Point, Table, improve, robust
from .trajectories import Trajectories
from .tuned import Fit, Tuned, identity
from .unroll import packed, times_of, unroll

__all__ = ["tune"]

_SCORED = 24  # trajectories that choose among the candidates
_KEPT = 3  # candidates that the fit begins at
_STAGES = ((32, 3), (64, 10))  # trajectories and most iterations, before those on all
_LAST = 4  # most iterations on all trajectories
_OVERFIT = 1.5  # held-out over training error from which more trajectories are taken
_PER_PARAMETER = 30  # numbers in the targets for each parameter of the fit, at least


def tune(
    model: ScoreModel,
    nfe: int,
    *,
    event: tuple[int, ...] | None = None,
    condition: dict[str, Any] | None = None,
    trajectories: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Sampler:
    """A sampler of `nfe` evaluations fitted to a network's own fine trajectories.

    All weights of a linear multistep method and all its times are free (`Tuned`): they are fitted
    by a robust Levenberg-Marquardt method to the ends of 60-move trajectories of the same network
    from the same noise (bespoke solvers: Shaul et al. 2023, 2310.19075, and 2024, 2403.01329; S4S:
    Frankel et al. 2025, 2502.17423; learned times: Tong et al. 2024, 2405.15506). No weight of the
    network changes. The fit begins at the best of 96 hand-made samplers, and is kept only if on
    trajectories it has not seen both the root mean square and the median fall; otherwise the
    hand-made sampler comes back, as a table too. `print(sampler.solver)` shows the numbers.

    Args:
        model: any score model; guidance and all that wraps a network included.
        nfe: evaluations, 2 to 20.
        event: shape of one sample; known already for exact densities.
        condition: keyword arguments of the model. One value serves all trajectories; a tensor of
            length m is repeated over them, trajectory k taking row k mod m.
        trajectories: number for the fit, and as many for its check; 128 unless given, more
            for samples of few coordinates: 30 numbers for each parameter of the fit.
        seed: of the noise.
        progress: show a bar.

    Returns:
        `Sampler(Tuned(...), ...)`, for this network, process and condition; others are refused.

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.tensor([0.04, 1.0]))
    >>> sampler = tune(model, 3, trajectories=24, progress=False)
    >>> sampler.solver.held_out.rms < sampler.solver.before.rms / 2
    True
    """
    if check_count("nfe", nfe, 2) > 20:
        raise ValueError(f"nfe must be at most 20, got {nfe}: recommended(model, nfe) serves there")
    check_model(model)
    SampleNoise(seed)  # refuses what is no seed, before hundreds of trajectories are made
    check_flag("progress", progress)
    given = named(condition)
    shape = _event(model, event)
    if trajectories is None:
        trajectories = _enough(nfe, math.prod(shape))
    count = check_count("trajectories", trajectories, _SCORED)
    with (
        torch.no_grad(),
        evaluating(model),
        tqdm(desc="tuning", unit="iteration", disable=not progress, leave=False) as bar,
    ):
        made = Trajectories(model, shape, given, seed)
        return _fitted(made, nfe, count, bar).sampler()


def _event(model: ScoreModel, event: tuple[int, ...] | None) -> tuple[int, ...]:
    if event is not None:
        return check_counts("event", event)
    inner: Any = model
    if isinstance(inner, Analytic):
        return inner.event
    raise ValueError(
        "event must be given, the shape of one sample, such as event=(1, 8, 8): a network does not "
        "say which shapes it takes"
    )


def _enough(nfe: int, coordinates: int) -> int:
    parameters = (nfe + 1) * (nfe + 4) // 2 + nfe
    count = 128
    while count * coordinates < _PER_PARAMETER * parameters:
        count *= 2
    return count


def _fitted(made: Trajectories, nfe: int, count: int, bar: Any) -> Tuned:
    data = made.data(0, count)
    check = made.data(count, count, data.mean)
    starts, hand, name = _starts(made, nfe, data.head(_SCORED))
    best = _fit(starts, data, bar)
    before, after = hand.along(check).squares, best.along(check).squares
    if _rms(after) > _OVERFIT * _rms(best.along(data).squares):
        data = data.joined(made.data(2 * count, count, data.mean))
        best = improve(best, data, _LAST, bar)
        after = best.along(check).squares
    improved = _rms(after) < _rms(before) and bool(after.median() < before.median())
    table = best if improved else hand
    network, condition = identity(made.bound(torch.arange(count)))
    return Tuned(
        times=times_of(table, made.sde),
        rows=packed(table.rows),
        basis=made.basis,
        event=made.event,
        mean=tuple(data.mean.tolist()),
        process=made.sde,
        network=network,
        condition=condition,
        start=name,
        improved=improved,
        before=Fit.of(before),
        training=Fit.of(table.along(data).squares),
        held_out=Fit.of(after if improved else before),
    )


def _starts(made: Trajectories, nfe: int, few: Data) -> tuple[list[Table], Table, str]:
    """The tables to begin at, and the best sampler as it comes."""
    points: list[Point] = []
    hand, least, name = None, math.inf, ""
    for sampler in candidates(made.sde, nfe):
        table = unroll(sampler, made.sde, made.basis, nfe)
        point = table.along(few)
        error = _rms(point.squares)
        if error < least:
            hand, least, name = table, error, repr(sampler)
        if math.isfinite(error):
            points.append(point.solved(few))
    if hand is None:
        raise ValueError("no hand-made sampler stays finite on this model; check its process")
    scale = 4 * min(float(point.squares.median()) for point in points)
    points.sort(key=lambda point: robust(point.squares, scale))
    return [point.table for point in points[:_KEPT]], hand, name


def _fit(starts: list[Table], data: Data, bar: Any) -> Table:
    (few, short), (some, long) = _STAGES
    small = data.head(few)
    tried = [improve(start, small, short, bar) for start in starts]
    ends = [table.along(small).squares for table in tried]
    scale = 4 * min(float(squares.median()) for squares in ends)
    chosen = min(zip(tried, ends, strict=True), key=lambda pair: robust(pair[1], scale))[0]
    return improve(improve(chosen, data.head(some), long, bar), data, _LAST, bar)


def _rms(squares: Tensor) -> float:
    return float(squares.mean().sqrt())
