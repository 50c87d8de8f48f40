"""The commands of a study: compare samplers, one against the others, and a report."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from .._checks import check_count
from ..comparison import compare as run_comparison
from ..comparison import load
from ..guidance import ClassifierFree
from ..models import ScoreModel, conditions_of
from . import specs
from .inputs import BUNDLED, data_of, drawable, model_of, units_of
from .origins import Checkpoints


def compare(
    sampler: tuple[str, ...] = (
        "DDIM@UniformLam(10)",
        "DPMSolverPP@UniformLam(10)",
        "KarrasHeun@Karras(10)",
        "Ancestral@UniformTime(10)",
    ),
    *,
    checkpoint: Checkpoints = (BUNDLED,),
    source: str = BUNDLED,
    steps: tuple[int, ...] = (5, 10, 20, 50),
    metric: tuple[str, ...] = (),
    samples: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    label: int | None = None,
    guidance: float = 1.0,
    keep: bool = False,
    chunk: int | None = None,
    split: int | None = None,
    workers: int = 1,
    out: Path = Path("runs/compare"),
    device: str | None = None,
) -> None:
    """Steps versus quality: tables, plots and a report; interrupted, the same command goes on.

    Args:
        sampler: one or more [NAME=]SOLVER@GRID; the grid's count is set for each budget.
        checkpoint: one or more folders, "digits", "digits-map", or another library's, as in
            `scoregen sample`.
        source: reference data, as in `scoregen train`.
        steps: budgets of network evaluations per sample.
        metric: such as "SlicedWasserstein(256)", "MMD", "Precision"; for digits also with features,
            "KID(digits_features)". SlicedWasserstein unless given, for digits Frechet before it.
        samples: how many per cell; as many as are held out of the data unless given, so that real
            data stand beside them at equal n.
        seed: first seed of the noise, shared by all samplers.
        seeds: how many seeds.
        label: class of all samples; the classes of the data in turn unless given.
        guidance: classifier-free guidance scale: 0 unconditional, 1 conditional, more extrapolates.
        keep: keep all samples, for metrics added later.
        chunk: most samples at a time.
        split: most samples of a cell that one worker makes.
        workers: processes.
        out: folder for results.csv, results.json, table.md, pictures and report.html.
        device: cpu, cuda, ...
    """
    for name, value in (("--seeds", seeds), ("--workers", workers)):
        check_count(name, value)
    named = dict(specs.parse_sampler(s) for s in sampler)
    if len(named) < len(sampler):
        raise ValueError("two samplers have one name: write NAME=SOLVER@GRID")
    labels = [Path(c).name if len(checkpoint) > 1 else "model" for c in checkpoint]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two checkpoints are called {max(labels, key=labels.count)!r}")
    reference = data_of(source, "train")
    own = ("Frechet(digits_features)",) if source == BUNDLED else ()
    metrics = [specs.parse(m, "metric") for m in metric or (*own, "SlicedWasserstein")]
    models: dict[str, ScoreModel] = {}
    for name, folder in zip(labels, checkpoint, strict=True):
        models[name] = model_of(folder, device)
    known = [conditions_of(model) for model in models.values()]
    conditional = [c is not None and c.classes > 0 for c in known]
    if any(conditional) != all(conditional):
        raise ValueError("checkpoints with and without classes cannot share a condition")
    if guidance != 1.0:
        models = {name: ClassifierFree(model, guidance) for name, model in models.items()}
    units = [units_of(c) for c in checkpoint]
    if any(u != units[0] for u in units):
        raise ValueError("the checkpoints were trained on data in different units")
    floor = data_of(source, "test").x
    count = check_count("--samples", len(floor) if samples is None else samples)
    target: Any = reference
    if units[0] is not None:  # samples are in the units of the training
        target, floor = units[0].apply(reference.x), units[0].apply(floor)
    condition: dict[str, Any] = {}
    if label is not None:
        condition = {"label": label}
    elif all(conditional) and reference.label is not None:
        condition = {"label": reference.label[torch.arange(count) % len(reference)]}
    if guidance != 1.0 and not condition:
        raise ValueError("guidance needs a --label to guide towards")
    pictures = drawable("matplotlib", "jinja2")
    with _pool(workers) as executor:
        result = run_comparison(
            models,
            named,
            steps=steps,
            metrics=metrics,
            reference=target,
            floor=floor,
            samples=count,
            seeds=range(seed, seed + seeds),
            condition=condition,
            keep="samples" if keep else None,
            chunk=chunk,
            split=split,
            executor=executor,
            out=out,
            pictures=pictures,
        )
    print(result.markdown())
    print(f"table: {out / 'table.md'}")
    if pictures:
        print(f"plot: {out / 'quality.png'}\nsamples: {out / 'samples.png'}")
        print(f"report: {result.report(out / 'report.html')}")


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Worker processes, or None for this one."""
    if workers == 1:
        yield None
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool


def versus(folder: Path, name: str, /, *, budget: int = 10, metric: str | None = None) -> None:
    """How every sampler of a comparison does against one, paired on common noise.

    Args:
        folder: what `scoregen compare` wrote.
        name: of the sampler to compare with.
        budget: evaluations per sample.
        metric: its title; all unless given.
    """
    for line in load(folder).versus(name, budget, metric):
        print(line)


def report(folder: Path, /, *, out: Path | None = None) -> None:
    """One HTML page of a comparison, to read, send and print.

    Args:
        folder: what `scoregen compare` wrote.
        out: the file; report.html in the folder unless given.
    """
    print(load(folder).report(folder / "report.html" if out is None else out))
