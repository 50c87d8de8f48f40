"""The comparison: budgets are counted, noise is shared, and whatever can be refused is, first."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import scoregen as sg
from scoregen.comparison.table import as_row, plain
from scoregen.metrics import Estimate

MODEL = sg.Gaussian(sg.VPSDE(), torch.zeros(2), torch.tensor([1.0, 0.25]))
REFERENCE = MODEL.sample(400, generator=1).float()


def mean_square(samples: torch.Tensor, reference: torch.Tensor) -> Estimate:
    return Estimate(float(samples.square().mean()), 0.01)


def lower(function: Any) -> sg.metrics.FunctionMetric:
    return sg.metrics.FunctionMetric(function, direction="lower", biased=False)


mean_square.direction, mean_square.biased = "lower", False  # a function may declare it itself


def small(**options: Any) -> sg.comparison.Comparison:
    samplers = options.pop("samplers", {"ddim": sg.Sampler(sg.DDIM(), sg.UniformTime(4))})
    model = options.pop("model", MODEL)
    given = {"steps": [4, 8], "metrics": [mean_square], "reference": REFERENCE, "progress": False}
    return sg.compare(model, samplers, **{**given, **options})


def classes_model() -> sg.ScoreNetwork:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        net = sg.MLP(event=(2,), hidden=8, depth=1, classes=3)
    return sg.ScoreNetwork(net, sg.VPSDE(), sg.V())


def never(samples: torch.Tensor, reference: torch.Tensor) -> Estimate:
    raise AssertionError("work began")


# Budgets and costs


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
    assert got[("rk4", 8)] == (2, 5.0)  # four stages, then the move to x0
    assert got[("rk4", 4)] == (1, 1.0)


def test_guided_evaluations_count_twice_and_lie_side_by_side() -> None:
    rows = small(
        model=sg.ClassifierFree(classes_model(), 2.0),
        steps=[8],
        samples=6,
        condition={"label": torch.arange(6) % 3},
    ).rows
    assert [(r.steps, r.nfe, r.depth) for r in rows] == [(4, 8.0, 4)]


def test_parallel_evaluations_count_once_in_depth() -> None:
    picard = sg.sampling.Picard(sg.DDIM(), sg.Times(1.0, 0.7, 0.4, 0.2, 0.0), tolerance=0.0)
    (row,) = small(samplers={"picard": picard}).rows
    assert row.nfe > 4
    assert row.depth <= 4


def test_an_adaptive_solver_is_counted_on_all_samples() -> None:
    sampler = sg.Sampler(sg.Dopri5(), sg.Times(1.0, 0.0))
    (row,) = small(samplers={"dopri": sampler}).rows
    with sg.models.Counted(MODEL) as count:
        sampler.sample(MODEL, (400, 2), seed=0)
    assert row.nfe == count.rows / 400
    assert (row.budget, row.steps) == (None, None)


@pytest.mark.filterwarnings("ignore:sampling starts")
def test_strided_grids_stop_at_the_number_of_knots() -> None:
    model = sg.Gaussian(sg.DiscreteVPSDE.linear(6, 0.1, 0.5), torch.zeros(2), torch.ones(2))
    samplers = {"ddim": sg.Sampler(sg.DDIM(), sg.Strided(4))}
    result = small(model=model, samplers=samplers, steps=[4, 50])
    assert [r.steps for r in result.rows] == [4, 6]


# Noise and conditions


def test_every_sampler_gets_the_same_noise_and_every_seed_another() -> None:
    twice = {name: sg.Sampler(sg.Ancestral(), sg.UniformTime(4)) for name in ("a", "b")}
    shown = small(samplers=twice, seeds=(0, 3), steps=[4]).shown
    whole = sg.Sampler(sg.Ancestral(), sg.UniformTime(4)).sample(MODEL, (400, 2), seed=3)
    for name in twice:
        assert torch.equal(shown[("model", name, 4, 3)], whole[:25])
        assert not torch.equal(shown[("model", name, 4, 0)], whole[:25])


def test_conditions_reach_the_right_rows() -> None:
    model, labels = classes_model(), torch.arange(9) % 3
    sampler = sg.Sampler(sg.DDIM(), sg.UniformTime(3))
    given = {"model": model, "samplers": {"d": sampler}, "steps": [3], "samples": 9}
    result = small(condition={"label": labels}, chunk=4, **given)
    alone = sampler.sample(model, (9, 2), seed=0, condition={"label": labels})
    assert torch.allclose(result.shown[("model", "d", 3, 0)], alone, atol=1e-5)
    bound = small(**{**given, "model": model.given(label=labels)})
    assert torch.equal(bound.shown[("model", "d", 3, 0)], alone)


def test_scales_per_sample_are_planned_on_all_samples() -> None:
    guided = sg.ClassifierFree(classes_model(), torch.linspace(0, 3, 9)).given(
        label=torch.arange(9) % 3
    )
    assert [r.nfe for r in small(model=guided, samples=9, steps=[8]).rows] == [8.0]


def test_several_models_share_noise_and_names_tell_them_apart() -> None:
    other = sg.Gaussian(sg.VPSDE(), torch.ones(2), 1.0)
    result = small(model={"a": MODEL, "b": other}, steps=[4])
    assert [result.name(r) for r in result.rows] == ["a: ddim", "b: ddim"]
    assert [v.name for v in result.versus("a: ddim", 4)] == ["b: ddim"]


class Uniform:
    """A generator that knows nothing of scores."""

    evaluations = 1

    def sample(self, n: int, *, seed: int, condition: Any = None) -> torch.Tensor:
        return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))


def test_baselines_stand_beside_samplers() -> None:
    result = small(baselines={"uniform": Uniform()}, seeds=(0, 1))
    rows = [r for r in result.rows if r.sampler == "uniform"]
    assert [(r.budget, r.nfe, r.seed) for r in rows] == [(None, 1.0, 0), (None, 1.0, 1)]
    assert rows[0].value == pytest.approx(1 / 3, abs=0.1)
    assert {v.name for v in result.versus("ddim", 8)} == {"uniform"}
    with pytest.raises(TypeError, match="must have sample"):
        small(baselines={"no": object()})
    with pytest.raises(ValueError, match="rename one"):
        small(baselines={"ddim": Uniform()})


def test_decoded_samples_are_measured() -> None:
    result = small(decode=lambda x: x[:, :1] * 10, event=(2,), reference=REFERENCE[:, :1])
    assert result.rows[0].value > 10  # a hundred times what is not decoded
    assert next(iter(result.shown.values())).shape == (25, 1)


def test_data_bring_their_range() -> None:
    data = sg.Data(REFERENCE.sigmoid(), range=(0.0, 1.0))
    assert small(reference=data).data_range == (0.0, 1.0)
    assert small(reference=data, data_range=(-2.0, 2.0)).data_range == (-2.0, 2.0)
    assert small().data_range == (-1.0, 1.0)


# Refusals, all before the first sample


@dataclass(frozen=True)
class Titled:
    name: str
    direction: str = "lower"
    biased: bool = False

    def __call__(self, samples: torch.Tensor, reference: torch.Tensor) -> Estimate:
        return mean_square(samples, reference)


class Undeclared:
    """A metric of somebody else: which way it is better is not for us to assume."""

    direction = "higher"

    def __call__(self, samples: torch.Tensor, reference: torch.Tensor) -> float:
        return 1.0


class Stepped:
    """A grid with a count that nothing can change."""

    steps = 5

    def __call__(self, sde: sg.SDE) -> torch.Tensor:
        return sg.UniformTime(5)(sde)


class Unsampled(sg.Gaussian):
    """Fails the test when it is evaluated."""

    def predict(self, x: torch.Tensor, t: sg.Level, **condition: Any) -> sg.models.Prediction:
        raise AssertionError("work began")


UNSAMPLED = Unsampled(sg.VPSDE(), torch.zeros(2), torch.ones(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samplers": {}}, "at least one sampler"),
        ({"samplers": {"a": sg.DDIM()}}, "must be a Sampler"),
        ({"steps": []}, "at least one budget"),
        ({"steps": [0]}, "at least 1"),
        ({"steps": [2.5]}, "integer"),
        ({"metrics": []}, "metrics must list"),
        ({"metrics": [Titled("a"), Titled("a")]}, "two metrics are called a"),
        ({"metrics": [Titled("a", "sideways")]}, "direction of a must be one of"),
        ({"metrics": [lower(lambda a, b: "good")]}, "must give an Estimate"),
        ({"metrics": [lower(lambda a, b: torch.zeros(3))]}, "must give an Estimate"),
        ({"metrics": [sg.metrics.MMD(), lower(lambda a, b: a @ b)]}, "mat1"),
        ({"metrics": [lambda a, b: 1.0]}, "must declare `direction`"),
        ({"metrics": [Undeclared()]}, "the metric Undeclared must declare"),
        ({"metrics": [Titled("a", biased=1)]}, "must be True or False"),
        ({"samplers": {"a": sg.Sampler(sg.DDIM(), Stepped())}}, "cannot be changed"),
        ({"reference": REFERENCE * math.nan}, "finite"),
        ({"reference": torch.zeros(4, 2, dtype=torch.long)}, "floating"),
        ({"samples": 1}, "at least 2"),
        ({"seeds": ()}, "seeds must differ"),
        ({"seeds": (1, 1)}, "seeds must differ"),
        ({"seeds": (-1,)}, "at least 0"),
        ({"keep": "everything"}, "keep must be one of"),
        ({"data_range": (1.0, 0.0)}, "data_range"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"condition": {"label": 1}}, "takes no condition"),
        ({"condition": 3}, "condition must map names to values"),
        ({"condition": {3: 1}}, "the name of a condition must be a str"),
        ({"model": 3}, "model must be a score model, got int"),
        ({"model": {"a": torch.nn.Identity()}}, "the model a must be a score model"),
        ({"model": {}}, "model must name at least one model"),
        ({"model": ""}, "model must be a path, got an empty string"),
        ({"samplers": sg.Sampler(sg.DDIM(), sg.UniformTime(4))}, "samplers must be a Mapping"),
        ({"samplers": {1: sg.Sampler(sg.DDIM(), sg.UniformTime(4))}}, "the name of a sampler"),
        ({"steps": 8}, "steps must be a sequence of integers, got 8"),
        ({"metrics": Titled("a")}, "metrics must be a sequence of callables"),
        ({"seeds": 0}, "seeds must be a sequence of integers"),
        ({"baselines": [Uniform()]}, "baselines must be a Mapping"),
        ({"floor": REFERENCE[:, :1]}, r"the reference's shape, \(2,\), got \(1,\)"),
        ({"floor": REFERENCE[:1]}, "floor must hold at least 2 samples"),
        ({"event": (2, 0)}, r"event\[1\] must be at least 1"),
        ({"decode": "pixels"}, "decode must be a function"),
        ({"data_range": 255}, "data_range must be a sequence"),
        ({"device": "gpu"}, "device gpu cannot be used here"),
        ({"dtype": torch.long}, "dtype must be a real floating-point dtype"),
        ({"dtype": "float32"}, "dtype must be a real floating-point dtype"),
        ({"executor": ThreadPoolExecutor}, r"executor must have submit\(function"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"chunk": 2.5}, "chunk must be an integer"),
        ({"out": 3}, "out must be a path"),
        ({"pictures": 1}, "pictures must be True or False"),
        ({"progress": None}, "progress must be True or False"),
    ],
)
def test_bad_input_is_named_before_any_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        small(**{"model": UNSAMPLED, **change})


def test_a_population_is_not_cut() -> None:
    seen = sg.inverse.LinearMeasurement(torch.eye(2)[:1], torch.tensor([1.0]), 0.5)
    twisted = sg.inverse.TwistedSMC(seen)
    with pytest.raises(ValueError, match="smc acts on all of the 400 samples"):
        small(model=UNSAMPLED, samplers={"smc": sg.Sampler(twisted, sg.UniformTime(4))}, chunk=50)


def test_a_sampler_too_dear_for_every_budget_is_named() -> None:
    dear = {"rk4": sg.Sampler(sg.ProbabilityFlow(sg.solvers.RK4), sg.UniformTime(4, stop=0.5))}
    with pytest.raises(ValueError, match="rk4 needs more than 3"):
        small(samplers=dear, steps=[3], model=UNSAMPLED)


def test_pictures_without_matplotlib_are_refused_first(tmp_path, monkeypatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "matplotlib" else real(n, *a)
    )
    with pytest.raises(ImportError, match="pictures=False"):
        small(model=UNSAMPLED, out=tmp_path)
    assert small(out=tmp_path, pictures=False).rows
    assert (tmp_path / "table.md").exists()


def test_an_unwritable_folder_is_refused_before_any_work(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        small(out=tmp_path / "file" / "below", model=UNSAMPLED)


def test_a_metric_may_give_a_number() -> None:
    def number(samples: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return samples.square().mean()

    result = small(metrics=[lower(number)], seeds=range(3))
    assert all(math.isnan(r.stderr) for r in result.rows)
    (summary, _) = result.summaries
    assert summary.stderr == pytest.approx(
        torch.tensor([r.value for r in result.rows if r.budget == 4]).std().item() / math.sqrt(3)
    )


def test_metrics_that_need_all_labels_are_tried_on_all_samples() -> None:
    metric = sg.metrics.ClassAccuracy(tuple([0, 1] * 200), classifier=lambda x: x)
    assert len(small(metrics=[metric]).rows) == 2


# What comes back


def test_best_follows_the_direction() -> None:
    samplers = {
        "small": sg.Sampler(sg.DDIM(), sg.UniformTime(4)),
        "large": sg.Sampler(sg.Ancestral("large"), sg.UniformTime(4)),
    }
    result = small(samplers=samplers, metrics=[Titled("low"), Titled("high", "higher")])
    values = [r.value for r in result.rows]
    assert result.best("low", 8).value == min(values)
    assert result.best("high", 8).value == max(values)
    within = [r.value for r in result.rows if r.budget == 4]
    assert result.best("high", 4).value == max(within)
    with pytest.raises(ValueError, match="metric must be one of 'low', 'high'"):
        result.best("frechet", 8)
    with pytest.raises(ValueError, match="no row"):
        result.best("low", 3)


@dataclass(frozen=True)
class Depends:
    """A metric with a bias of 1 / n."""

    name: ClassVar[str] = "depends"
    direction: ClassVar[str] = "lower"
    biased: ClassVar[bool] = True

    def __call__(self, samples: torch.Tensor, reference: torch.Tensor) -> Estimate:
        return Estimate(1 / len(samples), 0.01)


def test_the_floor_stands_at_the_number_that_is_sampled() -> None:
    few = small(metrics=[Depends(), mean_square], samples=100, floor=REFERENCE[:80])
    assert "depends-100" not in few.manifest["floor"]
    assert few.manifest["floor"]["mean_square"]["count"] == 80
    enough = small(metrics=[Depends()], samples=100, floor=REFERENCE[:250])
    assert enough.manifest["floor"]["depends-100"] == {
        "value": pytest.approx(0.01),
        "stderr": pytest.approx(0.01 / math.sqrt(2)),
        "count": 100,
    }


def test_files_say_what_the_rows_say(tmp_path) -> None:
    result = small(out=tmp_path, floor=REFERENCE)
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["value"]) for line in lines] == [r.value for r in result.rows]
    body = json.loads((tmp_path / "results.json").read_text())
    assert body["manifest"]["models"]["model"]["fingerprint"] == sg.training.fingerprint(MODEL)
    assert body["manifest"]["grids"]["model|ddim|4"] == pytest.approx(
        sg.UniformTime(4)(MODEL.sde).tolist()
    )
    assert body["manifest"]["versions"]["torch"]
    assert "| ddim |" in (tmp_path / "table.md").read_text()
    for picture in ("quality.png", "samples.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_the_exact_error_stands_beside_the_measured_one(tmp_path) -> None:
    result = small(out=tmp_path, pictures=False)
    spectrum = torch.linalg.eigvalsh(torch.cov(REFERENCE.double().T))
    law = sg.output_law(sg.Sampler(sg.DDIM(), sg.UniformTime(4)), MODEL.sde, spectrum)
    assert result.manifest["exact"]["model|ddim|4"] == pytest.approx(law.w2)


def test_images_with_eight_channels_are_pictured(tmp_path) -> None:
    model = sg.Gaussian(sg.VPSDE(), torch.zeros(8, 4, 4), 1.0)
    reference = model.sample(30, generator=0).float()
    small(model=model, reference=reference, out=tmp_path)
    assert (tmp_path / "samples.png").exists()


def test_a_failed_picture_loses_no_table(tmp_path, monkeypatch) -> None:
    def fails(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("no such font")

    monkeypatch.setattr("scoregen.comparison.study.plot_quality", fails)
    with pytest.warns(UserWarning, match=r"quality\.png could not be drawn .*no such font"):
        result = small(out=tmp_path)
    assert len(result.rows) == 2
    assert (tmp_path / "table.md").exists()
    assert (tmp_path / "samples.png").exists()


def test_values_that_are_not_finite_survive_json() -> None:
    (row, *_) = small().rows
    from dataclasses import replace

    row = replace(row, value=math.inf, stderr=math.nan, seconds=math.nan)
    again = as_row(json.loads(json.dumps(plain(row), allow_nan=False)))
    assert again.value == math.inf
    assert math.isnan(again.stderr)
    assert (again.cell, again.steps) == (row.cell, row.steps)
