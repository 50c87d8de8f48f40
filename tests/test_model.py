"""Score models: the checked entry, conditions, counting, modes, dtypes, energy differences."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import F64, Fixed, Spy, gaussian, mixture, normal, tensor
from torch import nn

from scoregen import (
    DDIM,
    EDM,
    EDMSDE,
    MLP,
    VPSDE,
    DiscreteVPSDE,
    Empirical,
    Eps,
    Index,
    KarrasHeun,
    Level,
    ProbabilityFlow,
    RectifiedSDE,
    Sampler,
    ScoreModel,
    ScoreNetwork,
    UniformTime,
    V,
    Velocity,
)
from scoregen.models import Counted, Given, Prediction
from scoregen.models.base import evaluating
from scoregen.solvers import HEUN


class Net(nn.Module):
    """Returns what it is made to, and keeps its inputs."""

    def __init__(self, answer: Any = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.answer = answer or (lambda x, clock, **condition: x * self.weight)
        self.seen: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]] = []

    def forward(self, x: torch.Tensor, clock: torch.Tensor, **condition: Any) -> torch.Tensor:
        self.seen.append((x, clock, condition))
        return self.answer(x, clock, **condition)


class Branches(ScoreModel):
    """Two evaluations for one, as guidance makes."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model, self.sde = model, model.sde

    def predict(self, x: torch.Tensor, t: Level, **condition: Any) -> Prediction:
        a, b = self.model.predict(x, t), self.model.predict(x, t)
        return Prediction(self.sde, t, x, x0=2 * a.x0 - b.x0)


def labelled() -> ScoreNetwork:
    with torch.random.fork_rng():
        return ScoreNetwork(MLP(event=(2,), classes=3), VPSDE(), Eps())


def test_the_entry_accepts_a_level_a_time_or_one_time_per_sample() -> None:
    model = mixture(VPSDE())
    x = normal(3, 2)
    want = model(x, 0.4).x0
    torch.testing.assert_close(model(x, model.sde.level(0.4)).x0, want)
    for t in (torch.tensor(0.4), torch.full((1,), 0.4), torch.full((3,), 0.4)):
        torch.testing.assert_close(model(x, t.double()).x0, want)
    torch.testing.assert_close(model(x, torch.full((3, 1), 0.4, dtype=F64)).x0, want)
    torch.testing.assert_close(model.score(x, 0.4), model(x, 0.4).score)
    mixed = model(x, tensor(0.2, 0.4, 0.6)).x0
    torch.testing.assert_close(mixed[1:2], model(x[1:2], 0.4).x0)
    torch.testing.assert_close(mixed[2:], model(x[2:], 0.6).x0)


ENTRIES = [
    (lambda m: m(torch.zeros(2, 2, dtype=torch.int64), 0.5), TypeError, "torch.int64"),
    (lambda m: m(torch.zeros(2, 2, dtype=torch.complex64), 0.5), TypeError, "complex64"),
    (lambda m: m(torch.eye(2).to_sparse(), 0.5), TypeError, "dense"),
    (lambda m: m([[0.0, 0.0]], 0.5), TypeError, "torch.Tensor"),
    (lambda m: m(torch.tensor(0.0), 0.5), ValueError, "batch axis"),
    (lambda m: m(torch.zeros(2, 2), 1.5), ValueError, r"\[0, 1\]"),
    (lambda m: m(torch.zeros(2, 2), -0.1), ValueError, r"\[0, 1\]"),
    (lambda m: m(torch.zeros(2, 2), float("nan")), ValueError, "nan"),
    (lambda m: m(torch.zeros(2, 2), tensor(0.5, 1.2)), ValueError, "1.2"),
    (lambda m: m(torch.zeros(3, 2), tensor(0.5, 0.6)), ValueError, "one per sample"),
    (lambda m: m(torch.zeros(2, 2), 0.5, label=1), TypeError, "no condition, got label"),
    (lambda m: m(torch.zeros(2, 3), 0.5), ValueError, r"event \(2,\), got \(2, 3\)"),
    (lambda m: m.given(label=1), TypeError, "no condition, got label"),
]


@pytest.mark.parametrize(("act", "error", "word"), ENTRIES)
def test_the_entry_names_what_must_hold(act, error, word: str) -> None:
    with pytest.raises(error, match=word):
        act(mixture(VPSDE()))


def test_a_network_reads_the_scaled_state_and_the_clock() -> None:
    net = Net()
    model = ScoreNetwork(net, EDMSDE(), EDM(0.5), lambda sde, t, x: x.new_full((len(x),), 7.0))
    x = normal(3, 2, dtype=torch.float32)
    model(x, 2.0)
    inner, clock, condition = net.seen[0]
    torch.testing.assert_close(inner, x / (4.25**0.5))
    assert clock.tolist() == [7.0] * 3
    assert condition == {}


def test_a_float64_state_passes_through_a_float32_network() -> None:
    net = Net()
    model = ScoreNetwork(net, VPSDE(), V())
    x = normal(3, 2)
    p = model(x, 0.5)
    assert net.seen[0][0].dtype == torch.float32
    assert net.seen[0][1].dtype == torch.float32
    assert p.x0.dtype == F64
    level = VPSDE().level(0.5)
    v = x.float().double()
    torch.testing.assert_close(p.x0, level.alpha * x - level.sigma * v)
    half = ScoreNetwork(Net(dtype=torch.float16), DiscreteVPSDE.linear(10), Eps(), Index())
    half(x, 0.5)
    assert half.net.seen[0][0].dtype == torch.float16
    assert half.net.seen[0][1].dtype == torch.int64


@pytest.mark.parametrize("shape", [(1, 2), (3,), (3, 1), (3, 2, 1), (2, 3)])
def test_a_network_that_returns_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    model = ScoreNetwork(Net(lambda x, clock: torch.zeros(shape)), VPSDE(), Eps())
    with pytest.raises(ValueError, match="network's output must have the shape"):
        model(torch.zeros(3, 2), 0.5)


def test_conditions_are_bound_once_and_reach_the_network() -> None:
    model = labelled()
    label, x = torch.tensor([0, 2, 1]), normal(3, 2, dtype=torch.float32)
    bound = model.given(label=label)
    assert isinstance(bound, Given)
    assert bound.sde is model.sde
    assert torch.equal(bound(x, 0.5).x0, model(x, 0.5, label=label).x0)
    other = model(x, 0.5, label=torch.tensor([1, 1, 1])).x0
    assert not torch.equal(bound(x, 0.5).x0[:2], other[:2])
    assert torch.equal(bound(x, 0.5).x0[2:], other[2:])
    with pytest.raises(TypeError, match="label is bound already"):
        bound.given(label=label)
    with pytest.raises(TypeError):
        model.given(colour=label)
    assert model.given() is model


def test_energy_differences_are_line_integrals_of_the_score() -> None:
    exact = mixture(VPSDE())
    x, y = normal(5, 2), normal(5, 2, seed=1)
    for t in (0.2, 0.7):
        want = exact.log_prob(x, t) - exact.log_prob(y, t)
        torch.testing.assert_close(exact.energy_difference(x, y, t), want)
        plain = Spy(exact).energy_difference(x, y, t, nodes=24)
        torch.testing.assert_close(plain, want, rtol=1e-5, atol=1e-5)
    # a linear score needs one node
    line = Spy(gaussian(VPSDE(), 0.7, 0.3, (2,)))
    want = line.model.energy_difference(x, y, 0.5)
    torch.testing.assert_close(line.energy_difference(x, y, 0.5, nodes=1), want)
    assert line.times == [0.5]


def test_energy_differences_of_an_empty_batch() -> None:
    x = torch.zeros(0, 2)
    assert Spy(gaussian(VPSDE(), event=(2,))).energy_difference(x, x, 0.5).shape == (0,)


def test_energy_differences_know_the_bound_condition() -> None:
    model = labelled()
    x, y = normal(2, 2, dtype=torch.float32), normal(2, 2, seed=1, dtype=torch.float32)
    label = torch.tensor([0, 1])
    bound = model.given(label=label).energy_difference(x, y, 0.5)
    torch.testing.assert_close(bound, model.energy_difference(x, y, 0.5, label=label))
    other = model.energy_difference(x, y, 0.5, label=torch.tensor([2, 2]))
    assert not torch.allclose(bound, other)


def test_rows_are_counted_at_the_leaves() -> None:
    inner = gaussian(VPSDE(), event=(2,))
    for model, rows in (
        (inner, 3),
        (Spy(inner), 3),
        (Branches(inner), 6),
        (Branches(Branches(inner)), 12),
    ):
        with Counted(model) as count:
            model(torch.zeros(3, 2), 0.5)
        assert count.rows == rows
        model(torch.zeros(3, 2), 0.5)
        assert count.rows == rows, "counting must end with the block"
    bound = labelled().given(label=torch.tensor([0, 1]))
    with Counted(bound) as count:
        bound(torch.zeros(2, 2), 0.5)
    assert count.rows == 2


def test_counting_nests_and_survives_errors() -> None:
    model, x = gaussian(VPSDE(), event=(2,)), torch.zeros(3, 2)
    with Counted(model) as outer:
        model(x, 0.5)
        with Counted(Spy(model)) as inner:
            model(x, 0.5)
        model(x, 0.5)
    assert (outer.rows, inner.rows) == (9, 3)
    with pytest.raises(ZeroDivisionError), Counted(model) as failed:
        raise ZeroDivisionError
    model(x, 0.5)
    assert failed.rows == 0
    assert "predict" not in model.__dict__


@pytest.mark.parametrize(
    ("solver", "sde", "evaluations"),
    [
        (DDIM(), VPSDE(), 10),
        (ProbabilityFlow(HEUN), VPSDE(), 19),
        (ProbabilityFlow(HEUN), RectifiedSDE(), 20),
        (KarrasHeun(), VPSDE(), 19),
        (KarrasHeun(churn=0.1), EDMSDE(), 19),
    ],
)
def test_evaluations_of_a_run(solver, sde, evaluations: int) -> None:
    model = gaussian(sde, event=(2,))
    with Counted(model) as count:
        Sampler(solver, UniformTime(10)).sample(model, (4, 2), seed=0)
    assert count.rows / 4 == evaluations


def test_evaluation_mode_comes_and_goes_module_by_module() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()), nn.ReLU())
    net[1].eval()
    before = [m.training for m in net.modules()]
    with evaluating(net):
        assert not any(m.training for m in net.modules())
    assert [m.training for m in net.modules()] == before
    with pytest.raises(ZeroDivisionError), evaluating(net):
        raise ZeroDivisionError
    assert [m.training for m in net.modules()] == before


def test_dropout_is_off_while_sampling() -> None:
    model = ScoreNetwork(
        Net(lambda x, clock: nn.functional.dropout(x, 0.5, model.training)), VPSDE(), Eps()
    )
    assert model.training
    sampler = Sampler(DDIM(), UniformTime(4))
    first = sampler.sample(model, (3, 2), seed=0)
    assert torch.equal(first, sampler.sample(model, (3, 2), seed=0))
    assert model.training


def test_two_threads_sample_one_model_in_training_mode() -> None:
    """Each sees no dropout, whichever ends first, and training mode is back at the end."""
    model = ScoreNetwork(
        Net(lambda x, clock: nn.functional.dropout(x, 0.5, model.training)), VPSDE(), Eps()
    )
    sampler = Sampler(DDIM(), UniformTime(40))
    want = sampler.sample(model, (3, 2), seed=0)
    for _ in range(10):
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(sampler.sample, model, (3, 2), seed=0) for _ in range(4)]
        assert all(torch.equal(run.result(), want) for run in runs)
        assert model.training
    outer, inner = evaluating(model), evaluating(model.net)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)  # the blocks overlap: the inner one still holds its modules
    assert model.training
    assert not model.net.training
    inner.__exit__(None, None, None)
    assert model.net.training


def test_evaluations_of_another_thread_are_not_counted() -> None:
    model, x = gaussian(VPSDE(), event=(2,)), torch.zeros(3, 2)
    with Counted(model) as count, ThreadPoolExecutor(1) as pool:

        def other() -> int:
            with Counted(model) as own:
                model(x, 0.5)
            return own.rows

        model(x, 0.5)
        assert pool.submit(other).result() == 3
        assert pool.submit(model, x, 0.5).result().x0.shape == (3, 2)
    assert count.rows == 3


def test_where_a_model_lives() -> None:
    assert labelled().placement() == (torch.device("cpu"), torch.float32)
    assert labelled().double().placement()[1] == F64
    assert Fixed(VPSDE(), lambda x, t: x).placement() == (torch.device("cpu"), torch.float32)


def test_models_can_be_copied() -> None:
    for model in (labelled(), mixture(VPSDE()), Empirical(VPSDE(), normal(4, 2))):
        twin = copy.deepcopy(model)
        x = normal(2, 2, dtype=torch.float32)
        assert torch.equal(twin(x, 0.5).x0, model(x, 0.5).x0)


def test_predictions_pass_through_vmap_and_jvp() -> None:
    model = mixture(VPSDE())
    level = VPSDE().level(0.5)
    x, v = normal(4, 2), normal(4, 2, seed=1)

    def score(y: torch.Tensor) -> torch.Tensor:
        return model.predict(y, level).score

    _, tangent = torch.func.jvp(score, (x,), (v,))
    h = 1e-5
    torch.testing.assert_close(
        tangent, (score(x + h * v) - score(x - h * v)) / (2 * h), rtol=1e-5, atol=1e-7
    )
    single = torch.func.vmap(lambda y: score(y[None])[0])(x)
    torch.testing.assert_close(single, score(x))


def test_a_velocity_network_on_straight_paths_is_read_at_both_ends() -> None:
    model = ScoreNetwork(
        Net(), RectifiedSDE(), Velocity(), lambda sde, t, x: x.new_full((len(x),), t.t)
    )
    x = normal(2, 2)
    for t in (0.0, 1.0):
        torch.testing.assert_close(model(x, t).velocity, x.float().double())
