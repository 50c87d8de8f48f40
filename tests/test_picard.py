"""Parallel-in-time sampling gives what the sequential sampler gives."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import F64, Fixed, gaussian, mixture, normal

from scoregen import (
    DDIM,
    EDMSDE,
    MLP,
    VPSDE,
    Ancestral,
    DPMSolverPP,
    Eps,
    EulerMaruyama,
    Karras,
    ProbabilityFlow,
    RectifiedSDE,
    Sampler,
    ScoreNetwork,
    UniformTime,
)
from scoregen._checks import DivergenceError
from scoregen.models import Counted
from scoregen.noise import SampleNoise
from scoregen.sampling import Picard, PicardState
from scoregen.solvers import EULER, HEUN, SEEDS2, ExponentialEuler, ReverseDiffusion, SDEDPMSolverPP

SOLVERS = [
    DDIM(),
    DDIM(1.0),
    Ancestral("large"),
    ReverseDiffusion(),
    EulerMaruyama(),
    ExponentialEuler(),
    ProbabilityFlow(EULER),
]


SEED = 2  # with some draws a sample passes between two modes, where small changes grow


def last(picard: Picard, model: Any, x: torch.Tensor, seed: int = 1) -> Any:
    *_, step = picard.iterate(model, x, noise=SampleNoise(seed))
    return step


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedSDE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_equal_to_the_sequential_run_within_the_tolerance(solver: Any, sde: Any) -> None:
    start = 0.95 * sde.t_max
    grid = UniformTime(40, start=start)
    model, x = mixture(sde), normal(8, 2) * sde.prior_std(start)
    want = Sampler(solver, grid).run(model, x, noise=SampleNoise(SEED))
    for window, tolerance in ((16, 1e-2), (40, 1e-3)):
        step = last(Picard(solver, grid, window, tolerance), model, x, SEED)
        assert float((step.x - want).square().mean(1).max().sqrt()) < 2 * tolerance
        assert step.index == 40
    exact = last(Picard(solver, grid, window=16, tolerance=0.0), model, x, SEED)
    torch.testing.assert_close(exact.x, want, rtol=1e-9, atol=1e-9)


def test_fewer_sweeps_than_moves_and_an_honest_count() -> None:
    grid, model = UniformTime(100), mixture(VPSDE())
    with Counted(model) as count:
        step = last(Picard(DDIM(), grid, window=50), model, normal(6, 2))
    assert step.state.sweeps < 15
    assert count.rows == 6 * step.state.nfe
    assert step.state.nfe > 100


def test_every_point_comes_once_and_in_order() -> None:
    grid, model, x = Karras(30), gaussian(EDMSDE()), 80 * normal(3, 1)
    parallel = list(Picard(DDIM(1.0), grid, 8, 1e-6).iterate(model, x, noise=SampleNoise(0)))
    plain = list(Sampler(DDIM(1.0), grid).iterate(model, x, noise=SampleNoise(0)))
    assert [s.index for s in parallel] == list(range(31))
    for a, b in zip(parallel, plain, strict=True):
        assert a.t == b.t
        torch.testing.assert_close(a.x, b.x, rtol=1e-4, atol=1e-4)
    assert parallel[0].state == PicardState(0, 0)
    assert all(a.state.sweeps <= b.state.sweeps for a, b in pairwise(parallel))


def test_the_same_arguments_as_a_sampler() -> None:
    model = mixture(VPSDE())
    picard, plain = (kind(DDIM(1.0), UniformTime(30)) for kind in (Picard, Sampler))
    a = picard.sample(model, (6, 2), seed=3, chunk=4)
    b = plain.sample(model, (6, 2), seed=3, chunk=4)
    torch.testing.assert_close(a, b, rtol=0, atol=3e-3)
    assert picard.with_steps(12).grid == UniformTime(12)
    assert picard.with_steps(12).window == picard.window


def test_a_window_of_one_is_the_sequential_run() -> None:
    model, x, grid = mixture(VPSDE()), normal(4, 2), UniformTime(12)
    step = last(Picard(Ancestral(), grid, window=1), model, x)
    want = Sampler(Ancestral(), grid).run(model, x, noise=SampleNoise(1))
    torch.testing.assert_close(step.x, want, rtol=1e-12, atol=1e-12)
    assert step.state == PicardState(12, 12)


def test_bound_conditions_grow_with_the_window() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(event=(2,), classes=3).double()
    model, label = ScoreNetwork(net, VPSDE(), Eps()), torch.tensor([0, 1, 2, 0, 1])
    grid = UniformTime(20)
    both = [
        kind(DDIM(), grid).sample(model, (5, 2), seed=0, condition={"label": label}, dtype=F64)
        for kind in (Sampler, Picard)
    ]
    scale = float(both[0].abs().max())
    torch.testing.assert_close(both[1], both[0], rtol=0, atol=5e-3 * max(scale, 1.0))


@pytest.mark.parametrize(
    "solver", [DPMSolverPP(), SDEDPMSolverPP(2), SEEDS2(), ProbabilityFlow(HEUN)], ids=str
)
def test_unsuitable_solvers_are_refused(solver: Any) -> None:
    with pytest.raises(ValueError, match="cannot be made in parallel"):
        Picard(solver, Karras(10)).sample(gaussian(EDMSDE()), (2, 1), seed=0)


def test_too_few_sweeps_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="max_sweeps = 2"):
        Picard(DDIM(), UniformTime(60), max_sweeps=2).sample(mixture(VPSDE()), (2, 2), seed=0)
    with pytest.raises(ValueError, match="window"):
        Picard(DDIM(), UniformTime(60), window=0)
    with pytest.raises(ValueError, match="tolerance"):
        Picard(DDIM(), UniformTime(60), tolerance=-1.0)


def test_a_broken_model_ends_with_the_move_named() -> None:
    def x0(x: torch.Tensor, t: Any) -> torch.Tensor:
        return torch.where(torch.as_tensor(t.sigma) < 1, x * torch.nan, 0 * x)

    grid = Karras(20)
    with pytest.raises(DivergenceError) as error:
        Picard(DDIM(), grid).run(Fixed(EDMSDE(), x0), 80 * normal(2, 1), noise=SampleNoise(0))
    times = grid(EDMSDE())
    assert error.value.step == int((times >= 1).sum()) + 1
    assert error.value.rows == [0, 1]


@pytest.mark.parametrize("shape", [(0, 2), (1,), (2, 1, 4, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    event = shape[1:]
    model = gaussian(VPSDE(), event=event)
    assert Picard(DDIM(), UniformTime(8)).sample(model, shape, seed=0).shape == shape
