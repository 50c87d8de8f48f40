"""Solvers as schedulers of diffusers, for any of its pipelines."""

from __future__ import annotations

import importlib
import math
from collections import namedtuple
from typing import Any

import torch
from torch import Tensor

from .._checks import check_kind
from ..grids import Grid, Karras, Shifted, Strided, Times, UniformTime
from ..models import LearnedVariance
from ..noise import Noise, SampleNoise, TorchNoise
from ..processes import DiscreteSDE, Level, RectifiedSDE
from ..sampling import Sampler, Solver
from .diffusers import check_config, check_scheduler, slots
from .released import Looped, released
from .replay import Inverted, evaluations

__all__ = ["DiffusersScheduler", "as_diffusers_scheduler"]

SchedulerOutput = namedtuple("SchedulerOutput", "prev_sample")


class DiffusersScheduler:
    """A solver behind the interface of diffusers' schedulers; made by `as_diffusers_scheduler`.

    The state is x = alpha x0 + sigma eps, that of DDIM and DPM-Solver there. `timesteps` lists
    one entry for each evaluation of the network.

    >>> from scoregen import DPMSolverPP
    >>> as_diffusers_scheduler(DPMSolverPP(2), like=scheduler)  # doctest: +SKIP
    """

    order = 1

    def __init__(self, solver: Solver, grid: Grid | None, like: Any, seed: int | None):
        self.solver, self.grid, self.seed, self.config = solver, grid, seed, like.config
        stated = dict(like.config)
        self.sde, slot, self.clock, _, self.sign = slots(type(like).__name__, stated, like)
        learned = stated.get("variance_type") == "learned_range"
        self.slot = LearnedVariance(slot) if learned else slot
        self.shift = float(stated.get("shift") or stated.get("flow_shift") or 1.0)
        self.init_noise_sigma = self.sde.prior_std(self.sde.t_max)
        self.timesteps = torch.zeros(0)
        self.num_inference_steps: int | None = None
        self._levels: list[Level] = []
        self._plan: list[tuple[int, Level]] = []
        self._run: Inverted | None = None
        self._begin: int | None = None
        self._index: int | None = None

    @property
    def begin_index(self) -> int | None:
        return self._begin

    @property
    def step_index(self) -> int | None:
        return self._index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The entry of `timesteps` that the next run starts from."""
        self._begin = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        *,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """The grid of that many steps; flow pipelines may give sigmas and the log of their shift.

        Raises:
            ValueError: for sigmas without a flow, and for solvers that decide by the state where to
                evaluate next, so that no list of timesteps can be made beforehand.
        """
        grid = self._grid(num_inference_steps, sigmas, mu)
        self._levels = Sampler(self.solver, grid).levels(self.sde)
        event = self.solver.event if isinstance(self.solver, Looped) else (1,)
        small = torch.zeros(1, *event, dtype=torch.float64)
        self._plan = evaluations(self.solver, self.sde, self._levels, small)
        if self._plan != evaluations(self.solver, self.sde, self._levels, small + 3):
            raise ValueError(
                f"{type(self.solver).__name__} decides by the state where to evaluate next, and a "
                "pipeline wants its list of timesteps beforehand; take one with fixed steps"
            )
        labels = [self._label(level) for _, level in self._plan]
        whole = all(label == round(label) for label in labels)
        kind = torch.long if whole and isinstance(self.sde, DiscreteSDE) else torch.float32
        self.timesteps = torch.tensor(labels, dtype=kind, device=device)
        self.num_inference_steps = len(self._levels) - 1
        self.init_noise_sigma = self.sde.prior_std(self._levels[0].t)
        self._run, self._begin, self._index = None, None, None

    def _grid(self, steps: int | None, sigmas: Any, mu: float | None) -> Grid:
        shift = self.shift if mu is None else math.exp(mu)
        if sigmas is not None:
            if not isinstance(self.sde, RectifiedSDE):
                raise ValueError("sigmas are for flows; give a grid to as_diffusers_scheduler")
            times = [shift * s / (1 + (shift - 1) * s) for s in (float(s) for s in sigmas)]
            return Times(*times, 0.0)
        if steps is None:
            raise ValueError("set_timesteps needs num_inference_steps")
        if isinstance(self.solver, Looped) and steps != len(self.solver.times):
            raise ValueError(
                f"this solver is tuned for {len(self.solver.times)} evaluations, got "
                f"num_inference_steps={steps}"
            )
        if isinstance(self.solver, Looped):
            return self.solver.grid
        if self.grid is not None:
            counted = len(self.grid(self.sde)) - 1 == steps
            return self.grid if counted else Sampler(self.solver, self.grid).with_steps(steps).grid
        if isinstance(self.sde, RectifiedSDE):
            return Shifted(UniformTime(steps), shift)
        return Strided(steps) if isinstance(self.sde, DiscreteSDE) else Karras(steps)

    def _label(self, level: Level) -> float:
        return float(self.clock(self.sde, level, torch.zeros(1, 1, dtype=torch.float64))[0])

    def _place(self, timestep: Any) -> int:
        """The entry of `timesteps` that a run starting at `timestep` begins with."""
        if self._begin is not None:
            return self._begin
        near = (self.timesteps.double() - float(timestep)).abs()
        place = int(near.argmin())
        if float(near[place]) > 1e-4 * max(1.0, abs(float(timestep))):
            raise ValueError(
                f"timestep {float(timestep):g} is not in timesteps; call set_timesteps again"
            )
        # a level may end one move and start the next: a run starts where a move does
        moves = [move for move, _ in self._plan]
        first = [i for i, move in enumerate(moves) if i == 0 or moves[i - 1] < move]
        return next((i for i in first if self._plan[i][1] == self._plan[place][1]), place)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state as the network wants it: unscaled, but for EDM's."""
        place = self._place(timestep) if self._index is None else self._index
        scale = self.slot.input_scale(self.sde, self._plan[place][1])
        return sample if scale == 1.0 else scale * sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One evaluation taken, the next point to evaluate (or the sample) given.

        Args:
            model_output: the network's output, guided or not.
            timestep: the entry of `timesteps` it was evaluated at.
            sample: the state it was evaluated at.
            eta: 0; the solver has its own noise.
            use_clipped_model_output: False or None.
            generator: of the solver's noise, unless a seed was given at the start.
            return_dict: False for a tuple.

        Raises:
            ValueError: for other settings, a timestep out of order, or noise without a source.
        """
        if eta or use_clipped_model_output:
            raise ValueError(
                "eta and use_clipped_model_output belong to DDIMScheduler; choose the solver's "
                "noise where it is made, as in DDIM(eta=0.5)"
            )
        if self._run is None or self._index is None:
            self._index = self._place(timestep)
            move, level = self._plan[self._index]
            self._run = Inverted(
                self.solver, self.sde, self._levels, sample, self._noise(generator), move
            )
            if self._run.query is not sample or self._run.level != level:
                raise ValueError(
                    f"{type(self.solver).__name__} changes the state before it first evaluates the "
                    "network, or this is no start of a move; start at another timestep"
                )
        run, (_, level) = self._run, self._plan[self._index]
        if abs(self._label(level) - float(timestep)) > 1e-4 * max(1.0, abs(float(timestep))):
            raise ValueError(
                f"the next timestep is {self._label(level):g}, got {float(timestep):g}; call "
                "set_timesteps before every run"
            )
        run.moved(sample)
        out = model_output if self.sign == 1 else self.sign * model_output
        after = run.answer(self.slot.decode(self.sde, level, sample, out))
        self._index += 1
        if run.level is None:
            self._run = None
        return SchedulerOutput(after) if return_dict else (after,)

    def _noise(self, generator: Any) -> Noise:
        if self.seed is not None:
            return SampleNoise(self.seed)
        if isinstance(generator, torch.Generator):
            return TorchNoise(generator)

        def refuse(like: Tensor, t: Level, s: Level) -> Tensor:
            raise ValueError(
                f"{type(self.solver).__name__} draws noise: give the pipeline one generator= "
                "(not a list), or as_diffusers_scheduler a seed="
            )

        return refuse

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps at timesteps, for image-to-image pipelines."""
        shape = (-1, *(1,) * (original_samples.dim() - 1))
        levels = [self._plan[self._place(t)][1] for t in timesteps.reshape(-1)]
        alpha = original_samples.new_tensor([level.alpha for level in levels]).reshape(shape)
        sigma = original_samples.new_tensor([level.sigma for level in levels]).reshape(shape)
        return alpha * original_samples + sigma * noise

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


def as_diffusers_scheduler(
    solver: Solver | Sampler, like: Any, *, seed: int | None = None
) -> DiffusersScheduler:
    """A solver as a scheduler of diffusers: `pipe.scheduler = as_diffusers_scheduler(...)`.

    Multistep, stochastic and two-evaluation solvers alike: a move is replayed with the evaluations
    that the pipeline has made, until it needs one more.

    Args:
        solver: a solver, or a sampler whose grid has a count of steps; without one the grid is
            `Strided` on a chain, `Shifted` on a flow, `Karras` for EDM. A tuned one has its own
            times, and one evaluation more where its first move needs none; it cannot check the
            network of the pipeline.
        like: the pipeline's own scheduler, which states process, prediction type and shift.
        seed: of the noise; the pipeline's generator unless given.

    Raises:
        TypeError, ValueError: for another solver, or a scheduler of an unknown class.

    >>> from types import SimpleNamespace
    >>> from scoregen import KarrasHeun
    >>> flow = type("FlowMatchEulerDiscreteScheduler", (), {  # stands for diffusers' own
    ...     "config": {"num_train_timesteps": 1000, "shift": 1.0}})()
    >>> scheduler = as_diffusers_scheduler(KarrasHeun(), flow)
    >>> scheduler.set_timesteps(2)
    >>> scheduler.timesteps.tolist()
    [1000.0, 500.0]
    """
    sampler = solver if isinstance(solver, Sampler) else None
    inner = solver.solver if isinstance(solver, Sampler) else solver
    check_kind("solver", inner, Solver, "DPMSolverPP(2), or a Sampler of one")
    check_config("like", like)
    if seed is not None:
        SampleNoise(seed)  # refuses what is no seed, before a pipeline is under way
    check_scheduler(type(like).__name__, dict(like.config))
    grid = None if sampler is None else sampler.grid
    inner = released(inner, Looped)
    if isinstance(inner, Looped):
        grid = inner.grid
    kind: type[DiffusersScheduler] = DiffusersScheduler
    try:
        mixin: Any = importlib.import_module("diffusers").SchedulerMixin
    except ImportError:  # the interface is all that a loop of one's own needs
        pass
    else:
        kind = type("ScoregenScheduler", (DiffusersScheduler, mixin), {})
    return kind(inner, grid, like, seed)
