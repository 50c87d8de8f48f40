"""A study is the set of its cells: what is missing is computed, and nothing stale is served."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoregen as sg
from scoregen._identity import installed
from scoregen.comparison import Comparison, cells, files
from scoregen.comparison.statistics import pooled
from scoregen.metrics import Estimate, Frechet, SlicedWasserstein

MODEL = sg.Gaussian(sg.VPSDE(), torch.zeros(2), torch.tensor([1.0, 0.25]))
REFERENCE = MODEL.sample(200, generator=1).float()
SAMPLERS = {"ddim": sg.Sampler(sg.DDIM(), sg.UniformTime(4))}


def mean_square(samples: Tensor, reference: Tensor) -> Estimate:
    return Estimate(float(samples.square().mean()), 0.01)


def lower(function: Any) -> Any:
    """A function that declares what a comparison has to know of it."""
    function.direction, function.biased = "lower", False
    return function


lower(mean_square)


def study(out: Path | None = None, **options: Any) -> Comparison:
    model, samplers = options.pop("model", MODEL), options.pop("samplers", SAMPLERS)
    given = {
        "steps": [4, 8],
        "metrics": [mean_square],
        "reference": REFERENCE,
        "progress": False,
        "pictures": False,
        "out": out,
    }
    return sg.compare(model, samplers, **{**given, **options})


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was sampled ("s") and measured ("m"), one letter per cell or measure."""
    done: list[str] = []
    drawn, measured = cells._sampled, cells.add_measure

    def sampled(task: cells.Task) -> Any:
        done.append("s")
        return drawn(task)

    def measure(*arguments: Any) -> None:
        done.append("m")
        measured(*arguments)

    monkeypatch.setattr(cells, "_sampled", sampled)
    monkeypatch.setattr(cells, "add_measure", measure)
    return done


def counted(done: list[str]) -> tuple[int, int]:
    found = done.count("s"), done.count("m")
    done.clear()
    return found


# Resuming


def test_only_what_is_missing_is_computed(tmp_path: Path, ran: list[str]) -> None:
    more = {**SAMPLERS, "large": sg.Sampler(sg.Ancestral("large"), sg.UniformTime(4))}
    study(tmp_path)
    assert counted(ran) == (2, 2)
    first = study(tmp_path)
    assert counted(ran) == (0, 0)
    study(tmp_path, samplers=more)
    assert counted(ran) == (2, 2)
    study(tmp_path, steps=[4, 8, 12])
    assert counted(ran) == (1, 1)
    study(tmp_path, seeds=(0, 1))
    assert counted(ran) == (2, 2)
    assert [r.value for r in study(tmp_path).rows] == [r.value for r in first.rows]
    study(tmp_path, samplers={"renamed": SAMPLERS["ddim"]})
    assert counted(ran) == (0, 0)
    study(tmp_path, samplers=more, seeds=(0, 1), steps=[4, 8, 12])
    assert counted(ran) == (5, 5)  # of twelve: what was dropped in between was not deleted


def test_a_metric_added_needs_sampling_only_where_samples_were_not_kept(
    tmp_path: Path, ran: list[str]
) -> None:
    study(tmp_path / "kept", keep="samples")
    study(tmp_path / "not")
    counted(ran)
    both = [mean_square, SlicedWasserstein(8)]
    kept = study(tmp_path / "kept", metrics=both)
    assert counted(ran) == (0, 2)
    again = study(tmp_path / "not", metrics=both)
    assert counted(ran) == (2, 2)
    assert [r.value for r in kept.rows] == [r.value for r in again.rows]


class Scaled(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Listed(sg.ScoreModel):
    """A network held in a list is no registered module."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.sde, self.parts = sg.VPSDE(), [Scaled(value)]

    def predict(self, x: Tensor, t: sg.Level, **condition: Any) -> sg.models.Prediction:
        return sg.models.Prediction(self.sde, t, x, x0=self.parts[0](x).detach())


def scaled_by(value: float) -> Callable[[Tensor, Tensor], Estimate]:
    def metric(samples: Tensor, reference: Tensor) -> Estimate:
        return Estimate(value * float(samples.square().mean()), 0.01)

    return lower(metric)


def doubled(samples: Tensor, reference: Tensor) -> Estimate:
    return Estimate(2 * float(samples.square().mean()), 0.01)


lower(doubled).__name__ = "mean_square"


def network() -> sg.ScoreNetwork:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        net = sg.MLP(event=(2,), hidden=4, depth=1, classes=3)
    return sg.ScoreNetwork(net, sg.VPSDE(), sg.V())


def condition(label: int) -> dict[str, Any]:
    return {"label": torch.full((200,), label)}


# (before, after, cells sampled again, measures made again); two cells and one metric in each
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], int, int]] = {
    "weights": ({"model": Listed(0.1)}, {"model": Listed(0.2)}, 2, 2),
    "a module inside a metric": (
        {"metrics": [Frechet(Scaled(1.0))], "keep": "samples"},
        {"metrics": [Frechet(Scaled(2.0))], "keep": "samples"},
        0,
        2,
    ),
    "a function's code": (
        {"metrics": [mean_square], "keep": "samples"},
        {"metrics": [doubled], "keep": "samples"},
        0,
        2,
    ),
    "a closure": (
        {"metrics": [scaled_by(1.0)], "keep": "samples"},
        {"metrics": [scaled_by(2.0)], "keep": "samples"},
        0,
        2,
    ),
    "the reference": (
        {"keep": "samples", "metrics": [SlicedWasserstein(8)]},
        {"keep": "samples", "metrics": [SlicedWasserstein(8)], "reference": REFERENCE + 1},
        0,
        2,
    ),
    "the condition": (
        {"model": network(), "condition": condition(0)},
        {"model": network(), "condition": condition(1)},
        2,
        2,
    ),
    "the guidance scale": (
        {"model": sg.ClassifierFree(network(), 1.5), "condition": condition(0)},
        {"model": sg.ClassifierFree(network(), 3.0), "condition": condition(0)},
        2,
        2,
    ),
    "the seed": ({}, {"seeds": (5,)}, 2, 2),
    "the decoder": ({}, {"decode": lambda x: 2 * x}, 2, 2),
    "the number of samples": ({"samples": 100}, {"samples": 101}, 2, 2),
    "nothing": ({"model": Listed(0.1)}, {"model": Listed(0.1)}, 0, 0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_is_computed_again_and_nothing_else(
    name: str, tmp_path: Path, ran: list[str]
) -> None:
    before, after, sampled, measured = CHANGES[name]
    study(tmp_path, **before)
    counted(ran)
    found = study(tmp_path, **after)
    assert counted(ran) == (sampled, measured)
    fresh = study(None, **{k: v for k, v in after.items() if k != "keep"})
    assert [r.value for r in found.rows] == [r.value for r in fresh.rows]
    if measured:
        assert [r.value for r in study(tmp_path, **before).rows] != [r.value for r in found.rows]


def test_another_version_is_computed_again(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study(tmp_path)
    counted(ran)
    for module in ("scoregen.comparison.run", "scoregen._identity.installed"):
        monkeypatch.setattr(sys.modules[module], "library", lambda: "99.0")
    installed.version.cache_clear()
    try:
        study(tmp_path)
        assert counted(ran) == (2, 2)
    finally:
        monkeypatch.undo()
        installed.version.cache_clear()


class Stream:
    """A metric with a hidden state: two calls differ."""

    name, direction, biased = "stream", "lower", False

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __call__(self, samples: Tensor, reference: Tensor) -> float:
        return float(self.rng.random())


def test_a_thing_without_identity_is_refused_where_it_would_be_stored(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="has no identity"):
        study(tmp_path, metrics=[Stream()])
    assert len(study(None, metrics=[Stream()]).rows) == 2


def test_a_damaged_cell_is_computed_again(tmp_path: Path, ran: list[str]) -> None:
    first = study(tmp_path)
    counted(ran)
    one, other = sorted((tmp_path / "cells").glob("*.json"))
    one.write_text(one.read_text().replace('"seed": 0', '"seed": 1'))
    other.write_text(other.read_text()[:40])
    assert [r.value for r in study(tmp_path).rows] == [r.value for r in first.rows]
    assert counted(ran) == (2, 2)


# Divergence, interruption, failing metrics


class Diverges(sg.DDIM):
    """Leaves infinity behind after the fifth move."""

    def step(self, model: Any, x: Tensor, t: Any, s: Any, state: Any, noise: Any) -> Any:
        x, _ = super().step(model, x, t, s, state, noise)
        return (x / 0 if (state or 0) == 5 else x), (state or 0) + 1


def test_a_diverging_cell_is_recorded_and_the_rest_go_on(tmp_path: Path, ran: list[str]) -> None:
    samplers = {"bad": sg.Sampler(Diverges(), sg.UniformTime(4)), **SAMPLERS}
    result = study(tmp_path, samplers=samplers)
    got = {(r.sampler, r.budget): r.status for r in result.rows}
    assert got == {
        ("bad", 4): "done",
        ("bad", 8): "diverged",
        ("ddim", 4): "done",
        ("ddim", 8): "done",
    }
    (bad,) = [r for r in result.rows if r.status == "diverged"]
    assert math.isnan(bad.value)
    assert "move 6" in bad.message
    assert "| diverged |" in (tmp_path / "table.md").read_text()
    assert result.best("mean_square", 8).sampler in samplers
    assert {v.verdict for v in result.versus("ddim", 8)} == {"diverged"}
    counted(ran)
    study(tmp_path, samplers=samplers)
    assert counted(ran) == (0, 0)


@dataclass(frozen=True)
class Interrupts:
    """Raises when a file is there, once; the file is no part of its identity."""

    flag: Path
    error: type[BaseException] = KeyboardInterrupt
    name, direction, biased = "interrupts", "lower", False

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        if self.flag.exists() and len(samples) == 200:
            self.flag.unlink()
            raise self.error("stop")
        return mean_square(samples, reference)


def test_ctrl_c_keeps_finished_cells_and_the_table(tmp_path: Path, ran: list[str]) -> None:
    metric, out = Interrupts(tmp_path / "flag"), tmp_path / "out"
    study(out, metrics=[metric], steps=[4])
    counted(ran)
    metric.flag.touch()
    with pytest.raises(KeyboardInterrupt):
        study(out, metrics=[metric], steps=[4, 8, 12])
    assert [r.budget for r in sg.comparison.load(out).rows] == [4]
    assert "| 4 |" in (out / "table.md").read_text()
    counted(ran)
    assert len(study(out, metrics=[metric], steps=[4, 8, 12]).rows) == 3
    assert counted(ran) == (2, 2)


def test_a_metric_that_fails_loses_its_value_alone(tmp_path: Path) -> None:
    metric = Interrupts(tmp_path / "flag", ValueError)
    metric.flag.touch()
    result = study(tmp_path / "out", metrics=[metric, mean_square])
    assert [r.status for r in result.rows] == ["failed", "done", "done", "done"]
    assert result.rows[0].message == "ValueError: stop"
    again = study(tmp_path / "out", metrics=[metric, mean_square])
    assert {r.status for r in again.rows} == {"done"}


# Reading back, adding metrics, other tables


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    made = study(
        tmp_path, metrics=[SlicedWasserstein(8), mean_square], seeds=(0, 1), floor=REFERENCE
    )
    back = sg.comparison.load(tmp_path)
    assert back.rows == made.rows
    assert back.summaries == made.summaries
    assert back.markdown() == made.markdown()
    assert [str(v) for v in back.versus("ddim", 8)] == [str(v) for v in made.versus("ddim", 8)]
    assert back.shown.keys() == made.shown.keys()
    for place, samples in made.shown.items():
        assert torch.equal(back.shown[place], samples)


def test_measure_adds_a_metric_from_kept_samples(tmp_path: Path) -> None:
    metric = SlicedWasserstein(8)
    whole = study(None, metrics=[mean_square, metric])
    kept = study(tmp_path, keep="samples").measure(metric, REFERENCE)
    wanted = [r.value for r in whole.rows if r.metric == "sliced-w2-200"]
    assert [r.value for r in kept.rows if r.metric == "sliced-w2-200"] == wanted
    back = sg.comparison.load(tmp_path)
    assert [r.value for r in back.rows if r.metric == "sliced-w2-200"] == wanted
    assert back.influence(back.rows[-1]) is not None
    with pytest.raises(ValueError, match="measured already"):
        kept.measure(metric, REFERENCE)
    with pytest.raises(ValueError, match='keep="samples"'):
        study(None).measure(metric, REFERENCE)


def test_tables_mark_the_best_and_its_ties() -> None:
    twins = dict.fromkeys(("one", "two & more"), SAMPLERS["ddim"])
    worse = {"bad": sg.Sampler(sg.DDIM(), sg.UniformTime(4, stop=0.9))}
    truth = MODEL.sample(2000).float()
    result = study(
        None,
        samplers={**twins, **worse},
        metrics=[SlicedWasserstein(8)],
        steps=[6],
        samples=1000,
        reference=truth,
    )
    table = result.markdown()
    assert table.count("**") == 4  # the title and the best
    assert table.count(" * |") == 1  # its twin
    tex = result.latex(bold="best")
    assert tex.count(r"\mathbf") == 2
    assert r"two \& more" in tex
    assert r"\downarrow" in tex
    assert result.latex(bold=None).count(r"\mathbf") == 0
    with pytest.raises(ValueError, match="bold must be one of"):
        result.latex(bold="all")


def test_pareto_holds_what_nothing_beats() -> None:
    samplers = {
        "ddim": sg.Sampler(sg.DDIM(), sg.UniformTime(4)),
        "noisy": sg.Sampler(sg.EulerMaruyama(), sg.UniformTime(4)),
    }
    result = study(None, samplers=samplers, metrics=[SlicedWasserstein(16)], steps=[4, 8, 32])
    (metric,) = result.metrics
    front = result.pareto(metric)
    for s in result.summaries:
        beaten = any(f.nfe <= s.nfe and f.value <= s.value for f in front)
        assert beaten
    assert [f.value for f in front] == sorted((f.value for f in front), reverse=True)
    assert [f.nfe for f in front] == sorted(f.nfe for f in front)
    assert result.pareto(metric, "seconds")[0].seconds == min(s.seconds for s in result.summaries)
    with pytest.raises(TypeError, match="budget must be a real number"):
        result.at("8", "mean_square")
    with pytest.raises(ValueError, match="x must be one of"):
        result.pareto(metric, "price")


def test_frame_and_xarray_hold_the_rows() -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("xarray")
    result = study(None, seeds=(0, 1))
    frame = result.frame()
    assert list(frame["value"]) == [r.value for r in result.rows]
    values = result.to_xarray()["value"]
    one = values.sel(metric="mean_square", sampler="ddim", budget=8, seed=1).item()
    assert one == next(r.value for r in result.rows if (r.budget, r.seed) == (8, 1))


# Statistics


def test_pooled_uses_the_samples_where_the_seeds_agree_with_them() -> None:
    agree = pooled([1.0, 1.1, 0.9], [0.1, 0.1, 0.1])
    assert agree.stderr == pytest.approx(0.1 / math.sqrt(3))
    assert agree.high - agree.value == pytest.approx(1.959964 * agree.stderr, rel=1e-5)
    apart = pooled([1.0, 3.0, 5.0], [0.1, 0.1, 0.1])
    assert apart.stderr == pytest.approx(2 / math.sqrt(3))
    assert apart.high - apart.value == pytest.approx(4.302653 * apart.stderr, rel=1e-5)
    assert pooled([1.0], [None], [0.2]).stderr == 0.2
    assert math.isnan(pooled([], []).value)


def paired_study(seeds: range, a: sg.Sampler, b: sg.Sampler, **options: Any) -> Comparison:
    given = {"metrics": [Frechet()], "steps": [8], "samples": 100}
    return study(None, samplers={"a": a, "b": b}, seeds=seeds, **{**given, **options})


def test_versus_tells_apart_what_single_bars_do_not() -> None:
    """Two grids on common noise: intervals overlap, and the paired difference is clear."""
    result = paired_study(
        range(20),
        sg.Sampler(sg.DDIM(), sg.UniformLam(8)),
        sg.Sampler(sg.DDIM(), sg.UniformLam(8, start=0.98)),
        samples=200,
    )
    (one, other) = result.summaries
    assert one.low < other.high
    assert other.low < one.high
    (found,) = result.versus("a", 8)
    assert found.verdict in ("better", "worse")
    assert found.stderr < 0.4 * math.hypot(one.stderr, other.stderr)


@pytest.mark.slow
def test_the_interval_of_a_difference_holds_the_truth() -> None:
    """Coverage over 200 repeats of 3 seeds; the truth from 600 seeds. False alarm below 1e-6."""
    a = sg.Sampler(sg.DDIM(), sg.UniformLam(6))
    b = sg.Sampler(sg.DDIM(), sg.UniformTime(6))
    whole = paired_study(range(600), a, b, steps=[6])
    (truth,) = whole.versus("a", 6)
    held = 0
    for k in range(200):
        part = [r for r in whole.rows if 3 * k <= r.seed < 3 * k + 3]
        (found,) = replace(whole, rows=part).versus("a", 6)
        held += found.low <= truth.difference <= found.high
    # 95 % of 200 is 190 +- 3.1
    assert held >= 174


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0, 300])
def test_equal_samplers_with_different_names_tie(shift: int) -> None:
    """On equal noise always; on other noise in 95 % of 200 repeats. False alarm below 1e-6."""
    once = sg.Sampler(sg.DDIM(), sg.UniformLam(6))
    twice = paired_study(range(600), once, once, steps=[6])
    values = {r.seed: r for r in twice.rows if r.sampler == "b"}
    tied = 0
    for k in range(200):
        rows = [r for r in twice.rows if r.sampler == "a" and 3 * k <= r.seed < 3 * k + 3]
        rows += [replace(values[(r.seed + shift) % 600], seed=r.seed) for r in rows]
        (found,) = replace(twice, rows=rows).versus("a", 6)
        tied += found.verdict == "tie"
    assert tied == 200 if shift == 0 else tied >= 174


@pytest.mark.slow
def test_digits_are_told_apart_by_pairs_alone() -> None:
    """20 seeds at 10 evaluations: single intervals overlap, the paired one is clear of zero."""
    result = sg.compare(
        sg.digits_model(),
        {
            "lam": sg.Sampler(sg.DPMSolverPP(), sg.UniformLam(10)),
            "karras": sg.Sampler(sg.DPMSolverPP(), sg.Karras(10)),
        },
        steps=[10],
        metrics=[SlicedWasserstein(64)],
        reference=sg.digits("train"),
        samples=60,
        seeds=range(20),
        condition={"label": torch.arange(60) % 10},
        progress=False,
    )
    one, other = result.summaries
    assert one.low < other.high
    assert other.low < one.high
    (found,) = result.versus("lam", 10)
    assert found.verdict == "worse"
    assert found.stderr < 0.5 * math.hypot(one.stderr, other.stderr)


def test_identical_samplers_tie() -> None:
    twin = sg.Sampler(sg.Ancestral(), sg.UniformTime(4))
    result = paired_study(range(2), twin, twin, steps=[4])
    (found,) = result.versus("a", 4)
    assert (found.verdict, found.difference) == ("tie", 0.0)
    assert "tie" in str(found)


# Large cells in ranges


def test_ranges_give_what_the_whole_gives(tmp_path: Path) -> None:
    """Bit for bit, with labels that are sliced and solvers that choose their evaluations."""
    samplers = {**SAMPLERS, "dopri": sg.Sampler(sg.Dopri5(1e-2, 1e-2), sg.Times(1.0, 0.0))}
    given = {
        "model": network(),
        "condition": {"label": torch.arange(200) % 3},
        "samplers": samplers,
        "keep": "samples",
        "decode": lambda x: 2 * x,
        "metrics": [SlicedWasserstein(8)],
    }
    whole = study(None, chunk=32, **given)
    with ThreadPoolExecutor(2) as pool:
        cut = study(tmp_path, split=64, chunk=32, executor=pool, **given)
        nowhere = study(None, split=32, executor=pool, **given)
    assert table(cut) == table(whole) == table(nowhere)
    for place, samples in whole.shown.items():
        assert torch.equal(cut.shown[place], samples)
        assert torch.equal(nowhere.shown[place], samples)
    assert not list((tmp_path / "cells").glob("*.*-*.safetensors")), "parts are put together"


def test_a_lost_range_loses_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, made = cells._drawn, []
    failing = {"once": True}

    def fails(task: cells.Task, rows: range) -> Any:
        made.append(rows.start)
        if rows.start == 100 and failing.pop("once", False):
            raise OSError("the machine is gone")
        return drawn(task, rows)

    monkeypatch.setattr(cells, "_drawn", fails)
    with pytest.warns(UserWarning, match="1 of 1 cells were lost"):
        hurt = study(tmp_path, steps=[4], split=50)
    assert [r.status for r in hurt.rows] == ["lost"]
    made.clear()
    again = study(tmp_path, steps=[4], split=50)
    assert made == [100]
    assert table(again) == table(study(None, steps=[4], chunk=50))


def test_a_range_that_diverges_is_a_cell_that_diverged(tmp_path: Path) -> None:
    samplers = {"bad": sg.Sampler(Diverges(), sg.UniformTime(8))}
    result = study(tmp_path, samplers=samplers, steps=[8], split=50)
    assert [(r.status, "move 6" in r.message) for r in result.rows] == [("diverged", True)]


def test_splits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of chunk = 30"):
        study(None, split=50, chunk=30)
    with pytest.raises(ValueError, match="at least 1"):
        study(None, split=0)


# Executors


@contextmanager
def processes() -> Iterator[Any]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@contextmanager
def loky() -> Iterator[Any]:
    pool = pytest.importorskip("loky").ProcessPoolExecutor(2)
    yield pool
    pool.shutdown()


@contextmanager
def dask() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@contextmanager
def submitit() -> Iterator[Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        executor = pytest.importorskip("submitit").LocalExecutor(folder)
        executor.update_parameters(timeout_min=5)
        yield executor


EXECUTORS = {"processes": processes, "loky": loky, "dask": dask, "submitit": submitit}


def table(result: Comparison) -> list[tuple[Any, ...]]:
    return [
        (r.sampler, r.budget, r.seed, r.metric, r.value, r.stderr, r.nfe, r.depth, r.status)
        for r in result.rows
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.filterwarnings("ignore")
def test_every_executor_gives_the_same_table(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    given = {
        "model": network(),
        "condition": condition(1),
        "seeds": range(2),
        "metrics": [SlicedWasserstein(8), Frechet(Scaled(2.0))],
    }
    here = study(tmp_path / "here", **given)
    with EXECUTORS[name]() as executor:
        there = study(tmp_path / "there", executor=executor, **given)
        without = study(None, executor=executor, **given)
    assert table(there) == table(here) == table(without)
    for place, samples in here.shown.items():
        assert torch.equal(there.shown[place], samples)


def test_threads_will_do_for_an_executor(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert table(study(tmp_path, executor=pool)) == table(study(None))


@dataclass(frozen=True)
class Kills:
    """Kills its own process when a file is there, once."""

    flag: Path
    name, direction, biased = "kills", "lower", False

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        if len(samples) == 200 and self.flag.exists():
            self.flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return mean_square(samples, reference)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_loses_its_cell_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    metric, out = Kills(tmp_path / "flag"), tmp_path / "out"
    with EXECUTORS[name]() as executor:
        study(out, metrics=[metric], steps=[4], executor=executor)
        metric.flag.touch()
        hurt = study(out, metrics=[metric], steps=[4, 8, 12], executor=executor)
    assert not metric.flag.exists(), "nothing was killed"
    assert len(hurt.rows) == 3
    assert hurt.rows[0].status == "done"
    assert {r.status for r in hurt.rows} <= {"done", "lost"}
    with EXECUTORS[name]() as executor:
        whole = study(out, metrics=[metric], steps=[4, 8, 12], executor=executor)
    assert table(whole) == table(study(None, metrics=[metric], steps=[4, 8, 12]))


@pytest.mark.slow
def test_workers_read_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    folder = sg.save(network(), tmp_path / "model")
    with processes() as executor:
        there = study(None, model=folder, condition=condition(1), executor=executor)
    assert table(there) == table(study(None, model=network(), condition=condition(1)))


@pytest.mark.slow
def test_what_cannot_be_sent_is_refused_before_any_work(tmp_path: Path) -> None:
    def local(samples: Tensor, reference: Tensor) -> Estimate:
        return mean_square(samples, reference)

    with processes() as executor, pytest.raises((AttributeError, TypeError), match=r"local|pickle"):
        study(tmp_path, metrics=[lower(local)], executor=executor)
    assert list((tmp_path / "cells").iterdir()) == []


def test_two_processes_in_one_folder_do_no_harm(tmp_path: Path) -> None:
    """What another writer has added to a record meanwhile is kept."""
    made = study(tmp_path)
    cell = made.rows[0].cell
    before = files.read_cell(tmp_path, cell)
    assert before is not None
    other = {**before, "measures": {"another": {"metric": "x", "value": 1.0, "stderr": 0.1}}}
    files.write_cell(tmp_path, other)
    after = files.read_cell(tmp_path, cell)
    assert after is not None
    assert set(after["measures"]) == {*before["measures"], "another"}
    assert json.loads(files.cell_path(tmp_path, cell).read_text())["sha256"]
