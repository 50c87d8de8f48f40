"""Recorded runs: equal to those made move by move, compiled or not, and refused where they must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import SOLVERS, gaussian, grid_for, name, suits
from torch import Tensor, nn

import scoregen as sg
from scoregen import (
    DDIM,
    MLP,
    VPSDE,
    Ancestral,
    DiscreteVPSDE,
    DivergenceError,
    DPMSolverPP,
    Eps,
    Sampler,
    ScoreNetwork,
    Solver,
    UniformLam,
    UniformTime,
    V,
)
from scoregen.guidance import ClassifierFree
from scoregen.models import Conditions, Prediction, Shared
from scoregen.sampling import Picard


class Small(nn.Module):
    """A nonlinear network of few operations, whose output depends on the clock."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inner = nn.Linear(3, 2)

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        return torch.tanh(self.inner(torch.cat([x, clock[:, None] / 10], 1)))


PLACES = [VPSDE(), DiscreteVPSDE.linear(1000)]
# they read the state to choose what to do next
READING = {"AdaptiveDPM", "AdaptiveHeun", "AdaptiveSDE", "Dopri5", "NUTS"}
RECORDED = [s for s in SOLVERS if suits(s, VPSDE()) and type(s).__name__ not in READING]
REFUSED = [s for s in SOLVERS if type(s).__name__ in READING]


def network(sde: sg.SDE) -> ScoreNetwork:
    return ScoreNetwork(Small(), sde, V())


@pytest.mark.parametrize("sde", PLACES, ids=name)
@pytest.mark.parametrize("solver", RECORDED, ids=name)
def test_a_recorded_run_is_the_run(solver: Solver, sde: sg.SDE) -> None:
    if not suits(solver, sde):
        pytest.skip("needs noise to take away")
    sampler, model = Sampler(solver, grid_for(solver, sde, 4)), network(sde)
    run = sampler.compiled(model, (3, 2))
    for seed in (0, 7):
        assert torch.equal(run(seed=seed), sampler.sample(model, (3, 2), seed=seed))


def lengthy(solver: Solver) -> Any:
    """Metropolis chains integrate a score along a line: hundreds of operations a move."""
    marks = [pytest.mark.slow] if type(solver).__name__ in {"MALA", "HMC", "DualAveraging"} else []
    return pytest.param(solver, marks=marks)


# What torch.compile is given is computed with here, uncompiled; a few are compiled below.
@pytest.mark.parametrize("solver", [lengthy(s) for s in RECORDED], ids=name)
def test_the_whole_run_is_one_graph(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph that is handed to torch.compile computes the run from its inputs alone."""
    graphs: list[Any] = []

    def kept(graph: Any, **options: Any) -> Any:
        assert options["fullgraph"] is True
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", kept)
    sampler, model = Sampler(solver, grid_for(solver, VPSDE(), 3)), network(VPSDE())
    run = sampler.compiled(model, (2, 2), backend="inductor")
    assert torch.equal(run(seed=5), sampler.sample(model, (2, 2), seed=5))
    with torch.no_grad():
        model.net.inner.weight.mul_(0.5)  # weights are read, not copied
    assert torch.equal(run(seed=5), sampler.sample(model, (2, 2), seed=5))
    assert len(graphs) == 1


@pytest.mark.parametrize("solver", [DPMSolverPP(), Ancestral()], ids=name)
def test_torch_compile_takes_the_whole_run(solver: Solver) -> None:
    sampler, model = Sampler(solver, UniformLam(3)), network(VPSDE())
    run = sampler.compiled(model, (2, 2), backend="eager")
    assert torch.equal(run(seed=1), sampler.sample(model, (2, 2), seed=1))
    again = sampler.with_steps(2).compiled(model, (2, 2), backend="eager")
    assert torch.equal(again(), sampler.with_steps(2).sample(model, (2, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("solver", RECORDED, ids=name)
def test_inductor_agrees_to_rounding(solver: Solver) -> None:
    """Fused kernels round differently: 256 units in the last place of the greatest value.

    Weights of alternating sign enlarge a rounding: 123 units for DEIS(3), 160 for PNDM were seen.
    """
    torch._dynamo.reset()
    sampler, model = Sampler(solver, grid_for(solver, VPSDE(), 3)), network(VPSDE())
    wanted = sampler.sample(model, (4, 2), seed=3)
    got = sampler.compiled(model, (4, 2), backend="inductor")(seed=3)
    torch.testing.assert_close(got, wanted, rtol=0, atol=256 * 2.0**-23 * float(wanted.abs().max()))


@pytest.mark.parametrize("solver", REFUSED, ids=name)
def test_what_chooses_by_the_state_is_refused(solver: Solver) -> None:
    sampler = Sampler(solver, grid_for(solver, VPSDE(), 3))
    with pytest.raises(ValueError, match=f"{type(solver).__name__} or its model reads a value"):
        sampler.compiled(gaussian(VPSDE(), event=(2,)), (2, 2))


def test_parallel_moves_are_refused() -> None:
    with pytest.raises(ValueError, match="operations are not known beforehand"):
        Picard(DDIM(), UniformTime(4)).compiled(network(VPSDE()), (2, 2))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0].sum(),
        lambda x: (x > 0).nonzero().sum(),
        lambda x: torch.equal(x, x),
    ],
)
def test_a_model_that_reads_the_state_is_refused(read: Any) -> None:
    class Reading(sg.ScoreModel):
        sde = VPSDE()

        def predict(self, x: Tensor, t: sg.Level, **condition: Any) -> Prediction:
            return Prediction(self.sde, t, x, x0=x * 0.5 + 0 * read(x))

    with pytest.raises(ValueError, match="reads a value of the state"):
        Sampler(DDIM(), UniformTime(3)).compiled(Reading(), (2, 2))


def test_a_model_of_ones_own_is_recorded() -> None:
    class Own(sg.ScoreModel):
        sde = sg.EDMSDE()

        def predict(self, x: Tensor, t: sg.Level, **condition: Any) -> Prediction:
            return Prediction(self.sde, t, x, x0=x / (1 + t.sigma**2))

    sampler = Sampler(sg.KarrasHeun(churn=0.1), sg.Karras(5))
    run = sampler.compiled(Own(), (3,))  # events of no axes
    assert torch.equal(run(seed=2), sampler.sample(Own(), (3,), seed=2))


def labelled() -> ScoreNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ScoreNetwork(MLP(event=(2,), classes=3), VPSDE(), Eps())


@pytest.mark.parametrize("backend", [None, "eager"])
def test_conditions_are_inputs(backend: str | None) -> None:
    model = ClassifierFree(labelled(), 2.0)
    sampler = Sampler(DDIM(), UniformTime(2))
    first, second = {"label": torch.tensor([0, 2])}, {"label": torch.tensor([1, 1])}
    run = sampler.compiled(model, (2, 2), condition=first, backend=backend)
    assert torch.equal(run(seed=1), sampler.sample(model, (2, 2), seed=1, condition=first))
    wanted = sampler.sample(model, (2, 2), seed=1, condition=second)
    assert torch.equal(run(seed=1, condition=second), wanted)
    assert torch.equal(run(seed=1, condition={"label": 1}), wanted)
    assert torch.equal(run(seed=1), sampler.sample(model, (2, 2), seed=1, condition=first))


def test_conditions_of_any_structure() -> None:
    def net(x: Tensor, clock: Tensor, *, a: Any, b: Any) -> Tensor:
        return torch.tanh(x + a["deep"][0] + b.sum())

    model = ScoreNetwork(net, VPSDE(), V(), conditions=Conditions({"a": 0.0, "b": 0.0}))

    def condition(value: float) -> dict[str, Any]:
        part = {"deep": [torch.full((2, 2), value)], "text": "any"}
        return {"a": part, "b": Shared(torch.full((5,), value))}

    sampler = Sampler(DDIM(), UniformTime(3))
    run = sampler.compiled(model, (2, 2), condition=condition(1.0), backend="eager")
    for value in (1.0, 0.25):
        wanted = sampler.sample(model, (2, 2), seed=1, condition=condition(value))
        assert torch.equal(run(seed=1, condition=condition(value)), wanted)
    other = condition(1.0) | {"b": Shared(torch.ones(4))}
    with pytest.raises(ValueError, match=r"float32\[5\].*float32\[4\]"):
        run(condition=other)
    other = condition(1.0)
    other["a"]["text"] = "other"
    with pytest.raises(ValueError, match="keeps the structure"):
        run(condition=other)


def test_labels_out_of_range_are_refused_at_every_call() -> None:
    condition = {"label": torch.tensor([0, 1])}
    run = Sampler(DDIM(), UniformTime(2)).compiled(labelled(), (2, 2), condition=condition)
    with pytest.raises(ValueError, match="labels must lie in"):
        run(condition={"label": torch.tensor([0, 9])})


def test_seeds_and_ranks_are_those_of_sample() -> None:
    sampler, model = Sampler(Ancestral(), UniformTime(4)), network(VPSDE())
    whole = sampler.sample(model, (6, 2), seed=3)
    run = sampler.compiled(model, (2, 2))
    parts = [run(seed=3, first=first) for first in (0, 2, 4)]
    # a linear layer may round differently with the size of its batch
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert torch.equal(run(seed=generators[0]), sampler.sample(model, (2, 2), seed=generators[1]))
    with pytest.raises(ValueError, match="first needs an integer seed"):
        run(seed=generators[0], first=2)


def test_what_is_not_finite_is_named_as_by_sample() -> None:
    class Explosive(sg.ScoreModel):
        sde = VPSDE()

        def predict(self, x: Tensor, t: sg.Level, **condition: Any) -> Prediction:
            return Prediction(self.sde, t, x, x0=x / 0.0 if 0.2 < t.t < 0.4 else x)

    sampler, model = Sampler(Ancestral(), UniformTime(4)), Explosive()
    run = sampler.compiled(model, (2, 2))
    for seed in (1, torch.Generator().manual_seed(0)):
        with pytest.raises(DivergenceError) as caught:
            run(seed=seed)
        assert caught.value.step == 3
        assert caught.value.rows == [0, 1]


def test_evaluation_mode_and_gradients_are_those_of_sample() -> None:
    net = nn.Sequential(nn.Dropout(0.5), Small().inner)
    model = ScoreNetwork(lambda x, clock: net(torch.cat([x, clock[:, None]], 1)), VPSDE(), Eps())
    model.held = net  # a function hides its modules
    sampler = Sampler(DDIM(), UniformTime(3))
    run = sampler.compiled(model, (2, 2))
    assert net.training
    out = run(seed=1)
    assert net.training
    assert not out.requires_grad
    assert torch.equal(out, sampler.sample(model, (2, 2), seed=1))


def test_arguments_are_checked_before_work() -> None:
    sampler, model = Sampler(DDIM(), UniformTime(3)), network(VPSDE())
    with pytest.raises(TypeError, match="backend must be a str"):
        sampler.compiled(model, (2, 2), backend=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shape must be"):
        sampler.compiled(model, ())
    with pytest.raises(TypeError, match="dtype"):
        sampler.compiled(model, (2, 2), dtype=torch.int64)
    with pytest.raises(TypeError, match="takes no condition"):
        sampler.compiled(gaussian(VPSDE(), event=(2,)), (2, 2), condition={"label": 1})
    with pytest.raises(TypeError, match="must be a score model"):
        sampler.compiled(nn.ReLU(), (2, 2))  # type: ignore[arg-type]


@pytest.mark.cuda
@pytest.mark.parametrize("solver", RECORDED, ids=name)
def test_a_cuda_graph_is_the_run(solver: Solver) -> None:
    """The same kernels on the same numbers; 16 units in the last place for other choices."""
    sampler, model = Sampler(solver, grid_for(solver, VPSDE(), 4)), network(VPSDE()).cuda()
    run = sampler.compiled(model, (8, 2))
    assert "CUDA graph" in repr(run)
    for seed in (0, 7):
        wanted = sampler.sample(model, (8, 2), seed=seed)
        bound = 16 * 2.0**-23 * float(wanted.abs().max())
        torch.testing.assert_close(run(seed=seed), wanted, rtol=0, atol=bound)


@pytest.mark.cuda
def test_a_cuda_graph_reads_its_condition_and_weights() -> None:
    model = ClassifierFree(labelled(), 2.0).cuda()
    sampler = Sampler(Ancestral(), UniformTime(4))
    run = sampler.compiled(model, (2, 2), condition={"label": 0})
    for label in (0, 2):
        wanted = sampler.sample(model, (2, 2), seed=1, condition={"label": label})
        torch.testing.assert_close(run(seed=1, condition={"label": label}), wanted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    wanted = sampler.sample(model, (2, 2), seed=1, condition={"label": 0})
    torch.testing.assert_close(run(seed=1), wanted)
