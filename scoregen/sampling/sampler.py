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

from .._checks import DivergenceError, check_count, check_grid, check_state
from ..grids import Grid
from ..models import ScoreModel
from ..models.base import evaluating
from ..noise import Noise, SampleNoise, TorchNoise
from ..processes import SDE, Level
from .solver import Solver

__all__ = ["Sampler", "Step"]


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

    >>> from scoregen import DDIM, VPSDE, Gaussian, UniformTime
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> Sampler(DDIM(), UniformTime(10)).sample(model, (4, 2), seed=0).shape
    torch.Size([4, 2])
    """

    solver: Solver
    grid: Grid

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            raise TypeError(f"solver must be a Solver such as DDIM(), got {self.solver!r}")
        if not callable(self.grid):
            raise TypeError(f"grid must be a grid such as UniformTime(20), got {self.grid!r}")

    def levels(self, sde: SDE) -> list[Level]:
        """The n + 1 levels of the grid on a process, checked against what the solver can walk."""
        return sde.levels(check_grid(self.grid(sde), sde.t_max, sde.t_min, self.solver.direction))

    def iterate(self, model: ScoreModel, x: Tensor, *, noise: Noise) -> Iterator[Step]:
        """The loop: yields the start and the state after every move, n + 1 steps in all.

        Gradients flow if the caller lets them; `sample` switches them off.

        Args:
            model: a score model.
            x: state at the grid's first time, shape (batch, *event).
            noise: where z comes from; one source serves one run.
        """
        check_state(x)
        levels = self.levels(model.sde)
        state: Any = None
        yield Step(0, levels[0], x, state)
        step = self.solver.step
        for index, (t, s) in enumerate(pairwise(levels), 1):
            x, state = step(model, x, t, s, state, noise)
            yield Step(index, s, x, state)

    def run(self, model: ScoreModel, x: Tensor, *, noise: Noise, progress: bool = False) -> Tensor:
        """The state at the end of the grid, checked once to be finite.

        Raises:
            DivergenceError: if it is not; the run is repeated with the same noise to name the
                move, the time and the rows.
        """
        start, last = x, x
        steps = self.iterate(model, x, noise=noise)
        if progress:
            total = len(self.levels(model.sde))
            steps = iter(tqdm(steps, total=total, desc=type(self.solver).__name__, leave=False))
        for move in steps:
            last = move.x
        if not bool(torch.isfinite(last).all()):
            raise self._diagnose(model, start, noise)
        return last

    def _diagnose(self, model: ScoreModel, x: Tensor, noise: Noise) -> DivergenceError:
        if not bool(torch.isfinite(x).all()):
            rows = (~torch.isfinite(x.reshape(len(x), -1))).any(1).nonzero().flatten().tolist()
            return DivergenceError(0, self.levels(model.sde)[0].t, rows, None)
        rewind = getattr(noise, "rewind", None)
        if rewind is not None:
            rewind()
        before, t = x, math.nan
        for index, level, after, state in self.iterate(model, x, noise=noise):
            bad = ~torch.isfinite(after.reshape(len(after), -1)).all(1)
            if bool(bad.any()):
                rows = bad.nonzero().flatten().tolist()
                return DivergenceError(index, t, rows, before, self.solver.failure(state))
            before, t = after, level.t
        return DivergenceError(-1, t, [], before)

    @torch.no_grad()
    def sample(
        self,
        model: ScoreModel,
        shape: tuple[int, ...],
        *,
        seed: int | torch.Generator = 0,
        first: int = 0,
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
            model: a score model; it is put in evaluation mode and back.
            shape: (batch, *event).
            seed: an integer, or a torch.Generator where speed matters more.
            first: index of the first sample, for ranks that share a seed.
            condition: keyword arguments of the model; tensors of length batch are sliced with it.
            chunk: most samples at a time; all at once unless given.
            device: where to sample; the model's own device unless given.
            dtype: of the state.
            progress: show a bar.
        """
        if not isinstance(shape, Sequence) or not len(shape):
            raise TypeError(f"shape must be (batch, *event), got {shape!r}")
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a real floating-point dtype, got {dtype}")
        batch = check_count("the batch in shape", shape[0], 0)
        chunk = max(batch, 1) if chunk is None else check_count("chunk", chunk)
        device = model.placement()[0] if device is None else torch.device(device)
        t = self.levels(model.sde)[0].t
        level, std = model.sde.level(t), model.sde.prior_std(t)
        if self.solver.direction != "fixed" and math.log(0.1) < level.lam < math.inf:
            warnings.warn(
                f"sampling starts at t = {t:g}, where the signal-to-noise ratio is still "
                f"{math.exp(2 * level.lam):.2g}: N(0, {std:g}^2) is not the law of the data there. "
                "Start later, or noise your own data with sde.perturb and use run",
                stacklevel=3,
            )
        noise: Noise
        parts = []
        condition = expand_condition(condition or {}, batch, device)
        model.check_condition(**condition)
        with evaluating(model):
            for start in range(0, max(batch, 1), chunk):
                rows = slice(start, min(start + chunk, batch))
                like = torch.empty((rows.stop - start, *shape[1:]), dtype=dtype, device=device)
                # the start has a source of its own: a failed run rewinds to the draw behind it
                if isinstance(seed, torch.Generator):
                    x = std * TorchNoise(seed)(like, level, level)
                    noise = TorchNoise(seed)
                else:
                    x = std * SampleNoise(seed, first + start)(like, level, level)
                    noise = SampleNoise(seed, first + start, draw=1)
                bound = {
                    k: v[rows] if isinstance(v, Tensor) and v.dim() and len(v) == batch else v
                    for k, v in condition.items()
                }
                inner = model.given(**bound) if bound else model
                parts.append(self.run(inner, x, noise=noise, progress=progress))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def with_steps(self, n: int) -> Sampler:
        """This sampler on a grid of n steps.

        Raises:
            ValueError: for grids without a count of steps.
        """
        check_count("steps", n)
        grid: Any = self.grid
        if is_dataclass(grid) and any(f.name == "steps" for f in fields(grid)):
            finer: Any = replace(grid, steps=n)  # type: ignore[type-var]
            return replace(self, grid=finer)
        raise ValueError(
            f"{type(grid).__name__} has no count of steps to change; use a grid such as "
            "UniformTime(n), Karras(n) or Strided(n)"
        )


def expand_condition(condition: dict[str, Any], batch: int, device: torch.device) -> dict[str, Any]:
    """Whole numbers become one label per sample; tensors move to the device."""
    full = {}
    for name, value in condition.items():
        if isinstance(value, int) and not isinstance(value, bool):
            value = torch.full((batch,), value, dtype=torch.long)
        full[name] = value.to(device) if isinstance(value, Tensor) else value
    return full
