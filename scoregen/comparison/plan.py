"""What a comparison will run: for each sampler and budget, the most steps that fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .._checks import DivergenceError, check_counts, check_kind, check_state, shown
from ..models import Counted, Prediction, ScoreModel, check_model
from ..models.base import evaluating
from ..models.conditions import named
from ..noise import SampleNoise
from ..processes import Level
from ..sampling import Sampler

__all__ = ["Baseline", "Cell", "Cost", "plan"]


@runtime_checkable
class Baseline(Protocol):
    """A row that is no score model: a flow, a GAN, a fitted mixture.

    >>> class Noise:
    ...     evaluations = 1
    ...     def sample(self, n, *, seed, condition=None):
    ...         return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    >>> isinstance(Noise(), Baseline)
    True
    """

    evaluations: float
    """Network evaluations per sample."""

    def sample(self, n: int, *, seed: int, condition: dict[str, Any] | None = None) -> Tensor:
        """Samples (n, *event) that depend on the seed alone."""


class Cost(NamedTuple):
    """What a sample costs.

    Attributes:
        nfe: evaluations per sample, counted at the networks.
        depth: evaluations one after the other: those made in one batch count once.

    >>> Cost(10.0, 5).depth
    5
    """

    nfe: float
    depth: int


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: a sampler with as many steps as its budget allows.

    >>> from scoregen import DDIM, Sampler, UniformTime
    >>> Cell("ddim", 10, Sampler(DDIM(), UniformTime(10)), Cost(10.0, 10)).cost.nfe
    10.0
    """

    name: str
    budget: int | None
    sampler: Sampler
    cost: Cost

    @property
    def steps(self) -> int | None:
        """Number of moves, where the grid has a count of them."""
        return self.sampler.steps


class Calls(Counted):
    """Counts, inside a `with` block, the calls and the rows of every leaf of a model.

    With `silent` the leaves are not evaluated and predict x0 = 0: the evaluations of a solver with
    a fixed number of them do not depend on what the leaves predict.
    """

    def __init__(self, model: ScoreModel, *, silent: bool):
        super().__init__(model)
        self.silent, self.last = silent, model
        self.calls = dict.fromkeys(self._leaves, 0)

    def watches(self, model: ScoreModel) -> bool:
        if not super().watches(model):
            return False
        self.calls[id(model)] += 1
        self.last = model
        return True

    def note(self, x: Tensor, t: Level) -> Prediction | None:
        super().note(x, t)
        if not self.silent:
            return None
        zero = torch.zeros_like(x)
        return Prediction(self.last.sde, t, x, x0=zero, spread=zero)

    def cost(self, batch: int) -> Cost:
        """Per sample; leaves that differ could run side by side, so the deepest counts."""
        return Cost(self.rows / batch, max(self.calls.values(), default=0))


def fixed(sampler: Sampler) -> bool:
    """Whether the number of evaluations is known without evaluating.

    Another loop than that of `Sampler`, such as `Picard`, may stop where the values say so.
    """
    plain = type(sampler) is Sampler
    return plain and sampler.solver.nfe is not None and sampler.solver.direction != "fixed"


def cost_of(
    model: ScoreModel, sampler: Sampler, like: Tensor, condition: dict[str, Any], seed: int = 0
) -> Cost:
    """The cost of a sampler, counted on a batch shaped like `like`; NaN where it diverges."""
    silent = fixed(sampler)
    with Calls(model, silent=silent) as counted:
        if silent:
            bound = model.given(**condition)
            with torch.no_grad(), evaluating(model):
                for _ in sampler.iterate(bound, torch.zeros_like(like), noise=SampleNoise(seed)):
                    pass
            return counted.cost(len(like))
        options: dict[str, Any] = {"condition": condition, "device": like.device}
        try:
            sampler.sample(model, tuple(like.shape), seed=seed, dtype=like.dtype, **options)
        except DivergenceError:
            return Cost(math.nan, 0)
    return counted.cost(len(like))


def plan(
    model: ScoreModel,
    samplers: Mapping[str, Sampler],
    budgets: Sequence[int],
    like: Tensor,
    *,
    condition: dict[str, Any] | None = None,
) -> list[Cell]:
    """The cells of a comparison, counted rather than computed from a formula.

    For each budget the most steps whose counted evaluations do not exceed it: Heun makes 2 n - 1.
    A sampler whose grid has no count of steps is run once, as it is.

    Args:
        model: a score model.
        samplers: name -> sampler.
        budgets: evaluations per sample.
        like: an empty batch (n, *event) with the device and dtype to run on.
        condition: keyword arguments of the model for that batch.

    Raises:
        ValueError: if a sampler cannot do even one step within the largest budget.

    >>> from scoregen import VPSDE, Gaussian, ProbabilityFlow, Sampler, UniformTime
    >>> from scoregen.solvers import HEUN
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> heun = Sampler(ProbabilityFlow(HEUN), UniformTime(10))
    >>> [(c.steps, c.cost.nfe) for c in plan(model, {"heun": heun}, [5, 10], torch.zeros(1, 2))]
    [(3, 5.0), (5, 9.0)]
    """
    check_model(model)
    check_samplers(samplers)
    budgets = sorted({*check_counts("budgets", budgets)})
    if not budgets:
        raise ValueError("budgets must list at least one number of evaluations, got none")
    if not len(check_state(like, "like")):
        raise ValueError("like must have at least one row, of which evaluations are counted")
    given = named(condition)
    cells = []
    for name, sampler in samplers.items():
        if sampler.steps is None:
            cost = cost_of(model, sampler, like, given)
            cells.append(Cell(name, None, sampler, cost))
            continue
        found = []
        for budget in budgets:
            best = _most_steps(model, sampler, budget, like, given)
            if best is not None:
                found.append(Cell(name, budget, *best))
        if not found:
            raise ValueError(
                f"{name} needs more than {budgets[-1]} evaluations for one step; allow more"
            )
        # a budget that buys no further step would repeat the cell before it
        cells += [c for i, c in enumerate(found) if i == 0 or c.cost.nfe > found[i - 1].cost.nfe]
    return cells


def check_samplers(samplers: Mapping[str, Sampler]) -> None:
    """Refuse all but samplers by name."""
    check_kind("samplers", samplers, Mapping, "{'ddim': Sampler(DDIM(), UniformTime(10))}")
    for name, sampler in samplers.items():
        check_kind("the name of a sampler", name, str, "'ddim'")
        if not isinstance(sampler, Sampler):
            raise TypeError(f"{name} must be a Sampler(solver, grid), got {shown(sampler)}")


def _most_steps(
    model: ScoreModel, sampler: Sampler, budget: int, like: Tensor, condition: dict[str, Any]
) -> tuple[Sampler, Cost] | None:
    """Bisection on the count of steps; evaluations rise with it."""
    tried: dict[int, Cost] = {}

    def nfe(steps: int) -> float:
        if steps not in tried:
            run = sampler.with_steps(steps)
            try:
                run.levels(model.sde)
            except ValueError:
                # a chain has only so many knots: more steps than that are no candidate
                if steps == 1:
                    raise
                tried[steps] = Cost(float("inf"), 0)
            else:
                tried[steps] = cost_of(model, run, like, condition)
        return tried[steps].nfe

    low, high = 0, max(1, budget // (sampler.solver.nfe or 1)) + 1
    while nfe(high) <= budget and high <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if nfe(middle) <= budget else (low, middle)
    if low >= 1 and nfe(low) <= budget:
        return sampler.with_steps(low), tried[low]
    return None
