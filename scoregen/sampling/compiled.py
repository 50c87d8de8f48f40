"""A whole run whose operations are fixed beforehand: a CUDA graph, or one compiled function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from .._checks import DivergenceError, check_count, check_kind
from ..models import ScoreModel
from ..models.base import Given, evaluating
from ..models.conditions import Shared, expand, mapped
from ..noise import Noise, ReplayNoise
from ..processes import SDE, Level
from .batch import bad_rows, begin, check_parts
from .solver import Solver

__all__ = ["Compiled"]

Moves = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]


class _Sampler(Protocol):
    """What a recorded run needs of a sampler."""

    @property
    def solver(self) -> Solver: ...

    def levels(self, sde: SDE) -> list[Level]: ...

    def _moves(
        self, model: ScoreModel, x: Tensor, levels: list[Level], noise: Noise
    ) -> Iterator[Any]: ...

    @property
    def sample(self) -> Callable[..., Tensor]: ...


class Compiled:
    """A sampler's run on one model and one shape, as `Sampler.compiled` makes it.

    Call it as often as there are batches to make: `run(seed=3)` is
    `sampler.sample(model, shape, seed=3)`, up to rounding where kernels were fused.

    Args:
        seed: an integer, or a torch.Generator.
        first: index of the first sample, for ranks that share a seed.
        condition: of the same structure, shapes and dtypes as the one it was made with; that one
            unless given.

    Raises:
        ValueError: for another condition.
        DivergenceError: if a sample is not finite.

    >>> from scoregen import DDIM, VPSDE, Gaussian, Sampler, UniformTime
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> sampler = Sampler(DDIM(), UniformTime(10))
    >>> run = sampler.compiled(model, (4, 2))
    >>> torch.equal(run(seed=1), sampler.sample(model, (4, 2), seed=1))
    True
    """

    @torch.no_grad()
    def __init__(
        self,
        sampler: _Sampler,
        model: ScoreModel,
        shape: tuple[int, ...],
        condition: dict[str, Any],
        like: Tensor,
        backend: str | None,
    ):
        if backend is not None:
            check_kind("backend", backend, str, '"inductor"')
        self.sampler, self.model, self.shape = sampler, model, shape
        self.condition, self.backend, self._like = condition, backend, like
        self._levels = sampler.levels(model.sde)
        self._draws: list[tuple[Tensor, Level, Level]] = []
        x, noise = self._begin(0, 0)
        tensors = _tensors(condition)

        def recorded(like: Tensor, t: Level, s: Level) -> Tensor:
            # shape, dtype and device without the memory
            self._draws.append((like.new_empty(()).expand(like.shape), t, s))
            return noise(like, t, s)

        with evaluating(model):
            # the first run remembers what is found on the host, so that the second does not ask
            self._run(x, recorded, tensors)
            x, draws = self._drawn(0, 0)
            with _NothingRead(self.sampler, (x, *draws, *tensors)):
                self._moves(x, draws, tensors)
            self._replay: Moves = self._moves
            if backend is not None:
                self._replay = _compiled(self._moves, x, draws, tensors, backend)
            elif like.is_cuda:
                self._replay = _CudaGraph(self._moves, x, draws, tensors)

    @torch.no_grad()
    def __call__(
        self,
        seed: int | torch.Generator = 0,
        *,
        first: int = 0,
        condition: Mapping[str, Any] | None = None,
    ) -> Tensor:
        first = check_count("first", first, 0)
        check_parts(self.sampler.solver, seed, first, None, False)
        given = self.condition if condition is None else self._checked(condition)
        before = seed.get_state() if isinstance(seed, torch.Generator) else None
        x, draws = self._drawn(seed, first)
        with evaluating(self.model):
            last = self._replay(x, draws, _tensors(given))
        if bool(torch.isfinite(last).all()):
            return last
        if isinstance(seed, torch.Generator) and before is not None:
            seed.set_state(before)
        options = {"device": self._like.device, "dtype": self._like.dtype}
        # move by move, the run names the move that failed
        self.sampler.sample(
            self.model, self.shape, seed=seed, first=first, condition=given, **options
        )
        reason = "made move by move, the run is finite"
        raise DivergenceError(None, None, bad_rows(last), reason=reason)

    def __repr__(self) -> str:
        how = self.backend or ("a CUDA graph" if self._like.is_cuda else "move by move")
        return f"<{self.sampler} on {type(self.model).__name__} {self.shape}, {how}>"

    def _begin(self, seed: Any, first: int) -> tuple[Tensor, Noise]:
        rows = range(self.shape[0])
        return begin(self.model, self._levels[0], self._like, seed, first, rows)

    def _drawn(self, seed: Any, first: int) -> tuple[Tensor, list[Tensor]]:
        """The start and every draw of a run, in order."""
        x, noise = self._begin(seed, first)
        return x, [noise(like, t, s) for like, t, s in self._draws]

    def _moves(self, x: Tensor, draws: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
        """The run as a pure function of the start, the draws and the condition's tensors."""
        return self._run(x, ReplayNoise(list(draws)), tensors)

    def _run(self, x: Tensor, noise: Noise, tensors: Sequence[Tensor]) -> Tensor:
        condition = _filled(self.condition, iter(tensors))
        bound = Given(self.model, condition) if condition else self.model
        for step in self.sampler._moves(bound, x, self._levels, noise):
            x = step.x
        return x

    def _checked(self, condition: Mapping[str, Any]) -> dict[str, Any]:
        given = expand(condition, self.shape[0], self._like.device)
        self.model.check_condition(**given)
        if (wanted := _outline(self.condition)) != (got := _outline(given)):
            raise ValueError(
                "a recorded run keeps the structure, shapes and dtypes of its condition: it was "
                f"made with {wanted}, got {got}; make another with sampler.compiled(...)"
            )
        return given


def _tensors(condition: Mapping[str, Any]) -> list[Tensor]:
    """The tensors of a condition, in the order of its structure."""
    found: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, Shared):
            return Shared(mapped(value.value, leaf))
        if isinstance(value, Tensor):
            found.append(value)
        return value

    mapped(condition, leaf)
    return found


def _filled(condition: Mapping[str, Any], tensors: Iterator[Tensor]) -> dict[str, Any]:
    """The condition with other tensors in the places of its own."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Shared):
            return Shared(mapped(value.value, leaf))
        return next(tensors) if isinstance(value, Tensor) else value

    return dict(mapped(condition, leaf))


def _outline(condition: Mapping[str, Any]) -> Any:
    """A condition with shapes and dtypes instead of its tensors."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Shared):
            return ("shared", mapped(value.value, leaf))
        if isinstance(value, Tensor):
            return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        return value

    return mapped(condition, leaf)


class _NothingRead(TorchDispatchMode):
    """Refuses a run that reads a value which follows from its inputs: its moves depend on it."""

    def __init__(self, sampler: _Sampler, inputs: Sequence[Tensor]):
        super().__init__()
        self.sampler = sampler
        self.following = WeakTensorKeyDictionary(dict.fromkeys(inputs, True))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        follows = any(v in self.following for v in given)
        if follows and _reads(func, given):
            raise ValueError(
                f"{type(self.sampler.solver).__name__} or its model reads a value of the state "
                f"during the run ({func}), so its operations are not known beforehand and cannot "
                "be recorded: use sample(), or a solver on a fixed grid such as DPMSolverPP()"
            )
        out = func(*args, **kwargs)
        if follows:
            made = (v for v in tree_leaves(out) if isinstance(v, Tensor))
            self.following.update(dict.fromkeys(made, True))
        return out


def _reads(func: Any, given: Sequence[Tensor]) -> bool:
    """Whether an operation waits for values: it returns them, or a shape that depends on them."""
    if torch.Tag.data_dependent_output in func.tags:
        return True
    if func is torch.ops.aten.index.Tensor:
        return any(v.dtype in (torch.bool, torch.uint8) for v in given[1:])
    return torch.Tag.dynamic_output_shape in func.tags


def _compiled(
    moves: Moves, x: Tensor, draws: list[Tensor], tensors: list[Tensor], backend: str
) -> Moves:
    """The operations of a run, without the Python that chose them, compiled as one graph."""
    from torch.fx.experimental.proxy_tensor import make_fx

    # a function, since of a method it would count `self` among the inputs
    graph = make_fx(lambda x, draws, tensors: moves(x, draws, tensors))(x, draws, tensors)
    whole: Moves = torch.compile(graph, fullgraph=True, dynamic=False, backend=backend)
    return whole


class _CudaGraph:
    """The kernels of a run, launched at once; inputs are copied to where they were recorded."""

    def __init__(self, moves: Moves, x: Tensor, draws: list[Tensor], tensors: list[Tensor]):
        self.inputs = [v.clone() for v in (x, *draws, *tensors)]
        held, count = self.inputs, 1 + len(draws)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(x.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                # libraries choose their kernels and workspaces outside of the recording
                moves(held[0], held[1:count], held[count:])
            torch.cuda.current_stream().wait_stream(side)
            try:
                with torch.cuda.graph(self.graph):
                    self.last = moves(held[0], held[1:count], held[count:])
            except RuntimeError as error:
                raise RuntimeError(
                    f"the run cannot be recorded as a CUDA graph ({error}); a model that makes "
                    "tensors from numbers of the host, or waits for the device, must do so in its "
                    "__init__; sample() makes the same run move by move"
                ) from error

    def __call__(self, x: Tensor, draws: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
        for held, value in zip(self.inputs, (x, *draws, *tensors), strict=True):
            held.copy_(value, non_blocking=True)
        self.graph.replay()
        return self.last.clone()
