"""The comparison itself: models, samplers and seeds, the same noise for all of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import (
    check_callable,
    check_choice,
    check_count,
    check_counts,
    check_data,
    check_device,
    check_flag,
    check_path,
    check_range,
)
from .._files import probe
from .._identity import identity, library
from ..data import Data
from ..metrics import Metric
from ..models import ScoreModel
from ..models.conditions import expand as expand_condition
from ..models.conditions import named
from ..sampling import Sampler
from ..sampling.batch import check_shape
from ..training import load as load_model
from .cells import Job, Task
from .execute import Executor, Now, Planned, execute
from .inputs import (
    check_executor,
    check_floor,
    check_names,
    check_whole,
    exact_of,
    floor_of,
    models_by_name,
    titles,
    try_on_reference,
)
from .plan import Baseline, Cell, fixed, plan
from .study import Comparison

__all__ = ["compare"]


def compare(
    model: ScoreModel | str | Path | Mapping[str, ScoreModel | str | Path],
    samplers: Mapping[str, Sampler],
    *,
    steps: Sequence[int] = (5, 10, 20, 50),
    metrics: Sequence[Metric],
    reference: Tensor | Data,
    seeds: Iterable[int] = (0,),
    samples: int | None = None,
    condition: dict[str, Any] | None = None,
    baselines: Mapping[str, Baseline] | None = None,
    floor: Tensor | None = None,
    event: tuple[int, ...] | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    data_range: tuple[float, float] | None = None,
    keep: Literal["samples"] | None = None,
    show: int = 25,
    chunk: int | None = None,
    split: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    repeats: int = 1,
    executor: Executor | None = None,
    threads: int | None = None,
    out: str | Path | None = None,
    pictures: bool = True,
    progress: bool = True,
) -> Comparison:
    """Steps versus quality: every sampler on the same network, noise and budgets.

    Each number in `steps` is a budget of evaluations per sample; a sampler takes the most steps
    whose counted evaluations do not exceed it. With `out`, every cell is a file of its own, named
    by the identity of all that decides its samples: the same call goes on where it stopped, a
    further sampler, budget, seed or metric computes only what is missing, and nothing that has
    changed is served. Whatever can be refused is refused before the first evaluation.

    Args:
        model: a score model, the folder of a checkpoint, or several by name.
        samplers: name -> sampler; grids with a count of steps are resized for each budget.
        steps: budgets of evaluations per sample.
        metrics: callables (samples, reference) -> Estimate or a number, which declare `direction`
            and `biased`; `metrics.FunctionMetric` declares them for a function.
        reference: real samples, shape (m, *event), or Data.
        seeds: of the noise; all samplers share it within a seed.
        samples: how many to draw per seed; as many as the reference unless given.
        condition: keyword arguments of the model; tensors hold one row per sample.
        baselines: name -> a generator that is no score model.
        floor: more real samples; metrics are evaluated on as many of them as are sampled, and a
            metric with a bias is left out where they are fewer.
        event: shape of the state of one sample; that of the reference unless given.
        decode: maps states to what is measured and shown, as a decoder of latent states does.
        data_range: values shown as black and white; (-1, 1), or that of the Data.
        keep: "samples" keeps all of them, for metrics added later by `Comparison.measure`.
        show: samples kept per cell for pictures.
        chunk: most samples at a time.
        split: most samples of a cell that one call of the executor makes, a multiple of `chunk`
            (which it is unless given): larger cells are made in ranges, side by side.
        device: where to sample; the model's own device unless given.
        dtype: of the state.
        repeats: how often the sampling of a cell is timed, after a warm-up.
        executor: anything with submit(function, *arguments) -> object with .result(); this process
            unless given. Workers get the model as the executor sends it, or read the checkpoint
            that `model` names.
        threads: of the numerics per worker; 1 with an executor unless given.
        out: folder for results.
        pictures: draw quality.png and samples.png into `out`.
        progress: show a bar.

    Raises:
        ValueError, TypeError: for samplers, budgets, metrics or data that cannot be compared.
        IdentityError: with `out`, for a model, condition, decoder or metric that hides a state.
        ImportError: for pictures without matplotlib.

    >>> from scoregen import DDIM, VPSDE, Gaussian, UniformTime
    >>> from scoregen.metrics import SlicedWasserstein
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> result = compare(model, {"ddim": Sampler(DDIM(), UniformTime(5))}, steps=[5, 10],
    ...                  metrics=[SlicedWasserstein(16)], reference=model.sample(500).float(),
    ...                  progress=False)
    >>> [row.nfe for row in result.rows]
    [5.0, 10.0]
    """
    if isinstance(reference, Data):
        data_range = reference.range if data_range is None else data_range
        reference = reference.x
    low, high = (-1.0, 1.0) if data_range is None else check_range("data_range", data_range)
    check_data(reference, "reference")
    if chunk is not None:
        chunk = check_count("chunk", chunk)
    if split is not None:
        split = check_count("split", split)
        chunk = split if chunk is None else chunk
        if split % chunk:
            raise ValueError(f"split must be a multiple of chunk = {chunk}, got {split}")
    if keep is not None:
        check_choice("keep", keep, ("samples",))
    count = len(reference) if samples is None else check_count("samples", samples, 2)
    keys = list(check_counts("seeds", seeds, 0))
    steps = check_counts("steps", steps)
    baselines = {} if baselines is None else baselines
    check_names(samplers, baselines, keys, steps)
    models = models_by_name(model, samplers)
    check_whole(samplers, count, chunk)
    names = titles(metrics, count)
    show, repeats = check_count("show", show), check_count("repeats", repeats)
    condition = named(condition)
    shape = reference.shape[1:] if event is None else check_counts("event", event)
    _, *state = check_shape((count, *shape), dtype)
    if decode is not None:
        check_callable("decode", decode, "(states) -> samples")
    place = None if device is None else check_device("device", device)
    if executor is not None:
        check_executor(executor)
    if threads is not None:
        threads = check_count("threads", threads)
    check_flag("pictures", pictures)
    check_flag("progress", progress)
    if floor is not None:
        check_floor(floor, reference)
    if out is not None:
        out = check_path("out", out)
        probe(out / "cells")
        if pictures and importlib.util.find_spec("matplotlib") is None:
            raise ImportError(
                "pictures need matplotlib: pip install 'scoregen[bench]', or pictures=False"
            )
    for metric in metrics:
        try_on_reference(metric, reference, count)

    base = Job(
        model="",
        metrics=tuple(metrics),
        reference=reference,
        condition=condition,
        event=tuple(state),
        count=count,
        decode=decode,
        chunk=chunk,
        split=split,
        dtype=dtype,
        keep=keep == "samples",
        show=show,
        repeats=repeats,
        threads=(None if executor is None else 1) if threads is None else threads,
        folder=None if out is None else str(out.resolve()),
    )
    measured = names
    if out is not None:
        of_reference = identity((reference, library()))
        measured = [identity((m, n, of_reference)) for m, n in zip(metrics, names, strict=True)]
    planned: list[Planned] = []
    grids: dict[str, list[float]] = {}
    exact: dict[str, float] = {}
    described: dict[str, Any] = {}
    for label, given in models.items():
        loaded = given if isinstance(given, ScoreModel) else load_model(given)
        where = loaded.placement()[0] if place is None else place
        job = replace(
            base,
            model=given if isinstance(given, ScoreModel) else str(given.resolve()),
            condition=expand_condition(condition, count, where),
            device=str(where),
            token=os.urandom(8).hex(),
        )
        cells = _planned_cells(loaded, samplers, steps, job)
        known = identity(loaded) if out is not None else ""
        described[label] = {
            "class": type(loaded).__name__,
            "fingerprint": known[:12],
            "sde": repr(loaded.sde)[:300],
        }
        for cell in cells:
            spot = f"{label}|{cell.name}|{cell.budget}"
            grids[spot] = [level.t for level in cell.sampler.levels(loaded.sde)]
            if out is not None and decode is None and event is None:
                exact.update(exact_of(spot, cell, loaded, reference))
            for seed in keys:
                task = Task(
                    job,
                    cell.sampler,
                    seed,
                    _samples_identity(job, known, cell.sampler, seed),
                    tuple(measured),
                    cell.cost if fixed(cell.sampler) else None,
                    tuple(names),
                )
                planned.append(Planned(task, label, cell.name, cell.budget, cell, known[:12]))
    for label, baseline in baselines.items():
        job = replace(base, model=baseline, decode=None, token=os.urandom(8).hex())
        known = identity(baseline) if out is not None else ""
        described[label] = {"class": type(baseline).__name__, "fingerprint": known[:12]}
        for seed in keys:
            who = _samples_identity(job, known, None, seed)
            task = Task(job, None, seed, who, tuple(measured), None, tuple(names))
            planned.append(Planned(task, label, label, None, None, known[:12]))

    manifest: dict[str, Any] = {
        "models": described,
        "metrics": {
            n: {"key": k, "direction": m.direction, "biased": m.biased}
            for n, k, m in zip(names, measured, metrics, strict=True)
        },
        "reference": {"count": len(reference), "identity": identity(reference)[:16]},
        "samples": count,
        "seeds": keys,
        "steps": sorted(set(steps)),
        "dtype": str(dtype),
        "data_range": [low, high],
        "grids": grids,
        "exact": exact,
        "versions": _versions(),
        "command": " ".join(sys.argv),
        "floor": {} if floor is None else floor_of(metrics, names, reference, floor, count),
    }
    return execute(planned, executor or Now(), manifest, out, pictures, progress)


def _planned_cells(
    model: ScoreModel, samplers: Mapping[str, Sampler], steps: Sequence[int], job: Job
) -> list[Cell]:
    """Counted on one sample; on all of them where conditions bound to the model need that."""

    def on(rows: int) -> list[Cell]:
        like = torch.empty((rows, *job.event), device=job.device, dtype=job.dtype)
        part = {
            k: v[:rows] if isinstance(v, Tensor) and v.dim() and len(v) == job.count else v
            for k, v in job.condition.items()
        }
        return plan(model, samplers, steps, like, condition=part)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what sampling warns of is said when samples are drawn
        try:
            return on(1)
        except (ValueError, RuntimeError, IndexError):
            return on(job.count)


def _samples_identity(job: Job, model: str, sampler: Sampler | None, seed: int) -> str:
    if job.folder is None:  # nothing is stored: equal samplers need not be found
        return os.urandom(16).hex()
    return identity(
        (
            "cell 1",
            library(),
            torch.__version__.partition("+")[0],
            model,
            job.condition,
            sampler,
            seed,
            job.count,
            job.event,
            str(job.dtype),
            torch.device(job.device).type,
            job.decode,
            str(job.reference.dtype),
        )
    )


def _versions() -> dict[str, str]:
    names = ("torch", "numpy", "scipy", "torchdiffeq")
    return {"scoregen": library(), **{name: importlib.metadata.version(name) for name in names}}
