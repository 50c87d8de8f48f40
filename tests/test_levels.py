"""The levels of a grid: remembered where they cannot change, found again where they may."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import factorial

import pytest
import torch
from torch import Tensor

from scoregen import DDIM, EDMSDE, SDE, VPSDE, Sampler, Times, UniformTime
from scoregen.sampling import levels as module
from scoregen.solvers.exponential import moment_weights, phi


def times(sampler: Sampler, sde: SDE) -> list[float]:
    return [level.t for level in sampler.levels(sde)]


def test_a_grid_that_is_a_value_is_evaluated_once() -> None:
    calls = []

    @dataclass(frozen=True)
    class Counting:
        steps: int

        def __call__(self, sde: SDE) -> Tensor:
            calls.append(self)
            return torch.linspace(1.0, 0.0, self.steps + 1, dtype=torch.float64)

    for _ in range(3):
        assert times(Sampler(DDIM(), Counting(2)), VPSDE()) == [1.0, 0.5, 0.0]
    assert len(calls) == 1
    assert times(Sampler(DDIM(), Counting(4)), VPSDE())[1] == 0.75
    assert times(Sampler(DDIM(), Counting(2)), VPSDE(t_max=2.0)) == [1.0, 0.5, 0.0]
    assert len(calls) == 3


def test_what_may_change_is_evaluated_every_time() -> None:
    stop = [0.5]

    def function(sde: SDE) -> Tensor:
        return torch.tensor([1.0, stop[0]], dtype=torch.float64)

    @dataclass
    class Loose:
        stop: float

        def __call__(self, sde: SDE) -> Tensor:
            return torch.tensor([1.0, self.stop], dtype=torch.float64)

    @dataclass(frozen=True)
    class Listed:
        times: list[float] = field(default_factory=lambda: [1.0, 0.5])

        def __call__(self, sde: SDE) -> Tensor:
            return torch.tensor(self.times, dtype=torch.float64)

    loose, listed = Loose(0.5), Listed()
    samplers = [Sampler(DDIM(), grid) for grid in (function, loose, listed)]
    assert [times(s, VPSDE())[1] for s in samplers] == [0.5, 0.5, 0.5]
    stop[0], loose.stop, listed.times[1] = 0.25, 0.125, 0.0625
    assert [times(s, VPSDE())[1] for s in samplers] == [0.25, 0.125, 0.0625]


def test_a_field_that_equality_leaves_out_counts() -> None:
    @dataclass(frozen=True)
    class Half:
        steps: int
        stop: float = field(compare=False)

        def __call__(self, sde: SDE) -> Tensor:
            return torch.tensor([1.0, self.stop], dtype=torch.float64)

    assert Half(1, 0.5) == Half(1, 0.25)
    assert times(Sampler(DDIM(), Half(1, 0.5)), VPSDE())[1] == 0.5
    assert times(Sampler(DDIM(), Half(1, 0.25)), VPSDE())[1] == 0.25


def test_a_process_that_may_change_is_asked_every_time() -> None:
    class Own(SDE):
        t_min, t_max, scale = 1e-3, 1.0, 1.0

        def alpha(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

        def sigma(self, t: Tensor) -> Tensor:
            return self.scale * t

    sde, sampler = Own(), Sampler(DDIM(), UniformTime(2))
    assert sampler.levels(sde)[0].sigma == 1.0
    sde.scale = 3.0
    assert sampler.levels(sde)[0].sigma == 3.0


def test_the_list_is_the_callers() -> None:
    sampler = Sampler(DDIM(), UniformTime(2))
    sampler.levels(VPSDE()).clear()
    assert len(sampler.levels(VPSDE())) == 3


def test_refusals_are_not_remembered_as_answers() -> None:
    sampler = Sampler(DDIM(), Times(3.0, 0.5))
    for _ in range(2):
        with pytest.raises(ValueError, match="times"):
            sampler.levels(VPSDE())
    assert sampler.levels(EDMSDE())[0].t == 3.0
    assert module._is_value(UniformTime(3))


@pytest.mark.parametrize("k", range(1, 7))
def test_phi_is_its_series_in_exact_arithmetic(k: int) -> None:
    for w in (0.0, 1e-9, -0.3, 1.7, -2.0, 2.5, -11.0):
        exact = sum(Fraction(w) ** n / factorial(n + k) for n in range(80))
        # the recurrence above |w| = 2 loses digits with k, the series none
        assert phi(k, w) == pytest.approx(float(exact), rel=4e-16 if abs(w) <= 2 else 1e-13)


def test_moment_weights_integrate_polynomials_exactly() -> None:
    nodes = (0.0, -0.3, -0.45)
    weights = moment_weights(0.0, 0.5, nodes)
    for degree in range(3):
        got = sum(w * u**degree for w, u in zip(weights, nodes, strict=True))
        assert got == pytest.approx(0.5 ** (degree + 1) / (degree + 1), rel=1e-14)
