"""Parallel-in-time sampling: a window of moves at once, repeated until it stands still."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_number, check_state
from ..models import Prediction, ScoreModel, check_model
from ..models.base import evaluating
from ..noise import Noise
from ..processes import Level
from .sampler import Sampler, Step

__all__ = ["Picard", "PicardState"]


class PicardState(NamedTuple):
    """What a parallel run has cost so far, as the `state` of a `Step`.

    Attributes:
        sweeps: batched evaluations of the model, one after the other: the wall-clock time.
        nfe: evaluations per sample: the work.

    >>> PicardState(3, 24).nfe
    24
    """

    sweeps: int
    nfe: int


@dataclass(frozen=True)
class Picard(Sampler):
    """A sampler whose moves are made in parallel by Picard iteration (Shih 2023, 2305.16317).

    With Phi_l(x) the solver's move from t_l, the trajectory is the fixed point of
    x_j = x_i + sum_{l=i}^{j-1} (Phi_l(x_l) - x_l). A sweep evaluates the model once, on a batch of
    `window` times, and corrects all of the window; then the window slides past the points that
    have moved by less than tolerance sqrt(alpha^2 + sigma^2) (root mean square, in the worst
    sample). The first point of a window is exact after a sweep, so there are never more sweeps than
    moves, and with tolerance = 0 the result is the sequential one up to rounding. Every sample
    meets the tolerance, but its last digits depend on its batch mates.

    Any solver serves that evaluates the model once, at the point it leaves, and has no memory:
    DDIM, Ancestral, EulerMaruyama, ReverseDiffusion, ExponentialEuler, ProbabilityFlow(EULER),
    SDEDPMSolverPP(1). Others are refused. Each move keeps its draws of noise through all sweeps,
    and makes them in the order of the moves, as `Sampler` does. The model must take one time per
    sample.

    Args:
        solver, grid: as for `Sampler`.
        window: most moves at once; memory and evaluations of a sweep grow with it.
        tolerance: change between sweeps below which a point is done.
        max_sweeps: most sweeps; as many as there are moves unless given.

    Raises:
        ValueError: from `run` and `iterate`, for a solver that cannot be parallelised.
        RuntimeError: from the same, if max_sweeps were not enough.

    >>> from scoregen import DDIM, VPSDE, Gaussian, UniformTime
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> Picard(DDIM(), UniformTime(50)).sample(model, (4, 2), seed=0).shape
    torch.Size([4, 2])
    """

    window: int = 32
    tolerance: float = 1e-3
    max_sweeps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window)
        check_number("tolerance", self.tolerance, 0.0)
        if self.max_sweeps is not None:
            check_count("max_sweeps", self.max_sweeps)

    def iterate(self, model: ScoreModel, x: Tensor, *, noise: Noise) -> Iterator[Step]:
        """Yields the points of the trajectory in order, each once it is done.

        Args:
            model: a score model.
            x: state at the grid's first time, shape (batch, *event).
            noise: where z comes from; one source serves one run.
        """
        check_state(x)
        check_callable("noise", noise, "(like, t, s) -> Tensor, such as SampleNoise(0)")
        levels = self.levels(check_model(model).sde)
        with evaluating(model):
            yield from self._moves(model, x, levels, noise)

    def _moves(
        self, model: ScoreModel, x: Tensor, levels: list[Level], noise: Noise
    ) -> Iterator[Step]:
        yield Step(0, levels[0], x, PicardState(0, 0))
        moves, at, sweeps, nfe = len(levels) - 1, 0, 0, 0
        most = moves if self.max_sweeps is None else self.max_sweeps
        draws: dict[int, list[Tensor]] = {}
        points = [x]  # x_at and the guesses behind it
        while at < moves:
            if sweeps == most:
                raise RuntimeError(
                    f"only {at} of {moves} moves stand still after max_sweeps = {most}; allow more "
                    "sweeps, a larger tolerance, or a smaller window"
                )
            width = min(self.window, moves - at)
            points = [*points, *[points[-1]] * width][:width]
            steps = self._sweep(model, points, levels[at : at + width + 1], at, draws, noise)
            sweeps, nfe = sweeps + 1, nfe + width
            after = [points[0]]
            for step in steps:
                after.append(after[-1] + step)
            done = self._still(points, after, levels[at : at + width + 1])
            for j in range(1, done + 1):
                yield Step(at + j, levels[at + j], after[j], PicardState(sweeps, nfe))
                draws.pop(at + j - 1, None)
            points, at = after[done:], at + done

    def _still(self, before: list[Tensor], after: list[Tensor], levels: list[Level]) -> int:
        """How many moves are done: the first always, those behind it while nothing changes."""
        done = 1
        for j in range(1, len(before)):
            scale = math.hypot(levels[j].alpha, levels[j].sigma)
            change = (after[j] - before[j]).square().flatten(1 if after[j].dim() > 1 else 0)
            rows = change if change.dim() == 1 else change.mean(1)
            worst = rows.max() if rows.numel() else rows.new_zeros(())
            # point j is exact for point j - 1; where it stood still, so does the move from it
            if not bool(worst.sqrt() <= self.tolerance * scale):
                break
            done = j + 1
        return done

    def _sweep(
        self,
        model: ScoreModel,
        points: list[Tensor],
        levels: list[Level],
        at: int,
        draws: dict[int, list[Tensor]],
        noise: Noise,
    ) -> list[Tensor]:
        """Phi_l(x_l) - x_l for every move of the window, from one evaluation."""
        sde, batch, width = model.sde, len(points[0]), len(points)
        times = torch.tensor([t.t for t in levels[:-1]], dtype=torch.float64)
        stacked = torch.cat(points)
        wide = model.rows(torch.arange(batch).repeat(width), batch)
        p = wide(stacked, sde.level_of(times.repeat_interleave(batch), stacked))
        apart = (width, *points[0].shape)
        x0, eps = p.x0.reshape(apart), p.eps.reshape(apart)
        spread = None if p.spread is None else p.spread.reshape(apart)
        steps = []
        for j, x in enumerate(points):
            t, s = levels[j], levels[j + 1]
            known = Prediction(
                sde, t, x, x0=x0[j], eps=eps[j], spread=None if spread is None else spread[j]
            )
            answer = _Answer(model, known, self.solver)
            replay = _Replay(draws.setdefault(at + j, []), noise)
            moved, state = self.solver.step(answer, x, t, s, None, replay)
            if state is not None:
                raise ValueError(
                    f"{type(self.solver).__name__} remembers earlier moves, so its moves cannot be "
                    "made in parallel; take a solver without memory, such as DDIM()"
                )
            steps.append(moved - x)
        return steps


class _Answer(ScoreModel):
    """A model that gives one prediction, made before, for one question."""

    def __init__(self, model: ScoreModel, known: Prediction, solver: object):
        super().__init__()
        self.sde, self.known, self.solver, self.used = model.sde, known, solver, False

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        if self.used or t != self.known.t or x is not self.known.x:
            raise ValueError(
                f"{type(self.solver).__name__} evaluates the model elsewhere than at the point it "
                "leaves, so its moves cannot be made in parallel; take one such as DDIM()"
            )
        self.used = True
        return self.known


class _Replay:
    """The draws of one move: taken from the source the first time, the same ever after."""

    def __init__(self, drawn: list[Tensor], noise: Noise):
        self.drawn, self.noise, self.index = drawn, noise, 0

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        if self.index == len(self.drawn):
            self.drawn.append(self.noise(like, t, s))
        self.index += 1
        return self.drawn[self.index - 1]
