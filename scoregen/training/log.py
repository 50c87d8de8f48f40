"""What is written down while a training runs: one line of JSON for every some steps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._files import write
from .step import TrainStep

__all__ = ["Log", "read"]

FILE = "log.jsonl"
Tracker = Callable[[dict[str, float], int], object]


class Log:
    """Appends to `log.jsonl`, and passes numbers on to the trackers of an Accelerator.

    A line of training holds the mean of the finite losses of the steps since the line before, and
    the norm and the rate of the last of them.

    Args:
        folder: of the training; None writes nothing.
        step: of a training that goes on: later lines, of an attempt that was killed, are dropped.
        tracker: takes (numbers, step).

    >>> log = Log(None)
    >>> log.steps([])
    """

    def __init__(self, folder: Path | None, step: int = 0, tracker: Tracker | None = None):
        self.path = None if folder is None else folder / FILE
        self.tracker, self.begun = tracker, time.monotonic()
        self.open: list[TrainStep] = []
        if self.path is not None and self.path.exists():
            kept = [row for row in read(self.path) if row["step"] <= step]
            write(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def steps(self, made: Sequence[TrainStep]) -> None:
        """Steps whose numbers are known."""
        self.open += made

    def flush(self) -> None:
        """Write a line of the steps since the last one."""
        if self.open:
            last, losses = self.open[-1], [s.loss for s in self.open if math.isfinite(s.loss)]
            row = {
                "step": last.step,
                "loss": sum(losses) / len(losses) if losses else None,
                "grad_norm": last.grad_norm if math.isfinite(last.grad_norm) else None,
                "lr": last.lr,
                "skipped": last.skipped,
                "steps": len(self.open),
                "seconds": round(time.monotonic() - self.begun, 3),
            }
            self.open = []
            self.row(row, ("loss", "grad_norm", "lr", "skipped"))

    def row(self, row: Mapping[str, Any], tracked: Sequence[str] = ()) -> None:
        """Write one line, whose `step` is the last.

        Args:
            row: in JSON's types, finite.
            tracked: the names of the numbers that trackers get too.
        """
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        if self.tracker is not None:
            self.tracker({k: row[k] for k in tracked if row[k] is not None}, row["step"])


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that a killed process left half written is left out.

    Args:
        path: `log.jsonl` of a training.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> _ = path.write_text('{"step": 1, "loss": 0.5}' + chr(10) + '{"step": 2, "lo')
    >>> read(path)
    [{'step': 1, 'loss': 0.5}]
    """
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
