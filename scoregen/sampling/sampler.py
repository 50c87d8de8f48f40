"""A sampler is a solver on a grid; this is the only driver loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._checks import (
    DivergenceError,
    check_callable,
    check_count,
    check_data,
    check_flag,
    check_kind,
    check_state,
)
from ..grids import Grid
from ..models import ScoreModel, check_model
from ..models.base import evaluating
from ..models.conditions import expand as expand_condition
from ..noise import Noise, Rewindable, SampleNoise, TorchNoise
from ..processes import SDE, Level
from .batch import bad_rows, begin, bound, check_parts, check_rows, check_shape
from .compiled import Compiled
from .levels import levels_of
from .solver import Solver

__all__ = ["Sampler", "Step"]

_FROM_DATA = 2**60  # number of the first draw of `from_data`, out of the reach of `sample`


class Step(NamedTuple):
    """One point of a trajectory; adaptive status and acceptance live in `state`.

    >>> Step(0, Level(1.0, 0.0, 1.0, -math.inf), torch.zeros(1), None).index
    0
    """

    index: int  # type: ignore[assignment]
    t: Level
    x: Tensor
    state: Any


@dataclass(frozen=True)
class Sampler:
    """A solver on a grid. It owns no model, no device and no randomness.

    However a run is started (`sample`, `from_data`, `run`, `iterate`), the model is in evaluation
    mode during it, so that no dropout disturbs the moves, and in its own mode again after.

    >>> from scoregen import DDIM, VPSDE, Gaussian, UniformTime
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> Sampler(DDIM(), UniformTime(10)).sample(model, (4, 2), seed=0).shape
    torch.Size([4, 2])
    """

    solver: Solver
    grid: Grid

    def __post_init__(self) -> None:
        check_kind("solver", self.solver, Solver, "DDIM()")
        check_callable("grid", self.grid, "(sde) -> times, such as UniformTime(20)")

    def levels(self, sde: SDE) -> list[Level]:
        """The n + 1 levels of the grid on a process, checked for the solver's direction."""
        return levels_of(self.grid, sde, self.solver.direction)

    def iterate(self, model: ScoreModel, x: Tensor, *, noise: Noise) -> Iterator[Step]:
        """The loop: yields the start and the state after every move, n + 1 steps in all.

        Gradients flow if the caller lets them; `sample` switches them off. The model is in
        evaluation mode until the iterator is exhausted or closed.

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
        state: Any = None
        yield Step(0, levels[0], x, state)
        step = self.solver.step
        for index, (t, s) in enumerate(pairwise(levels), 1):
            if t.sigma == 0 and s.t > t.t and model.sde.t_min > 0:
                # no network is evaluated at t = 0: DDIM's move with the noise predicted at its end
                x, state = s.alpha * x + s.sigma * model(x, s).eps, None
            else:
                x, state = step(model, x, t, s, state, noise)
            yield Step(index, s, x, state)

    def run(self, model: ScoreModel, x: Tensor, *, noise: Noise, progress: bool = False) -> Tensor:
        """The state at the end of the grid, checked once to be finite.

        Raises:
            DivergenceError: if it is not; the run is repeated with the same noise to name the
                move, the time and the rows. A source without `rewind` cannot repeat its draws, and
                then the move stays unknown.
        """
        check_flag("progress", progress)
        check_model(model)
        start, last = x, x
        steps = self.iterate(model, x, noise=noise)
        if progress:
            total = len(self.levels(model.sde))
            steps = iter(tqdm(steps, total=total, desc=type(self.solver).__name__, leave=False))
        for move in steps:
            last = move.x
        if not bool(torch.isfinite(last).all()):
            raise self._diagnose(model, start, last, noise)
        return last

    def _diagnose(
        self, model: ScoreModel, x: Tensor, last: Tensor, noise: Noise
    ) -> DivergenceError:
        """The error that names the first move that failed, by a second run with the same noise."""
        if bad_rows(x):
            return DivergenceError(0, self.levels(model.sde)[0].t, bad_rows(x))
        source = type(noise).__name__
        if isinstance(noise, Rewindable):
            noise.rewind()
        else:
            noise = _Unrepeatable()
        before, t = x, math.nan
        try:
            for index, level, after, state in self.iterate(model, x, noise=noise):
                if bad_rows(after):
                    known = self.solver.failure(state) or ""
                    return DivergenceError(index, t, bad_rows(after), before, known)
                before, t = after, level.t
        except _DrawnAgainError:
            reason = f"the noise source, {source}, has no rewind() to repeat its draws"
        else:
            reason = "the model did not fail again when the run was repeated with the same noise"
        return DivergenceError(None, None, bad_rows(last), reason=reason)

    @torch.no_grad()
    def sample(
        self,
        model: ScoreModel,
        shape: tuple[int, ...],
        *,
        seed: int | torch.Generator = 0,
        first: int = 0,
        rows: Sequence[int] | None = None,
        condition: dict[str, Any] | None = None,
        chunk: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        progress: bool = False,
    ) -> Tensor:
        """Samples from the model, shape `shape` = (batch, *event).

        With an integer seed, sample i depends only on (seed, first + i): not on the batch, the
        chunk or the device. It starts from N(0, prior_std^2) at the grid's first time.

        Args:
            model: a score model.
            shape: (batch, *event).
            seed: an integer, or a torch.Generator where speed matters more.
            first: index of the first sample, for ranks that share a seed.
            rows: which samples of the batch to make, in [0, batch); all of them unless given. They
                are those of the whole batch, and so are the conditions.
            condition: keyword arguments of the model, of any nested structure; what holds one
                entry per sample is sliced with the batch (`models.conditions` has the rule).
            chunk: most samples at a time; all at once unless given.
            device: where to sample; the model's own device unless given.
            dtype: of the state.
            progress: show a bar.

        Returns:
            Samples of shape (batch, *event), or (len(rows), *event).

        Raises:
            ValueError: for `first` or `rows` with a generator, whose draws have no index; for
                parts of a batch where the solver acts on the whole of it.
            DivergenceError: if a sample is not finite.
        """
        check_model(model)
        shape = check_shape(shape, dtype)
        batch = shape[0]
        first = check_count("first", first, 0)
        wanted = check_rows(rows, batch)
        chunk = max(len(wanted), 1) if chunk is None else check_count("chunk", chunk)
        check_parts(self.solver, seed, first, rows, chunk < len(wanted))
        device = model.placement()[0] if device is None else torch.device(device)
        level = self._start(model)
        parts = []
        condition = expand_condition(condition or {}, batch, device)
        model.check_condition(**condition)
        for start in range(0, max(len(wanted), 1), chunk):
            chosen = wanted[start : start + chunk]
            like = torch.empty((len(chosen), *shape[1:]), dtype=dtype, device=device)
            x, noise = begin(model, level, like, seed, first, chosen)
            inner = bound(model, condition, batch, chosen)
            try:
                parts.append(self.run(inner, x, noise=noise, progress=progress))
            except DivergenceError as error:
                raise error.among(chosen) from None
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    @torch.no_grad()
    def from_data(
        self,
        model: ScoreModel,
        x0: Tensor,
        *,
        seed: int | torch.Generator = 0,
        first: int = 0,
        condition: dict[str, Any] | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Data noised to the grid's first time and denoised from there (SDEdit, 2108.01073).

        The earlier the grid starts, the less of x0 is left. x_t = alpha x0 + sigma eps, with draws
        that no sample of the same seed was made from: to noise a sample with the very noise that
        made it would double that noise.

        Args:
            model: a score model.
            x0: clean data of shape (batch, *event).
            seed: an integer, or a torch.Generator.
            first: index of the first sample, for ranks that share a seed.
            condition: keyword arguments of the model.
            progress: show a bar.

        Returns:
            Samples shaped like x0.

        Raises:
            ValueError: for `first` with a generator, whose draws have no index; for x0 that is not
                finite.
            DivergenceError: if a sample is not finite.

        >>> from scoregen import DDIM, VPSDE, Gaussian, UniformTime
        >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
        >>> sampler = Sampler(DDIM(), UniformTime(10, start=0.4))
        >>> sampler.from_data(model, torch.ones(4, 2), seed=0).shape
        torch.Size([4, 2])
        """
        check_model(model)
        check_data(x0, "x0")
        first = check_count("first", first, 0)
        check_parts(self.solver, seed, first, None, False)
        condition = expand_condition(condition or {}, len(x0), x0.device)
        model.check_condition(**condition)
        level = self.levels(model.sde)[0]
        noise: Noise
        if isinstance(seed, torch.Generator):
            eps = TorchNoise(seed)(x0, level, level)
            noise = TorchNoise(seed)
        else:
            eps = SampleNoise(seed, first, draw=_FROM_DATA)(x0, level, level)
            noise = SampleNoise(seed, first, draw=_FROM_DATA + 1)
        x = level.alpha * x0 + level.sigma * eps
        return self.run(model.given(**condition), x, noise=noise, progress=progress)

    @torch.no_grad()
    def compiled(
        self,
        model: ScoreModel,
        shape: tuple[int, ...],
        *,
        condition: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        backend: str | None = None,
    ) -> Compiled:
        """The whole run for one model and shape, recorded once; call it with a seed for samples.

        On CUDA it is a CUDA graph: the kernels of all moves in one launch, with the start, every
        draw of noise and the condition copied to where they were recorded, so that Python and the
        launches cost nothing. Elsewhere the moves are made one by one. With `backend` the
        operations of the run become one graph, which `torch.compile(fullgraph=True)` compiles; a
        long run of a large network takes minutes. The draws of a whole run are held at once.

        Recording refuses what reads a value of the state during the run: the adaptive solvers,
        `NUTS`, `Picard`, and models that do. Weights may change in place between calls, but not
        the model's parts or mode.

        Args:
            model: a score model.
            shape: (batch, *event).
            condition: keyword arguments of the model; calls may give others of the same shapes.
            device: where to sample; the model's own device unless given.
            dtype: of the state.
            backend: of `torch.compile`, such as "inductor"; none unless given.

        Returns:
            A function (seed=0, *, first=0, condition=None) -> samples of shape (batch, *event).

        Raises:
            ValueError: for a run whose operations depend on its values.
            RuntimeError: for one that CUDA cannot record.

        >>> from scoregen import DDIM, VPSDE, Gaussian, UniformTime
        >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
        >>> run = Sampler(DDIM(), UniformTime(10)).compiled(model, (4, 2))
        >>> run(seed=0).shape
        torch.Size([4, 2])
        """
        check_model(model)
        shape = check_shape(shape, dtype)
        device = model.placement()[0] if device is None else torch.device(device)
        self._start(model)
        condition = expand_condition(condition or {}, shape[0], device)
        model.check_condition(**condition)
        like = torch.empty(shape, dtype=dtype, device=device)
        return Compiled(self, model, shape, condition, like, backend)

    def _start(self, model: ScoreModel) -> Level:
        """The first level of the grid; a warning where the prior is not the law of the data."""
        level = self.levels(model.sde)[0]
        if self.solver.direction != "fixed" and math.log(0.1) < level.lam < math.inf:
            warnings.warn(
                f"sampling starts at t = {level.t:g}, where the signal-to-noise ratio is still "
                f"{math.exp(2 * level.lam):.2g}: N(0, {model.sde.prior_std(level.t):g}^2) is not "
                "the law of the data there. Start later, or noise your own data with from_data",
                stacklevel=4,
            )
        return level

    @property
    def steps(self) -> int | None:
        """The count of moves that `with_steps` changes; None for a grid that is listed.

        Raises:
            TypeError: for a grid that has a `steps` which cannot be changed.
        """
        grid: Any = self.grid
        changeable = [f.name for f in fields(grid)] if is_dataclass(grid) else []
        if "steps" in changeable:
            count: int | None = grid.steps
            return count
        if hasattr(grid, "steps"):
            raise TypeError(
                f"{type(grid).__name__} has a `steps` that cannot be changed; make it a field of a "
                "dataclass, or rename it where it is not the number of moves"
            )
        return None

    def with_steps(self, n: int) -> Sampler:
        """This sampler on a grid of n steps.

        Raises:
            ValueError: for grids without a count of steps.
        """
        check_count("steps", n)
        if self.steps is None:
            raise ValueError(
                f"{type(self.grid).__name__} has no count of steps to change; use a grid such as "
                "UniformTime(n), Karras(n) or Strided(n)"
            )
        grid: Any = self.grid
        return replace(self, grid=replace(grid, steps=n))


class _DrawnAgainError(Exception):
    """A run that is repeated needs a draw that its source cannot give again."""


class _Unrepeatable:
    """Stands for a source that cannot rewind: a run that needs no draw can still be repeated."""

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        raise _DrawnAgainError
