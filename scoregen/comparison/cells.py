"""One cell: sampled, timed and measured by whoever runs it, and written whole or not at all."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .._checks import DivergenceError
from .._files import write
from ..metrics import Estimate, Measured, Metric, TwoSample
from ..models import ScoreModel
from ..sampling import Sampler
from ..training import load
from . import parts as ranges
from .files import cell_path, number, packed, read_cell, read_samples, write_cell
from .parts import Part
from .plan import Baseline, Calls, Cost

__all__ = ["Job", "Task", "run_part", "run_task"]

_warm: set[str] = set()


@dataclass(frozen=True)
class Job:
    """What all cells of one model have in common; it travels to the workers.

    Args:
        model: a score model, the folder of a checkpoint, or a baseline.
        metrics: in the order of `Task.keys`.
        reference: real samples (m, *event).
        condition: keyword arguments of the model.
        event: shape of the state of one sample.
        count: samples per cell.
        decode: maps states to what is measured.
        chunk: most samples at a time.
        split: most samples of a cell that are made in one call.
        device, dtype: of the state.
        keep: keep all samples, or only the first `show`.
        show: samples kept for pictures.
        repeats: how often sampling is timed.
        threads: of the numerics in a worker; as they are where None.
        folder: where cells are written; nowhere where None.
        token: names this job within a process, so that a reference is prepared once.

    >>> Job("folder", (), torch.zeros(2, 1), {}, (1,), 2).keep
    False
    """

    model: ScoreModel | Baseline | str
    metrics: tuple[Metric, ...]
    reference: Tensor
    condition: dict[str, Any]
    event: tuple[int, ...]
    count: int
    decode: Callable[[Tensor], Tensor] | None = None
    chunk: int | None = None
    split: int | None = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    keep: bool = False
    show: int = 25
    repeats: int = 1
    threads: int | None = None
    folder: str | None = None
    token: str = ""


@dataclass(frozen=True)
class Task:
    """One cell to run.

    Args:
        job: what it shares with others.
        sampler: None for a baseline.
        seed: of the noise.
        cell: identity of the samples; names the files.
        keys: identities of the metrics with the reference.
        cost: None where the solver chooses its evaluations.
        names: titles of the metrics.
        parts: its samples, where they were made in ranges.

    >>> Task(Job("folder", (), torch.zeros(2, 1), {}, (1,), 2), None, 0, "ab", ()).seed
    0
    """

    job: Job
    sampler: Sampler | None
    seed: int
    cell: str
    keys: tuple[str, ...]
    cost: Cost | None = None
    names: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()


def run_task(task: Task) -> tuple[dict[str, Any], Tensor | None]:
    """The record of a cell and its samples: computed, or what a file holds with the rest added.

    A diverging sampler and a metric that refuses the samples are results, with a status.

    >>> from scoregen import DDIM, VPSDE, Gaussian, UniformTime
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> job = Job(model, (), torch.zeros(5, 2), {}, (2,), 5)
    >>> record, _ = run_task(Task(job, Sampler(DDIM(), UniformTime(3)), 0, "ab", ()))
    >>> record["status"], record["nfe"]
    ('done', 3.0)
    """
    with _threads(task.job.threads):
        return _run(task)


def run_part(task: Task, start: int, stop: int) -> Part:
    """The samples `start` to `stop` of a cell: made, or read where a folder holds them.

    >>> from scoregen import DDIM, VPSDE, Gaussian, UniformTime
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> job = Job(model, (), torch.zeros(5, 2), {}, (2,), 5)
    >>> run_part(Task(job, Sampler(DDIM(), UniformTime(3)), 0, "ab", ()), 2, 4).samples.shape
    torch.Size([2, 2])
    """
    folder = None if task.job.folder is None else Path(task.job.folder)
    part = None if folder is None else ranges.read(folder, task.cell, start, stop)
    if part is None:
        with _threads(task.job.threads):
            try:
                x, seconds, cost = _drawn(task, range(start, stop))
                part = Part(start, stop, seconds, cost.nfe, cost.depth, samples=x)
            except DivergenceError as error:
                cost = task.cost or Cost(math.nan, 0)
                part = Part(start, stop, math.nan, cost.nfe, cost.depth, message=str(error))
        if folder is not None:
            part.save(folder, task.cell)
    return part if folder is None else replace(part, samples=None)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads of the numerics inside a block."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stored(task: Task) -> tuple[dict[str, Any], Tensor | None] | None:
    """What a folder holds of a cell, where that is all that is wanted of it."""
    record, samples = _held(task)
    if record is None or not _suffices(task, record, samples):
        return None
    return record, _kept(task.job, samples)


def _held(task: Task) -> tuple[dict[str, Any] | None, Tensor | None]:
    """The record and the samples of a cell, as far as a folder holds them."""
    if task.job.folder is None:
        return None, None
    folder = Path(task.job.folder)
    record = read_cell(folder, task.cell)
    return record, None if record is None else read_samples(folder, task.cell)


def _suffices(task: Task, record: dict[str, Any], samples: Tensor | None) -> bool:
    if record["status"] != "done":
        return True
    if any(key not in record["measures"] for key in task.keys):
        return False
    return not task.job.keep or (samples is not None and len(samples) >= task.job.count)


def _kept(job: Job, samples: Tensor | None) -> Tensor | None:
    return samples if samples is None or job.keep else samples[: job.show].clone()


def _run(task: Task) -> tuple[dict[str, Any], Tensor | None]:
    job = task.job
    record, samples = _held(task)
    if record is not None and _suffices(task, record, samples):
        return record, _kept(job, samples)
    folder = None if job.folder is None else Path(job.folder)
    new = record is None or samples is None or len(samples) < job.count
    if record is None or new:
        measures = {} if record is None else record["measures"]
        record, samples = _sampled(task)
        record["measures"] = measures
    fresh = record["status"] == "done" and _measured(task, record, samples)
    kept = _kept(job, samples)
    if folder is not None and new and kept is not None:
        content = safetensors.torch.save({"samples": kept.contiguous()})
        write(cell_path(folder, task.cell).with_suffix(".safetensors"), content)
    if folder is not None and (new or fresh):
        write_cell(folder, record)
    if folder is not None:
        for part in task.parts:
            ranges.path_of(folder, task.cell, part.start, part.stop).unlink(missing_ok=True)
    return record, kept


def _sampled(task: Task) -> tuple[dict[str, Any], Tensor | None]:
    job = task.job
    record: dict[str, Any] = {
        "cell": task.cell,
        "status": "done",
        "message": "",
        "seed": task.seed,
        "count": job.count,
        "device": job.device,
        "measures": {},
    }
    for part in task.parts:
        if part.message:
            record.update(status="diverged", message=part.message)
            return {**record, "nfe": number(part.nfe), "depth": part.depth, "seconds": "nan"}, None
    try:
        x, seconds, cost = _gathered(task) if task.parts else _drawn(task, range(job.count))
    except DivergenceError as error:
        cost = task.cost or Cost(math.nan, 0)
        record.update(status="diverged", message=str(error))
        return {**record, "nfe": number(cost.nfe), "depth": cost.depth, "seconds": "nan"}, None
    if job.decode is not None:
        with torch.no_grad():
            rows = job.chunk or len(x)
            x = torch.cat([job.decode(part) for part in x.split(rows)])
    x = x.to(job.reference)
    record.update(nfe=cost.nfe, depth=cost.depth, seconds=round(seconds, 4))
    if not bool(torch.isfinite(x).all()):
        record.update(status="diverged", message="samples are not finite")
    return record, x


def _gathered(task: Task) -> tuple[Tensor, float, Cost]:
    """The same of a cell that was made in parts."""
    parts = []
    for part in task.parts:
        if part.samples is None and task.job.folder is not None:
            read = ranges.read(Path(task.job.folder), task.cell, part.start, part.stop)
            if read is None:
                raise OSError(f"samples {part.start} to {part.stop} of a cell are gone; run again")
            part = read
        parts.append(part)
    return ranges.together(parts)


def _drawn(task: Task, rows: range) -> tuple[Tensor, float, Cost]:
    """Samples, the median of the seconds they took after a warm-up, and what they cost."""
    job, model = task.job, _model(task.job.model)
    cost, seconds = task.cost, []
    if not isinstance(model, ScoreModel):
        for _ in range(job.repeats):
            began = time.perf_counter()
            x = model.sample(job.count, seed=task.seed, condition=job.condition or None)
            seconds.append(_elapsed(began, x))
        return x, statistics.median(seconds), Cost(float(model.evaluations), 1)
    if task.sampler is None:
        raise ValueError("a score model needs a sampler")
    options: dict[str, Any] = {
        "seed": task.seed,
        "condition": job.condition,
        "chunk": job.chunk,
        "device": job.device,
        "dtype": job.dtype,
    }
    run = functools.partial(task.sampler.sample, model, (job.count, *job.event), **options)
    wanted = None if len(rows) == job.count else rows
    if job.token not in _warm:  # the first run of a process pays for what is set up once
        _warm.add(job.token)
        run(rows=wanted)
    if cost is None:
        cost = _counted(run, model, rows, job.count, job.chunk)
    for _ in range(job.repeats):
        began = time.perf_counter()
        x = run(rows=wanted)
        seconds.append(_elapsed(began, x))
    return x, statistics.median(seconds), cost


def _counted(
    run: Callable[..., Tensor], model: ScoreModel, rows: range, whole: int, chunk: int | None
) -> Cost:
    """The cost of some samples; chunks could run side by side, so the deepest counts."""
    costs = []
    for start, stop in ranges.ranges(len(rows), chunk or len(rows)):
        part = rows[start:stop]
        with Calls(model, silent=False) as counted:
            run(rows=None if len(part) == whole else part)
        costs.append((counted.cost(len(part)), len(part)))
    nfe = statistics.fmean([c.nfe for c, _ in costs], [n for _, n in costs])
    return Cost(nfe, max(c.depth for c, _ in costs))


def _elapsed(began: float, x: Tensor) -> float:
    """Seconds since then, with the device's queue empty."""
    if x.device.type != "cpu":
        x.reshape(-1)[:1].cpu()  # waits for what was queued before
    return time.perf_counter() - began


@functools.lru_cache(maxsize=2)
def _loaded(folder: str) -> ScoreModel:
    return load(folder)


def _model(model: ScoreModel | Baseline | str) -> ScoreModel | Baseline:
    return _loaded(model) if isinstance(model, str) else model


_prepared: dict[str, list[Callable[[Tensor], Measured]]] = {}


def bound(metric: Metric, reference: Tensor) -> Callable[[Tensor], Measured]:
    """A metric against one reference; a number alone has an unknown standard error."""
    if isinstance(metric, TwoSample):
        return metric.against(reference)

    def measure(samples: Tensor) -> Measured:
        found = metric(samples, reference)
        if isinstance(found, int | float) or (isinstance(found, Tensor) and found.dim() == 0):
            return Measured(Estimate(float(found), float("nan")), None)
        if isinstance(found, tuple) and len(found) == 2:
            return Measured(Estimate(float(found[0]), float(found[1])), None)
        raise TypeError(
            "a metric must give an Estimate (value, standard error) or a number, got "
            f"{type(found).__name__}"
        )

    return measure


def _measured(task: Task, record: dict[str, Any], samples: Tensor | None) -> bool:
    """Adds the measures that are missing; whether there were any."""
    job = task.job
    if all(key in record["measures"] for key in task.keys):
        return False
    if samples is None:
        raise ValueError(f"the samples of cell {task.cell[:12]} are needed and were not kept")
    if job.token not in _prepared:
        _prepared.clear()  # one reference at a time
        _prepared[job.token] = [bound(metric, job.reference) for metric in job.metrics]
    for key, name, measure in zip(task.keys, task.names, _prepared[job.token], strict=True):
        if key not in record["measures"]:
            add_measure(record, key, name, measure, samples)
    return True


def add_measure(
    record: dict[str, Any],
    key: str,
    name: str,
    measure: Callable[[Tensor], Measured],
    samples: Tensor,
) -> None:
    """Measures the samples of a cell into its record; a metric that refuses them is noted."""
    try:
        (value, stderr), influence = measure(samples)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        record.setdefault("failed", {})[key] = f"{type(error).__name__}: {error}"
        return
    record["measures"][key] = {
        "metric": name,
        "value": number(value),
        "stderr": number(stderr),
        "influence": None if influence is None else packed(influence),
    }
