"""The comparison: budgets are counted, noise is shared, results survive what can happen to them."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch

import scoregen as sg
from scoregen.comparison.table import append_line, as_row, plain, read_lines
from scoregen.metrics import Estimate

MODEL = sg.Gaussian(sg.VPSDE(), torch.zeros(2), torch.tensor([1.0, 0.25]))
REFERENCE = MODEL.sample(400, generator=1).float()


def mean_square(samples: torch.Tensor, reference: torch.Tensor) -> Estimate:
    return Estimate(float(samples.square().mean()), 0.01)


def small(**options):
    samplers = options.pop("samplers", {"ddim": sg.Sampler(sg.DDIM(), sg.UniformTime(4))})
    given = {"steps": [4, 8], "metrics": [mean_square], "reference": REFERENCE, "progress": False}
    return sg.compare(MODEL, samplers, **{**given, **options})


def test_each_budget_is_spent_but_not_overspent() -> None:
    samplers = {
        "ddim": sg.Sampler(sg.DDIM(), sg.UniformTime(4)),
        "heun": sg.Sampler(sg.KarrasHeun(), sg.Karras(4)),
        "rk4": sg.Sampler(sg.ProbabilityFlow(sg.solvers.RK4), sg.UniformTime(4)),
    }
    got = {(r.sampler, r.budget): (r.steps, r.nfe) for r in small(samplers=samplers).rows}
    assert got[("ddim", 4)] == (4, 4.0)
    assert got[("ddim", 8)] == (8, 8.0)
    assert got[("heun", 4)] == (2, 3.0)  # 2 n - 1 evaluations
    assert got[("heun", 8)] == (4, 7.0)
    assert got[("rk4", 8)] == (2, 5.0)  # four stages, then the leap to x0
    assert ("rk4", 4) in got
    assert got[("rk4", 4)] == (1, 1.0)


def test_guided_evaluations_count_twice() -> None:
    with torch.random.fork_rng():
        net = sg.MLP(event=(2,), hidden=8, depth=1, classes=3)
    model = sg.ScoreNetwork(net, sg.VPSDE(), sg.V())
    guided = sg.ClassifierFree(model, 2.0)
    cells = sg.compare(
        guided,
        {"ddim": sg.Sampler(sg.DDIM(), sg.UniformTime(4))},
        steps=[8],
        metrics=[mean_square],
        reference=REFERENCE,
        samples=6,
        condition={"label": torch.arange(6) % 3},
        progress=False,
    )
    assert [(r.steps, r.nfe) for r in cells.rows] == [(4, 8.0)]


def test_a_sampler_without_a_count_runs_as_it_is() -> None:
    rows = small(samplers={"times": sg.Sampler(sg.DDIM(), sg.Times(1.0, 0.5, 0.0))}).rows
    assert [(r.budget, r.steps, r.nfe) for r in rows] == [(None, None, 2.0)]


def test_strided_grids_stop_at_the_number_of_knots() -> None:
    model = sg.Gaussian(sg.DiscreteVPSDE.linear(6, 0.1, 0.5), torch.zeros(2), torch.ones(2))
    result = sg.compare(
        model,
        {"ddim": sg.Sampler(sg.DDIM(), sg.Strided(4))},
        steps=[4, 50],
        metrics=[mean_square],
        reference=REFERENCE,
        progress=False,
    )
    assert [r.steps for r in result.rows] == [4, 6]


def test_every_sampler_gets_the_same_noise() -> None:
    twice = {name: sg.Sampler(sg.Ancestral(), sg.UniformTime(4)) for name in ("a", "b")}
    shown = small(samplers=twice).shown
    assert torch.equal(shown[("a", 4.0)], shown[("b", 4.0)])
    whole = sg.Sampler(sg.Ancestral(), sg.UniformTime(4)).sample(MODEL, (400, 2), seed=0)
    assert torch.equal(shown[("a", 4.0)], whole[:25])


def test_conditions_reach_the_right_rows() -> None:
    with torch.random.fork_rng():
        net = sg.MLP(event=(2,), hidden=8, depth=1, classes=3)
    model = sg.ScoreNetwork(net, sg.VPSDE(), sg.V())
    labels = torch.arange(9) % 3
    sampler = sg.Sampler(sg.DDIM(), sg.UniformTime(3))
    given = {"steps": [3], "metrics": [mean_square], "reference": REFERENCE, "samples": 9}
    result = sg.compare(
        model, {"d": sampler}, condition={"label": labels}, chunk=4, progress=False, **given
    )
    alone = sampler.sample(model, (9, 2), seed=0, condition={"label": labels})
    assert torch.allclose(result.shown[("d", 3.0)], alone, atol=1e-5)


def test_files_say_what_the_rows_say(tmp_path) -> None:
    result = small(out=tmp_path, floor=REFERENCE)
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["value"]) for line in lines] == [r.value for r in result.rows]
    body = json.loads((tmp_path / "results.json").read_text())
    assert body["manifest"]["fingerprint"] == sg.training.fingerprint(MODEL)
    assert body["manifest"]["grids"]["ddim@4"] == pytest.approx(
        sg.UniformTime(4)(MODEL.sde).tolist()
    )
    assert body["manifest"]["versions"]["torch"]
    assert "| ddim |" in (tmp_path / "table.md").read_text()
    for picture in ("quality.png", "samples.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_an_interrupted_comparison_goes_on(tmp_path) -> None:
    calls = []

    def counting(samples, reference):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return mean_square(samples, reference)

    counting.__qualname__ = counting.__name__ = "counting"
    with pytest.raises(KeyboardInterrupt):
        small(out=tmp_path, metrics=[counting])
    result = small(out=tmp_path, metrics=[counting])
    assert len(calls) == 3  # the finished cell was not run again
    assert [r.value for r in result.rows] == pytest.approx([r.value for r in small().rows])
    assert set(result.shown) == {("ddim", 4.0), ("ddim", 8.0)}


def test_another_comparison_in_the_folder_is_refused(tmp_path) -> None:
    small(out=tmp_path)
    with pytest.raises(ValueError, match="another comparison"):
        small(out=tmp_path, seed=1)


def test_torn_and_altered_journal_lines_are_skipped(tmp_path) -> None:
    journal = tmp_path / "cells.jsonl"
    append_line(journal, {"a": 1})
    append_line(journal, {"a": 2})
    lines = journal.read_text().splitlines()
    journal.write_text(lines[0] + "\n" + lines[1].replace("2}", "3}") + "\n" + lines[0][:20])
    assert read_lines(journal) == ([{"a": 1}], 2)


def test_an_unwritable_folder_is_refused_before_any_work(tmp_path) -> None:
    (tmp_path / "file").write_text("")

    def untouched(samples, reference):
        raise AssertionError("work began before the folder was probed")

    with pytest.raises(ValueError, match="cannot be written"):
        small(out=tmp_path / "file" / "below", metrics=[untouched])


def test_values_that_are_not_finite_survive_json() -> None:
    row = sg.comparison.Row("d", "DDIM()", "Times()", None, None, 2.0, 0.1, "m", math.inf, math.nan)
    body = json.dumps(plain(row), allow_nan=False)
    again = as_row(json.loads(body))
    assert math.isnan(again.value)
    assert math.isnan(again.stderr)


def test_best_finds_the_lowest_within_a_budget() -> None:
    result = small()
    best = result.best("mean_square", 8)
    assert best.value == min(r.value for r in result.rows)
    with pytest.raises(ValueError, match="no row"):
        result.best("frechet", 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samplers": {}}, "at least one sampler"),
        ({"steps": []}, "at least one budget"),
        ({"steps": [0]}, "at least 1"),
        ({"steps": [2.5]}, "integer"),
        ({"metrics": []}, "metrics must list"),
        ({"reference": REFERENCE * math.nan}, "finite"),
        ({"reference": torch.zeros(4, 2, dtype=torch.long)}, "floating"),
        ({"samples": 1}, "at least 2"),
    ],
)
def test_bad_input_is_named(change, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        small(**change)


def test_a_sampler_too_dear_for_every_budget_is_named() -> None:
    dear = {"rk4": sg.Sampler(sg.ProbabilityFlow(sg.solvers.RK4), sg.UniformTime(4, stop=0.5))}
    with pytest.raises(ValueError, match="rk4 needs more than 3"):
        small(samplers=dear, steps=[3])
