"""The table of a comparison: rows, and the files they are written to."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .._files import write

__all__ = ["Row"]


@dataclass(frozen=True)
class Row:
    """One measurement: a metric of the samples that one sampler made within one budget.

    Args:
        model: its name in the comparison.
        sampler: its name in the comparison.
        solver: the solver with its arguments.
        grid: the grid with its arguments.
        budget: evaluations allowed, None where the sampler sets its own.
        steps: moves made, None where the grid has no count.
        nfe: evaluations per sample, counted at the networks.
        depth: evaluations one after the other; those made in one batch count once.
        seconds: wall time of sampling all samples, the median of its repeats.
        seed: of the noise.
        count: number of samples.
        metric: title of the metric.
        value: its value.
        stderr: its standard error.
        status: "done", "diverged", "failed" (the metric) or "lost" (the worker).
        message: why it is not done.
        fingerprint: of the model.
        cell: identity of the samples.

    >>> Row("m", "ddim", "DDIM()", "UniformTime(5)", 5, 5, 5.0, 5, 0.5, 0, 9, "mmd2", 0.1, 0.01)
    ... # doctest: +ELLIPSIS
    Row(model='m', sampler='ddim', ...)
    """

    model: str
    sampler: str
    solver: str
    grid: str
    budget: int | None
    steps: int | None
    nfe: float
    depth: int
    seconds: float
    seed: int
    count: int
    metric: str
    value: float
    stderr: float
    status: str = "done"
    message: str = ""
    fingerprint: str = ""
    cell: str = ""


def plain(row: Row) -> dict[str, Any]:
    """A row for JSON, which has no NaN and no infinity: those become words."""
    return {
        k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in asdict(row).items()
    }


def as_row(record: dict[str, Any]) -> Row:
    """The row that `plain` wrote."""
    numbers = {k: float(record[k]) for k in ("nfe", "seconds", "value", "stderr")}
    return Row(**{**record, **numbers})


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All rows as CSV, with the field names in the first line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(text.getvalue(), path)


def write_json(rows: Sequence[Row], manifest: dict[str, Any], path: Path) -> None:
    """Rows with the manifest that says what made them."""
    body = {"manifest": manifest, "rows": [plain(row) for row in rows]}
    write_text(json.dumps(body, indent=1) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Text as UTF-8, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, text.encode())
