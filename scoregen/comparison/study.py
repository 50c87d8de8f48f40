"""The result of a comparison: rows, means over seeds, paired differences, tables, files."""

from __future__ import annotations

import json
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from .._checks import check_choice, check_data, check_flag, check_number, check_path
from .._identity import identity, library
from ..metrics import Metric, title
from .cells import add_measure, bound
from .exports import dataset, frame
from .figures import plot_quality, plot_samples
from .files import read_cell, read_samples, unpacked, write_cell
from .page import write_page
from .statistics import Interval, Summary, Verdict, error_of, pooled, verdict
from .table import Row, as_row, write_csv, write_json, write_text
from .tables import latex, markdown

__all__ = ["Comparison", "load"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The result of `compare`.

    Args:
        rows: one per model, sampler, budget, seed and metric.
        manifest: fingerprints, effective arguments, grid values, seeds, versions, floor.
        shown: (model, sampler, budget, seed) -> samples kept.
        records: what the cells hold, by identity; influences among it.
        folder: where it is written.

    >>> Comparison([], {}).markdown()
    ''
    """

    rows: list[Row]
    manifest: dict[str, Any]
    shown: dict[tuple[str, str, int | None, int], Tensor] = field(default_factory=dict, repr=False)
    records: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    folder: Path | None = None

    def name(self, row: Row) -> str:
        """The sampler, with its model where there are several."""
        several = len({r.model for r in self.rows if r.model != r.sampler}) > 1
        return (
            f"{row.model}: {row.sampler}" if several and row.model != row.sampler else row.sampler
        )

    def direction(self, metric: str) -> str:
        """Which way a metric is better, as it declared."""
        check_choice("metric", metric, list(self.manifest["metrics"]))
        return str(self.manifest["metrics"][metric]["direction"])

    @property
    def metrics(self) -> list[str]:
        """Titles of the metrics, in order."""
        return list(dict.fromkeys(r.metric for r in self.rows))

    def influence(self, row: Row) -> np.ndarray | None:
        """What each sample, or block of samples, contributed to a value; None if not known."""
        key = self.manifest["metrics"][row.metric]["key"]
        measure = self.records.get(row.cell, {}).get("measures", {}).get(key)
        return None if measure is None else unpacked(measure["influence"])

    @cached_property
    def summaries(self) -> list[Summary]:
        """Every sampler, budget and metric over its seeds."""
        groups: dict[tuple[str, int | None, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((self.name(row), row.budget, row.metric), []).append(row)
        return [self._summary(name, rows) for (name, _, _), rows in groups.items()]

    def _summary(self, name: str, rows: list[Row]) -> Summary:
        done = [r for r in rows if r.status == "done"]
        found = pooled(
            [r.value for r in done],
            [error_of(self.influence(r)) for r in done],
            [r.stderr for r in done],
        )
        first = rows[0]
        bad = next((r.status for r in rows if r.status != "done"), "done")
        shown = done or rows
        return Summary(
            name=name,
            model=first.model,
            sampler=first.sampler,
            budget=first.budget,
            metric=first.metric,
            count=first.count,
            seeds=len(done),
            nfe=statistics.fmean(r.nfe for r in shown),
            depth=statistics.fmean(r.depth for r in shown),
            seconds=statistics.median(r.seconds for r in shown),
            value=found.value,
            stderr=found.stderr,
            low=found.low,
            high=found.high,
            status=bad,
        )

    def at(self, budget: int, metric: str) -> list[Summary]:
        """Of every sampler the run that spends most within a budget.

        Raises:
            ValueError: where there is none, naming the metrics.
        """
        check_number("budget", budget, infinite=True)
        best: dict[str, Summary] = {}
        for s in self.summaries:
            cost = s.nfe if s.budget is None else s.budget
            if s.metric != metric or not cost <= budget:
                continue
            if s.name not in best or s.nfe > best[s.name].nfe:
                best[s.name] = s
        if not best:
            raise ValueError(f"no row of {metric!r} within {budget}; metrics are {self.metrics}")
        return list(best.values())

    def best(self, metric: str, budget: int) -> Summary:
        """The best mean over seeds within a budget, in the metric's own direction.

        Raises:
            ValueError: where nothing is done within the budget, naming the metrics.
        """
        check_number("budget", budget, infinite=True)
        sign = 1 if self.direction(metric) == "lower" else -1
        done = [
            s
            for s in self.summaries
            if s.metric == metric
            and (s.nfe if s.budget is None else s.budget) <= budget
            and s.status == "done"
            and not math.isnan(s.value)
        ]
        if not done:
            raise ValueError(f"no row of {metric!r} within {budget}; metrics are {self.metrics}")
        return min(done, key=lambda s: sign * s.value)

    def versus(self, name: str, budget: int, metric: str | None = None) -> list[Verdict]:
        """How every other sampler compares with one, paired on common noise.

        The difference within a seed has the standard error sd(IF_a - IF_b) / sqrt(n) where the
        metric gives the influence of its samples; over seeds see `pooled`. A tie is a 95 %
        interval that holds 0, each comparison on its own.

        Args:
            name: of a sampler, "model: sampler" where there are several models.
            budget: evaluations; of every sampler the run that spends most within it.
            metric: one title, or None for all metrics.

        Raises:
            ValueError: for a name or metric that is not here.
        """
        verdicts = []
        for one in self.metrics if metric is None else [metric]:
            there = {s.name: s for s in self.at(budget, one)}
            if name not in there:
                raise ValueError(f"{name!r} has no run within {budget}; there are {list(there)}")
            for other in there.values():
                if other.name != name:
                    found, seeds = self.difference(other, there[name])
                    verdicts.append(
                        Verdict(
                            other.name,
                            name,
                            one,
                            budget,
                            found.value,
                            found.stderr,
                            found.low,
                            found.high,
                            seeds,
                            verdict(found, self.direction(one)) if seeds else other.status,
                        )
                    )
        return verdicts

    def difference(self, a: Summary, b: Summary) -> tuple[Interval, int]:
        """a minus b over the seeds that both have done, and how many those are."""
        of_a, of_b = self._runs(a), self._runs(b)
        values, errors, own = [], [], []
        for seed in sorted(of_a.keys() & of_b.keys()):
            one, other = of_a[seed], of_b[seed]
            values.append(one.value - other.value)
            at_one, at_other = self.influence(one), self.influence(other)
            paired = None
            if one.cell == other.cell:
                paired = 0.0
            elif at_one is not None and at_other is not None and len(at_one) == len(at_other):
                paired = error_of(at_one - at_other)
            errors.append(paired)
            own.append(math.hypot(one.stderr, other.stderr))
        return pooled(values, errors, own), len(values)

    def _runs(self, s: Summary) -> dict[int, Row]:
        return {
            r.seed: r
            for r in self.rows
            if (r.model, r.sampler, r.budget, r.metric) == (s.model, s.sampler, s.budget, s.metric)
            and r.status == "done"
        }

    def ties(self, summaries: Sequence[Summary]) -> list[Summary]:
        """The best of some rows of one metric, and those not significantly different from it."""
        done = [s for s in summaries if s.seeds and not math.isnan(s.value)]
        if not done:
            return []
        sign = 1 if self.direction(done[0].metric) == "lower" else -1
        best = min(done, key=lambda s: sign * s.value)
        level = [
            s
            for s in done
            if s is not best
            and verdict(self.difference(s, best)[0], self.direction(s.metric)) == "tie"
        ]
        return [best, *level]

    def pareto(self, metric: str, x: Literal["nfe", "depth", "seconds"] = "nfe") -> list[Summary]:
        """The rows that no other beats in both cost and quality, by rising cost.

        Args:
            metric: a title.
            x: what counts as cost.

        Raises:
            ValueError: for another cost or metric.
        """
        check_choice("x", x, ("nfe", "depth", "seconds"))
        check_choice("metric", metric, self.metrics)
        sign = 1 if self.direction(metric) == "lower" else -1
        done = [
            s for s in self.summaries if s.metric == metric and s.seeds and not math.isnan(s.value)
        ]
        front: list[Summary] = []
        for s in sorted(done, key=lambda s: (getattr(s, x), sign * s.value)):
            if not front or sign * s.value < sign * front[-1].value:
                front.append(s)
        return front

    def measure(self, metric: Metric, reference: Tensor) -> Comparison:
        """This comparison with one more metric, from the samples that were kept.

        Args:
            metric: a callable (samples, reference).
            reference: what it compares with.

        Raises:
            ValueError: where samples were not kept (keep="samples"), or the metric is here already.
        """
        check_data(reference, "reference")
        name = title(metric, count := int(self.manifest["samples"]))
        if name in self.manifest["metrics"]:
            raise ValueError(f"{name} is measured already; give the metric another name")
        key = name
        if self.folder is not None:
            key = identity((metric, name, identity((reference, library()))))
        first: dict[tuple[str, str, int | None, int], Row] = {}
        for row in self.rows:
            first.setdefault((row.model, row.sampler, row.budget, row.seed), row)
        done = {k: r for k, r in first.items() if r.status in ("done", "failed")}
        short = [k for k in done if k not in self.shown or len(self.shown[k]) < count]
        if short:
            raise ValueError(
                f"{len(short)} of {len(done)} cells keep fewer than {count} samples; compare with "
                'keep="samples" to add metrics later'
            )
        measure, rows, records = bound(metric, reference), list(self.rows), dict(self.records)
        for place, row in first.items():
            new = replace(row, metric=name, value=math.nan, stderr=math.nan)
            if place in done:
                record = {**records[row.cell], "measures": dict(records[row.cell]["measures"])}
                add_measure(record, key, name, measure, self.shown[place])
                records[row.cell] = record
                if key in record["measures"]:
                    value, stderr = (float(record["measures"][key][k]) for k in ("value", "stderr"))
                    new = replace(new, value=value, stderr=stderr, status="done", message="")
                else:
                    new = replace(new, status="failed", message=record["failed"][key])
                if self.folder is not None:
                    write_cell(self.folder, record)
            rows.append(new)
        entry = {"key": key, "direction": metric.direction, "biased": metric.biased}
        manifest = {**self.manifest, "metrics": {**self.manifest["metrics"], name: entry}}
        made = replace(self, rows=rows, manifest=manifest, records=records)
        if self.folder is not None:
            made.write_tables(self.folder)
        return made

    def markdown(self) -> str:
        """A table per metric, the best of a column bold, its ties marked."""
        return markdown(self)

    def latex(self, metric: str | None = None, bold: Literal["best"] | None = "best") -> str:
        """A booktabs table per metric, or of one; the best of a column and its ties are bold."""
        return latex(self, metric, bold)

    def frame(self) -> Any:
        """The rows as a pandas DataFrame; an ImportError without pandas."""
        return frame(self.rows)

    def to_xarray(self) -> Any:
        """The rows over named axes, as an xarray Dataset; an ImportError without xarray."""
        return dataset(self.rows, self.name)

    def report(self, path: str | Path, **options: Any) -> Path:
        """One HTML page without a single request; see `write_page`."""
        return write_page(self, path, **options)

    def write_tables(self, out: str | Path) -> dict[str, Path]:
        """Write results.csv, results.json and table.md."""
        paths = {n: check_path("out", out) / n for n in ("results.csv", "results.json", "table.md")}
        write_csv(self.rows, paths["results.csv"])
        write_json(self.rows, self.manifest, paths["results.json"])
        write_text(self.markdown(), paths["table.md"])
        return paths

    def save(self, out: str | Path, *, pictures: bool = True) -> dict[str, Path]:
        """Write results.csv, results.json and table.md, then quality.png and samples.png.

        A picture that cannot be drawn is a warning: the tables are written and stay.

        Returns:
            What was written, by name.
        """
        check_flag("pictures", pictures)
        object.__setattr__(self, "folder", folder := check_path("out", out))
        paths = self.write_tables(folder)
        if not pictures or not any(s.seeds for s in self.summaries):
            return paths
        drawn: dict[str, Callable[[Path], Path]] = {"quality.png": partial(plot_quality, self)}
        if self.shown:
            drawn["samples.png"] = partial(
                plot_samples, self.pictured(), data_range=self.data_range
            )
        for name, draw in drawn.items():
            try:
                paths[name] = draw(folder / name)
            except (ValueError, TypeError, RuntimeError, ArithmeticError, OSError) as error:
                warnings.warn(
                    f"{name} could not be drawn ({type(error).__name__}: {error}); the tables are "
                    f"in {out}",
                    stacklevel=2,
                )
        return paths

    @property
    def data_range(self) -> tuple[float, float]:
        """Values shown as black and white."""
        low, high = self.manifest.get("data_range", (-1.0, 1.0))
        return float(low), float(high)

    def pictured(self, most: int = 25) -> dict[tuple[str, float], Tensor]:
        """(name, budget or evaluations) -> the first samples of the first seed."""
        found: dict[tuple[str, float], Tensor] = {}
        for row in self.rows:
            place = (self.name(row), float(row.nfe if row.budget is None else row.budget))
            samples = self.shown.get((row.model, row.sampler, row.budget, row.seed))
            if samples is not None and place not in found:
                found[place] = samples[:most]
        return found


def load(folder: str | Path) -> Comparison:
    """What the last `compare` wrote into a folder.

    Raises:
        ValueError: where there is no comparison.

    >>> load("nowhere")
    Traceback (most recent call last):
        ...
    ValueError: there is no comparison at nowhere
    """
    folder = check_path("folder", folder)
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"there is no comparison at {folder}")
    try:
        body = json.loads(path.read_bytes())
        rows = [as_row(r) for r in body["rows"]]
        manifest = body["manifest"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or not of this version: {error}") from error
    cells = dict.fromkeys(row.cell for row in rows)
    records = {c: record for c in cells if (record := read_cell(folder, c)) is not None}
    kept = {c: samples for c in cells if (samples := read_samples(folder, c)) is not None}
    shown = {(r.model, r.sampler, r.budget, r.seed): kept[r.cell] for r in rows if r.cell in kept}
    return Comparison(rows, manifest, shown, records, folder)
