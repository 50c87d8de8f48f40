"""Cells through an executor: each once, a bounded number under way, whatever happens to some."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import Tensor
from tqdm.auto import tqdm

from .cells import Task, run_part, run_task, stored
from .files import read_samples
from .parts import Part, ranges
from .plan import Cell, Cost
from .study import Comparison
from .table import Row

__all__ = ["Executor"]

_IN_FLIGHT = 256  # tasks handed to an executor at a time: each carries its model

Call: TypeAlias = tuple[str, Callable[..., Any], tuple[Any, ...]]
"""A cell, a function and its arguments."""


class Executor(Protocol):
    """Anything with `submit(function, *arguments)`, whose result has `.result()`.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> executor: Executor = ThreadPoolExecutor(1)
    """

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """A handle whose `.result()` waits for the call."""


class Now:
    """The executor of this process: a task runs when its result is wanted.

    >>> Now().submit(max, 1, 2).result()
    2
    """

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Later:
        """The call, not made yet."""
        return Later(function, arguments)


@dataclass
class Later:
    """A call that is made by `result`."""

    function: Callable[..., Any]
    arguments: Sequence[Any]

    def result(self) -> Any:
        """Makes the call."""
        return self.function(*self.arguments)


@dataclass(frozen=True)
class Planned:
    """A task beside the columns of its rows."""

    task: Task
    model: str
    name: str
    budget: int | None
    cell: Cell | None
    fingerprint: str


def execute(
    planned: list[Planned],
    executor: Executor,
    manifest: dict[str, Any],
    out: str | Path | None,
    pictures: bool,
    progress: bool,
) -> Comparison:
    """Runs each cell once; what is finished is kept whatever happens to the rest."""
    tasks = {p.task.cell: p.task for p in planned}
    found: dict[str, tuple[dict[str, Any], Tensor | None]] = {}
    lost: dict[str, str] = {}
    began = time.perf_counter()
    for cell in list(tasks):
        known = stored(tasks[cell])
        if known is not None:
            found[cell] = known
    todo = [task for cell, task in tasks.items() if cell not in found]
    try:
        # workers start while the first task is tried: what cannot be sent is refused, not lost
        tried = executor.submit(_arrived, todo[0]) if todo else None
        cut = [(t, span) for t in todo for span in _spans(t)]
        with tqdm(total=len(todo) + len(cut), desc="compare", disable=not progress) as bar:
            calls: list[Call] = [(t.cell, run_part, (t, *span)) for t, span in cut]
            parts: dict[str, list[Part]] = {}
            for cell, part in _answers(_submitted(executor, calls, tried), lost, bar):
                parts.setdefault(cell, []).append(part)
            whole = [t for t in todo if t.cell not in lost]
            calls = [
                (t.cell, run_task, (replace(t, parts=tuple(parts.get(t.cell, ()))),)) for t in whole
            ]
            for cell, record in _answers(_submitted(executor, calls, tried), lost, bar):
                found[cell] = record
    finally:
        for cell in list(lost):  # its worker may have written it before it was lost
            known = stored(tasks[cell])
            if known is not None:
                found[cell] = known
                del lost[cell]
        manifest["seconds"] = round(time.perf_counter() - began, 2)
        result = _collected(planned, found, lost, manifest)
        if out is not None and (found or lost):
            result.save(out, pictures=pictures and sys.exc_info()[0] is None)
    if lost:
        first = next(iter(lost.values()))
        warnings.warn(
            f"{len(lost)} of {len(tasks)} cells were lost ({first[:200]}); the same call computes "
            "them",
            stacklevel=3,
        )
    return result


def _arrived(task: Task) -> str:
    """What a worker answers when a task could be sent to it."""
    return task.cell


def _spans(task: Task) -> list[tuple[int, int]]:
    """The ranges that a cell is made in; none where it is made at once, or its samples are kept."""
    job = task.job
    if job.split is None or job.split >= job.count or task.sampler is None:
        return []
    samples = None if job.folder is None else read_samples(Path(job.folder), task.cell)
    if samples is not None and len(samples) == job.count:
        return []
    return ranges(job.count, job.split)


def _submitted(
    executor: Executor, calls: list[Call], tried: Any = None
) -> Iterator[tuple[str, Any]]:
    """Handles in order, with a bounded number of calls under way, once the first task arrived."""
    under_way: list[tuple[str, Any]] = []
    for cell, function, arguments in calls:
        try:
            under_way.append((cell, executor.submit(function, *arguments)))
        except RuntimeError as error:  # the executor broke: later cells have no chance
            under_way.append((cell, _Broken(error)))
        if len(under_way) == _IN_FLIGHT:
            _arrive(tried)
            yield under_way.pop(0)
    _arrive(tried)
    yield from under_way


def _arrive(tried: Any) -> None:
    if tried is not None:
        tried.result()


def _answers(
    handles: Iterator[tuple[str, Any]], lost: dict[str, str], bar: Any
) -> Iterator[tuple[str, Any]]:
    """What comes back; a call that fails is noted."""
    for cell, handle in handles:
        try:
            answer = handle.result()
        except (RuntimeError, OSError, CancelledError, MemoryError) as error:
            lost[cell] = f"{type(error).__name__}: {error}"
        else:
            yield cell, answer
        bar.update()


@dataclass(frozen=True)
class _Broken:
    error: RuntimeError

    def result(self) -> Any:
        raise self.error


def _collected(
    planned: list[Planned],
    found: dict[str, tuple[dict[str, Any], Tensor | None]],
    lost: dict[str, str],
    manifest: dict[str, Any],
) -> Comparison:
    rows: list[Row] = []
    shown: dict[tuple[str, str, int | None, int], Tensor] = {}
    records: dict[str, dict[str, Any]] = {}
    for p in planned:
        task, cell = p.task, p.cell
        record, samples = found.get(task.cell, (None, None))
        if record is None and task.cell not in lost:
            continue  # interrupted before it
        cost = task.cost or (cell.cost if cell else Cost(math.nan, 0))
        if record is not None:
            records[task.cell] = record
            cost = Cost(float(record["nfe"]), int(record["depth"]))
        if samples is not None:
            shown[(p.model, p.name, p.budget, task.seed)] = samples
        for key, name in zip(task.keys, task.names, strict=True):
            measure = None if record is None else record["measures"].get(key)
            status, message = "done", ""
            if record is None:
                status, message = "lost", lost[task.cell]
            elif record["status"] != "done":
                status, message = record["status"], record["message"]
            elif measure is None:
                status, message = "failed", record.get("failed", {}).get(key, "")
            rows.append(
                Row(
                    model=p.model,
                    sampler=p.name,
                    solver=repr(cell.sampler.solver) if cell else type(task.job.model).__name__,
                    grid=repr(cell.sampler.grid) if cell else "",
                    budget=p.budget,
                    steps=cell.steps if cell else None,
                    nfe=cost.nfe,
                    depth=cost.depth,
                    seconds=math.nan if record is None else float(record["seconds"]),
                    seed=task.seed,
                    count=task.job.count,
                    metric=name,
                    value=math.nan if measure is None else float(measure["value"]),
                    stderr=math.nan if measure is None else float(measure["stderr"]),
                    status=status,
                    message=message,
                    fingerprint=p.fingerprint,
                    cell=task.cell,
                )
            )
    return Comparison(rows, manifest, shown, records)
