"""The comparison itself: one model, many samplers, the same noise for all of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._checks import check_count, check_finite, check_state
from .._files import probe
from ..metrics import Metric, title
from ..models import ScoreModel
from ..models.conditions import expand as expand_condition
from ..sampling import Sampler
from ..training import fingerprint
from .plan import Cell, one_like, plan
from .report import plot_quality, plot_samples
from .table import (
    Row,
    append_line,
    as_row,
    markdown,
    plain,
    read_lines,
    write_csv,
    write_json,
    write_text,
)

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`: rows, what made them, and samples to look at.

    Args:
        rows: one per sampler, budget and metric.
        manifest: model hash, effective arguments, grid values, seeds, versions.
        shown: (sampler, evaluations allowed) -> its first samples.

    >>> Comparison([], {}, {}).markdown()
    ''
    """

    rows: list[Row]
    manifest: dict[str, Any]
    shown: dict[tuple[str, float], Tensor] = field(repr=False)

    def markdown(self) -> str:
        """The table as markdown: a block per metric."""
        return markdown(self.rows)

    def best(self, metric: str, budget: int) -> Row:
        """The row with the lowest value of a metric within a budget."""
        rows = [r for r in self.rows if r.metric == metric and (r.budget or r.nfe) <= budget]
        if not rows:
            known = sorted({r.metric for r in self.rows})
            raise ValueError(f"no row of {metric!r} within {budget}; metrics are {known}")
        return min(rows, key=lambda r: r.value)

    def save(self, out: str | Path, **plot: Any) -> dict[str, Path]:
        """Write results.csv, results.json, table.md, quality.png and samples.png.

        Returns:
            What was written, by name.
        """
        folder = Path(out)
        paths = {
            name: folder / name
            for name in ("results.csv", "results.json", "table.md", "quality.png", "samples.png")
        }
        write_csv(self.rows, paths["results.csv"])
        write_json(self.rows, self.manifest, paths["results.json"])
        write_text(self.markdown(), paths["table.md"])
        floor = self.manifest.get("floor") or {}
        count = self.manifest.get("samples")
        plot = {
            "floor": floor.get("values"),
            "floor_label": f"real data, n = {floor.get('count')}",
            "subtitle": f"{count} samples per point, one seed",
            **plot,
        }
        plot_quality(self.rows, paths["quality.png"], **plot)
        if self.shown:
            plot_samples(self.shown, paths["samples.png"])
        return paths


def compare(
    model: ScoreModel,
    samplers: Mapping[str, Sampler],
    *,
    steps: Sequence[int] = (5, 10, 20, 50),
    metrics: Sequence[Metric],
    reference: Tensor,
    samples: int | None = None,
    seed: int = 0,
    condition: dict[str, Any] | None = None,
    floor: Tensor | None = None,
    chunk: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    out: str | Path | None = None,
    show: int = 25,
    progress: bool = True,
) -> Comparison:
    """Steps versus quality: every sampler on one network, with the same noise.

    Each number in `steps` is a budget of evaluations per sample; a sampler takes the most steps
    whose counted evaluations do not exceed it. With `out`, every finished cell is journalled, so an
    interrupted comparison goes on where it stopped, and the table, plot and samples are written.

    Args:
        model: a score model.
        samplers: name -> sampler; grids with a count of steps are resized for each budget.
        steps: budgets of evaluations per sample.
        metrics: callables (samples, reference) -> Estimate.
        reference: real samples, shape (m, *event).
        samples: how many samples to draw; as many as the reference unless given.
        seed: of the noise, shared by all samplers.
        condition: keyword arguments of the model; tensors hold one row per sample.
        floor: more real samples, whose value is drawn as what perfect samples would reach.
        chunk: most samples at a time.
        device: where to sample; the model's own device unless given.
        dtype: of the state.
        out: folder for results.
        show: samples kept per cell for the picture.
        progress: show a bar.

    Raises:
        ValueError, TypeError: for samplers, budgets, metrics or data that cannot be compared; and
            for an `out` folder that holds another comparison.

    >>> from scoregen import DDIM, VPSDE, Gaussian, UniformTime
    >>> from scoregen.metrics import SlicedWasserstein
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> result = compare(model, {"ddim": Sampler(DDIM(), UniformTime(5))}, steps=[5, 10],
    ...                  metrics=[SlicedWasserstein(16)], reference=model.sample(500).float(),
    ...                  progress=False)
    >>> [row.nfe for row in result.rows]
    [5.0, 10.0]
    """
    check_state(reference, "reference")
    check_finite("reference", reference)
    if not metrics or not all(callable(m) for m in metrics):
        raise TypeError(f"metrics must list callables (samples, reference) -> Estimate: {metrics}")
    count = len(reference) if samples is None else check_count("samples", samples, 2)
    device = model.placement()[0] if device is None else torch.device(device)
    condition = expand_condition(condition or {}, count, device)
    one = {k: v[:1] if isinstance(v, Tensor) and v.dim() else v for k, v in condition.items()}
    single = model.given(**one) if one else model
    cells = plan(single, samplers, steps, one_like(reference, device, dtype), seed=seed)
    names = [title(m, count) for m in metrics]
    manifest = {
        "model": type(model).__name__,
        "fingerprint": fingerprint(model),
        "sde": repr(model.sde),
        "metrics": [_described(m) for m in metrics],
        "reference": {"count": len(reference), "sha256": _hash(reference)},
        "condition": {k: _hash(v) if isinstance(v, Tensor) else v for k, v in condition.items()},
        "samples": count,
        "seed": seed,
        "dtype": str(dtype),
        "versions": _versions(),
    }
    if floor is not None:
        values = {n: float(m(floor, reference)[0]) for n, m in zip(names, metrics, strict=True)}
        manifest["floor"] = {"count": len(floor), "values": values}
    journal = _open_journal(out, manifest)
    done = {r["key"]: r for r in (read_lines(journal)[0] if journal else []) if "key" in r}
    rows: list[Row] = []
    shown: dict[tuple[str, float], Tensor] = {}
    grids: dict[str, list[float]] = {}
    bar = tqdm(cells, desc="compare", disable=not progress)
    for cell in bar:
        bar.set_postfix_str(f"{cell.name} at {cell.nfe:g}")
        key = f"{cell.name}|{cell.budget}|{cell.sampler!r}"
        grids[f"{cell.name}@{cell.budget}"] = [level.t for level in cell.sampler.levels(model.sde)]
        place = (cell.name, float(cell.budget or cell.nfe))
        if key in done:
            rows += [as_row(r) for r in done[key]["rows"]]
            if done[key]["shown"] is not None:
                shown[place] = torch.tensor(done[key]["shown"])
            continue
        began = time.perf_counter()
        x = cell.sampler.sample(
            model,
            (count, *reference.shape[1:]),
            seed=seed,
            condition=condition,
            chunk=chunk,
            device=device,
            dtype=dtype,
        )
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        seconds = time.perf_counter() - began
        fresh = [
            _row(cell, seconds, name, metric(x.to(reference), reference))
            for name, metric in zip(names, metrics, strict=True)
        ]
        rows += fresh
        shown[place] = x[:show].float().cpu()
        if journal:
            record = {
                "key": key,
                "rows": [plain(r) for r in fresh],
                "shown": shown[place].tolist(),
            }
            append_line(journal, record)
    result = Comparison(rows, {**manifest, "grids": grids}, shown)
    if out is not None:
        result.save(out)
    return result


def _row(cell: Cell, seconds: float, metric: str, estimate: tuple[float, float]) -> Row:
    value, stderr = estimate
    return Row(
        cell.name,
        repr(cell.sampler.solver),
        repr(cell.sampler.grid),
        cell.budget,
        cell.steps,
        cell.nfe,
        round(seconds, 4),
        metric,
        value,
        stderr,
    )


def _open_journal(out: str | Path | None, manifest: dict[str, Any]) -> Path | None:
    """The journal of this very comparison, probed to be writable; a foreign one is refused."""
    if out is None:
        return None
    folder = probe(out)
    journal = folder / "cells.jsonl"
    records, _ = read_lines(journal)
    if not records:
        journal.unlink(missing_ok=True)
        append_line(journal, {"manifest": manifest})
    elif records[0].get("manifest") != json.loads(json.dumps(manifest)):
        raise ValueError(
            f"{folder} holds another comparison (its model, data, metrics, seed or versions "
            "differ); name another folder or remove this one"
        )
    return journal


def _hash(x: Tensor) -> str:
    raw = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(str(tuple(x.shape)).encode() + raw).hexdigest()[:16]


def _described(metric: Metric) -> str:
    """The metric with its arguments; functions by name, since addresses change."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(metric))


def _versions() -> dict[str, str]:
    names = ("scoregen", "torch", "numpy", "scipy", "torchdiffeq")
    return {name: importlib.metadata.version(name) for name in names}
