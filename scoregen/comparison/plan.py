"""What a comparison will run: for each sampler and budget, the most steps that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_count
from ..models import Counted, Prediction, ScoreModel
from ..processes import Level
from ..sampling import Sampler

__all__ = ["Cell", "plan"]


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: a sampler with as many steps as its budget allows.

    >>> from scoregen import DDIM, Sampler, UniformTime
    >>> Cell("ddim", 10, Sampler(DDIM(), UniformTime(10)), 10.0).nfe
    10.0
    """

    name: str
    budget: int | None
    sampler: Sampler
    nfe: float

    @property
    def steps(self) -> int | None:
        """Number of moves, where the grid has a count of them."""
        return getattr(self.sampler.grid, "steps", None)


def count_evaluations(model: ScoreModel, sampler: Sampler, like: Tensor, seed: int) -> float:
    """Evaluations per sample, counted on one sample shaped like `like` = (1, *event).

    A fixed number of evaluations does not depend on what the leaves answer, so they are not run:
    only their calls are counted. Solvers that choose their own number are run in earnest.
    """
    fixed = sampler.solver.nfe is not None and sampler.solver.direction != "fixed"
    with (_Dry if fixed else Counted)(model) as counted:
        sampler.sample(model, tuple(like.shape), seed=seed, device=like.device, dtype=like.dtype)
    return counted.rows / len(like)


class _Dry(Counted):
    """Counts calls without making them: every leaf predicts x0 = 0."""

    def __init__(self, model: ScoreModel):
        super().__init__(model)
        self.sde = model.sde

    def note(self, x: Tensor, t: Level) -> Prediction:
        super().note(x, t)
        zero = torch.zeros_like(x)
        return Prediction(self.sde, t, x, x0=zero, spread=zero)


def plan(
    model: ScoreModel,
    samplers: Mapping[str, Sampler],
    budgets: Sequence[int],
    like: Tensor,
    *,
    seed: int = 0,
) -> list[Cell]:
    """The cells of a comparison, counted rather than computed from a formula.

    For each budget the most steps whose counted evaluations do not exceed it: Heun makes 2 n - 1.
    A sampler whose grid has no count of steps is run once, as it is.

    Args:
        model: a score model, its condition bound.
        samplers: name -> sampler.
        budgets: evaluations per sample, increasing.
        like: one sample, shape (1, *event), with the device and dtype to run on.

    Raises:
        ValueError: if a sampler cannot do even one step within the largest budget.

    >>> from scoregen import VPSDE, Gaussian, ProbabilityFlow, Sampler, UniformTime
    >>> from scoregen.solvers import HEUN
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> heun = Sampler(ProbabilityFlow(HEUN), UniformTime(10))
    >>> [(c.steps, c.nfe) for c in plan(model, {"heun": heun}, [5, 10], torch.zeros(1, 2))]
    [(3, 5.0), (5, 9.0)]
    """
    if not samplers:
        raise ValueError("samplers must name at least one sampler, got none")
    if not budgets:
        raise ValueError("steps must list at least one budget of evaluations, got none")
    budgets = sorted({check_count("a budget", b) for b in budgets})
    cells = []
    for name, sampler in samplers.items():
        if getattr(sampler.grid, "steps", None) is None:
            nfe = count_evaluations(model, sampler, like, seed)
            cells.append(Cell(name, None, sampler, nfe))
            continue
        found = []
        for budget in budgets:
            steps = _most_steps(model, sampler, budget, like, seed)
            if steps is not None:
                found.append(Cell(name, budget, *steps))
        if not found:
            raise ValueError(
                f"{name} needs more than {budgets[-1]} evaluations for one step; allow more"
            )
        # a budget that buys no further step would repeat the cell before it
        cells += [c for i, c in enumerate(found) if i == 0 or c.nfe > found[i - 1].nfe]
    return cells


def _most_steps(
    model: ScoreModel, sampler: Sampler, budget: int, like: Tensor, seed: int
) -> tuple[Sampler, float] | None:
    """Bisection on the count of steps; evaluations rise with it."""
    each = sampler.solver.nfe or 1
    low, high = 0, max(1, budget // each) + 1
    best: tuple[Sampler, float] | None = None
    tried: dict[int, float] = {}

    def cost(steps: int) -> float:
        if steps not in tried:
            run = sampler.with_steps(steps)
            try:
                run.levels(model.sde)
            except ValueError:
                # a chain has only so many knots: more steps than that are no candidate
                if steps == 1:
                    raise
                tried[steps] = float("inf")
            else:
                tried[steps] = count_evaluations(model, run, like, seed)
        return tried[steps]

    while cost(high) <= budget and high <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    if low >= 1 and cost(low) <= budget:
        best = sampler.with_steps(low), cost(low)
    return best


def one_like(reference: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """An empty sample (1, *event) that says what to run on."""
    return torch.zeros((1, *reference.shape[1:]), device=device, dtype=dtype)
