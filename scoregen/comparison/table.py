"""The table of a comparison: rows, and the files they are written to."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .._files import write

__all__ = ["Row", "markdown"]


@dataclass(frozen=True)
class Row:
    """One measurement: a metric of the samples that one sampler made within one budget.

    Args:
        sampler: its name in the comparison.
        solver: the solver with its arguments.
        grid: the grid with its arguments.
        budget: evaluations allowed, None where the sampler sets its own.
        steps: moves made, None where the grid has no count.
        nfe: evaluations per sample, counted at the model.
        seconds: wall time of sampling all samples.
        metric: title of the metric.
        value: its value.
        stderr: its standard error.

    >>> Row("ddim", "DDIM(eta=0.0)", "UniformTime(steps=10)", 10, 10, 10.0, 0.5, "mmd2", 0.1, 0.01)
    ... # doctest: +ELLIPSIS
    Row(sampler='ddim', ...)
    """

    sampler: str
    solver: str
    grid: str
    budget: int | None
    steps: int | None
    nfe: float
    seconds: float
    metric: str
    value: float
    stderr: float


def plain(row: Row) -> dict[str, Any]:
    """A row for JSON, which has no NaN and no infinity: those become None."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in asdict(row).items()
    }


def as_row(record: dict[str, Any]) -> Row:
    """The row that `plain` wrote; what was not finite comes back as NaN."""
    lost = {k: math.nan for k in ("value", "stderr") if record[k] is None}
    return Row(**{**record, **lost})


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


def markdown(rows: Iterable[Row]) -> str:
    """One table per metric: a line per sampler, a column per budget, value ± standard error.

    >>> row = Row("ddim", "DDIM()", "UniformTime(10)", 10, 10, 10.0, 0.5, "mmd2", 0.1, 0.01)
    >>> print(markdown([row]))
    **mmd2** at evaluations per sample
    <BLANKLINE>
    | sampler | 10 |
    |---|---|
    | ddim | 0.1 ± 0.01 |
    <BLANKLINE>
    """
    rows = list(rows)
    parts = []
    for metric in dict.fromkeys(r.metric for r in rows):
        mine = [r for r in rows if r.metric == metric]
        budgets = sorted({r.budget for r in mine if r.budget is not None})
        own = any(r.budget is None for r in mine)
        head = [*(str(b) for b in budgets), *(["its own"] if own else [])]
        lines = [
            f"**{metric}** at evaluations per sample",
            "",
            f"| sampler | {' | '.join(head)} |",
            "|---" * (len(head) + 1) + "|",
        ]
        for name in dict.fromkeys(r.sampler for r in mine):
            cells = {r.budget: r for r in mine if r.sampler == name}
            shown = [_cell(cells.get(b)) for b in budgets]
            if own:
                free = cells.get(None)
                shown.append(f"{_cell(free)} (at {free.nfe:g})" if free else "")
            lines.append(f"| {name} | {' | '.join(shown)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _cell(row: Row | None) -> str:
    return "" if row is None else f"{row.value:.3g} ± {row.stderr:.1g}"


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line that carries its own checksum, and flush it to disk."""
    body = json.dumps(record, sort_keys=True)
    line = json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "record": record})
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The sound records of a journal and the number of torn or altered lines skipped."""
    if not path.exists():
        return [], 0
    records, torn = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            body = json.dumps(entry["record"], sort_keys=True)
            sound = entry["sha256"] == hashlib.sha256(body.encode()).hexdigest()
        except (ValueError, KeyError, TypeError):
            sound = False
        if sound:
            records.append(entry["record"])
        else:
            torn += 1
    return records, torn
