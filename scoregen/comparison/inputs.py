"""What a comparison is given: refused before the first evaluation, or known without one."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_data,
    check_entries,
    check_kind,
    check_path,
    shown,
)
from ..analysis import output_law
from ..analysis.probe import NotAffineError
from ..metrics import Metric, title
from ..models import ScoreModel, check_model
from ..sampling import Sampler
from .cells import bound
from .plan import Baseline, Cell, check_samplers

_TRIED = 64  # rows of the reference that every metric is tried on before anything is sampled
_LARGEST_SPECTRUM = 1024


def models_by_name(model: object, samplers: Mapping[str, Sampler]) -> dict[str, ScoreModel | Path]:
    """One model as "model", or several by their names; a folder is read later."""
    several = isinstance(model, Mapping)
    models = dict(model) if isinstance(model, Mapping) else {"model": model}
    if samplers and not models:
        raise ValueError("model must name at least one model for the samplers, got none")
    found: dict[str, ScoreModel | Path] = {}
    for name, given in models.items():
        check_kind("the name of a model", name, str, "'mine'")
        which = f"the model {name}" if several else "model"
        folder = isinstance(given, str | os.PathLike)
        found[name] = check_path(which, given) if folder else check_model(given, which)
    return found


def check_names(
    samplers: Mapping[str, Sampler],
    baselines: Mapping[str, Baseline],
    seeds: Sequence[int],
    steps: Sequence[int],
) -> None:
    check_samplers(samplers)
    check_kind("baselines", baselines, Mapping, "{'flow': a generator}")
    if not samplers and not baselines:
        raise ValueError("samplers must name at least one sampler, got none")
    if not steps:
        raise ValueError("steps must list at least one budget of evaluations, got none")
    for name, baseline in baselines.items():
        check_kind("the name of a baseline", name, str, "'flow'")
        if not isinstance(baseline, Baseline):
            raise TypeError(
                f"the baseline {name} must have sample(n, *, seed, condition) and evaluations"
            )
    both = set(samplers) & set(baselines)
    if both:
        raise ValueError(f"{', '.join(sorted(both))} names a sampler and a baseline; rename one")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ and be at least one, got {list(seeds)}")


def check_executor(executor: object) -> None:
    """Refuse what no task can be handed to."""
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        raise TypeError(
            "executor must have submit(function, *arguments), such as "
            f"concurrent.futures.ThreadPoolExecutor(4); got {shown(executor)}"
        )


def check_floor(floor: Tensor, reference: Tensor) -> None:
    """Real samples like those of the reference."""
    check_data(floor, "floor")
    if len(floor) < 2:
        raise ValueError(f"floor must hold at least 2 samples, got {len(floor)}")
    if floor.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"floor must hold samples of the reference's shape, {tuple(reference.shape[1:])}, got "
            f"{tuple(floor.shape[1:])}"
        )


def check_whole(samplers: Mapping[str, Sampler], count: int, chunk: int | None) -> None:
    """Refuse parts of a cell where the solver knows only the whole of it."""
    for name, sampler in samplers.items():
        if chunk is not None and chunk < count and sampler.solver.population:
            raise ValueError(
                f"{name} acts on all of the {count} samples at once, so chunk = {chunk} would "
                "change its answer: compare it without chunk and split"
            )


def titles(metrics: Sequence[Metric], count: int) -> list[str]:
    """The metrics' titles, once it is known that they differ."""
    listed = check_entries("metrics", metrics, "callables (samples, reference) -> Estimate")
    if not listed or not all(callable(m) for m in listed):
        raise TypeError(f"metrics must list callables (samples, reference) -> Estimate: {metrics}")
    names = [title(m, count) for m in metrics]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(
            f"two metrics are called {', '.join(twice)}, so their values would be merged; give "
            "them different names"
        )
    return names


def try_on_reference(metric: Metric, reference: Tensor, count: int) -> None:
    """A metric on some rows of the reference; on as many as are sampled, where few are too few."""
    few = reference[: min(_TRIED, count)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few rows are singular
        try:
            bound(metric, few)(few)
        except (ValueError, RuntimeError):
            rows = torch.arange(count, device=reference.device) % len(reference)
            bound(metric, reference)(reference[rows])


def exact_of(spot: str, cell: Cell, model: ScoreModel, reference: Tensor) -> dict[str, float]:
    """The exact error on Gaussian data of the reference's spectrum, where the sampler is affine."""
    rows = reference.detach().reshape(len(reference), -1).to("cpu", torch.float64)
    if rows.shape[1] > _LARGEST_SPECTRUM or len(rows) < 2:
        return {}
    spectrum = torch.linalg.eigvalsh(torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1]))
    try:
        law = output_law(cell.sampler, model.sde, spectrum.clamp_min(1e-6 * float(spectrum.max())))
    except (NotAffineError, ValueError, NotImplementedError, TypeError):
        return {}  # a TypeError: the samplers of flow maps need one, which a Gaussian is not
    return {spot: law.w2} if math.isfinite(law.w2) else {}


def floor_of(
    metrics: Sequence[Metric],
    names: Sequence[str],
    reference: Tensor,
    floor: Tensor,
    count: int,
) -> dict[str, Any]:
    """What real data reach at the number that is sampled: the mean over disjoint sets of it."""
    found: dict[str, Any] = {}
    for metric, name in zip(metrics, names, strict=True):
        sets = [floor[i * count : (i + 1) * count] for i in range(len(floor) // count)]
        if not sets:
            if metric.biased:
                continue  # its value at another number says nothing here
            sets = [floor]
        try:
            values = [bound(metric, reference)(part).estimate for part in sets]
        except (ValueError, RuntimeError):  # needs exactly what is sampled, such as its labels
            continue
        mean = sum(v.value for v in values) / len(values)
        error = math.sqrt(sum(v.stderr**2 for v in values)) / len(values)
        found[name] = {"value": mean, "stderr": error, "count": len(sets[0])}
    return found
