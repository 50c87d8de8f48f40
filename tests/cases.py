"""Shared cases: an instance of every member of every family, exact models, exact output laws."""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import scoregen
from scoregen import (
    SDE,
    Constant,
    DiscreteVESDE,
    DiscreteVPSDE,
    Gaussian,
    GaussianMixture,
    Level,
    Sampler,
    ScoreModel,
    Solver,
    Times,
    UniformLam,
    UniformTime,
    _families,
    grids,
    mcmc,
    processes,
)
from scoregen.models import Parameterization, Prediction, clocks, parameterization
from scoregen.noise import ReplayNoise

F64 = torch.float64
SHAPES: list[tuple[int, ...]] = [(), (2,), (3,), (17,), (1, 8, 8), (3, 32, 32)]

# Instances beyond `Class()`, or where the class has no defaults. A new class whose arguments all
# have defaults needs no line here; one that has not needs one.
SPECIAL: dict[str, Callable[[], list[Any]]] = {
    "CosineVPSDE": lambda: [processes.CosineVPSDE(), processes.CosineVPSDE(s=0.0, t_max=1.0)],
    "VPSDE": lambda: [processes.VPSDE(), processes.VPSDE(0.5, 3.0, t_max=2.0)],
    "DiscreteVPSDE": lambda: [
        DiscreteVPSDE.linear(1000),
        DiscreteVPSDE.cosine(20),
        DiscreteVPSDE((0.5, 0.9)),
    ],
    "DiscreteVESDE": lambda: [DiscreteVESDE.geometric(10, 0.01, 5.0)],
    "EDM": lambda: [parameterization.EDM(), parameterization.EDM(1.3)],
    "RawTime": lambda: [clocks.RawTime(), clocks.RawTime(1000.0)],
    "Index": lambda: [clocks.Index(), clocks.Index(fractional=True)],
    "UniformTime": lambda: [grids.UniformTime(5), grids.UniformTime(3, stop=0.5)],
    "UniformLam": lambda: [grids.UniformLam(5)],
    "UniformAngle": lambda: [grids.UniformAngle(5)],
    "Quadratic": lambda: [grids.Quadratic(5)],
    "Karras": lambda: [grids.Karras(5), grids.Karras(5, rho=3.0)],
    "SinhLam": lambda: [grids.SinhLam(5), grids.SinhLam(5, centre=1.0, width=2.0)],
    "Constant": lambda: [grids.Constant(0.5, 3)],
    "Staircase": lambda: [grids.Staircase(4, 2), grids.Staircase(4, 2, denoise=True)],
    "Strided": lambda: [
        *(grids.Strided(2, s) for s in ("trailing", "leading", "linspace")),
        grids.Strided(1, "leading", offset=1, start=1.0),
    ],
    "Shifted": lambda: [grids.Shifted(grids.UniformTime(5), 3.0)],
    "Times": lambda: [grids.Times(0.9, 0.5, 0.0)],
    "Reversed": lambda: [
        grids.Reversed(grids.UniformTime(5)),
        grids.Reversed(grids.UniformTime(5), clean=True),
    ],
    "BetaQuantiles": lambda: [grids.BetaQuantiles(5)],
    "Interpolated": lambda: [grids.Interpolated((0.9, 0.3, 0.1, 0.0), 6)],
    "PolyExponential": lambda: [grids.PolyExponential(5)],
    "Polynomial": lambda: [grids.Polynomial(5)],
    "RestartGrid": lambda: [grids.RestartGrid(grids.UniformTime(4), low=0.25, high=0.75)],
    "BAOAB": lambda: [mcmc.BAOAB(0.05)],
    "OBABO": lambda: [mcmc.OBABO(0.05)],
    "HMC": lambda: [mcmc.HMC(0.05, leapfrog_steps=3)],
    "MALA": lambda: [mcmc.MALA(0.02)],
    "ReplicaExchange": lambda: [mcmc.ReplicaExchange(mcmc.MALA(0.02), (0.6,))],
    "NUTS": lambda: [mcmc.NUTS(0.05, depth=3)],
    "DualAveraging": lambda: [mcmc.DualAveraging(mcmc.MALA(0.02), warmup=3)],
    "SGLD": lambda: [mcmc.SGLD(0.01)],
    "FeynmanKac": lambda: [mcmc.FeynmanKac(kernel=mcmc.MALA(0.02))],
    "RewardSteering": lambda: [mcmc.RewardSteering(scoregen.DDIM(1.0), mcmc.PolynomialDecay(0.1))],
    "DDIM": lambda: [scoregen.DDIM(), scoregen.DDIM(0.5), scoregen.DDIM(1.0)],
    "Ancestral": lambda: [scoregen.Ancestral("small"), scoregen.Ancestral("large")],
    "ProbabilityFlow": lambda: [
        scoregen.ProbabilityFlow(tableau)
        for tableau in (
            scoregen.solvers.EULER,
            scoregen.solvers.MIDPOINT,
            scoregen.solvers.HEUN,
            scoregen.solvers.RK4,
        )
    ],
    # ten times faster than the default tolerances
    "AdaptiveSDE": lambda: [scoregen.solvers.AdaptiveSDE(0.1, 0.05)],
    "KarrasHeun": lambda: [scoregen.KarrasHeun(), scoregen.KarrasHeun(churn=0.2)],
    "Langevin": lambda: [
        scoregen.Langevin(1e-3),
        scoregen.Langevin(scoregen.mcmc.NCSNStep(0.01, 1.0)),
    ],
}
# Solvers that need a model of their own kind; their own tests run them.
APART = {
    "SGLD": "a sum over data rows",
    "FeynmanKac": "the batch is one population",
    "RewardSteering": "the batch is one population",
    "ReplicaExchange": "its noisier levels belong to one process",
}
MISSING: list[str] = []


def _accepts_nothing(cls: type) -> bool:
    parameters = list(inspect.signature(cls).parameters.values())
    return all(p.default is not p.empty or p.kind is p.VAR_POSITIONAL for p in parameters)


def members(family: str) -> list[Any]:
    """Instances of every concrete class of a family."""
    found: list[Any] = []
    for name, cls in _families.classes(family).items():
        if name in SPECIAL:
            found += SPECIAL[name]()
        elif _accepts_nothing(cls):
            found.append(cls())
        else:
            MISSING.append(
                f'{name} ({family}): add "{name}": lambda: [{name}(...)] to SPECIAL in '
                "tests/cases.py"
            )
    return found


SDES: list[SDE] = members("process")
NOISY = [sde for sde in SDES if not isinstance(sde, processes.StaticSDE)]
CONTINUOUS = [sde for sde in NOISY if not isinstance(sde, processes.DiscreteSDE)]
PARAMETERIZATIONS: list[Parameterization] = members("parameterization")
CLOCKS: list[Any] = members("clock")
GRIDS: list[Any] = members("grid")
SOLVERS: list[Solver] = members("solver")


def name(thing: object) -> str:
    """A short identifier for a parametrised test."""
    text = repr(thing)
    for tableau in (
        scoregen.solvers.EULER,
        scoregen.solvers.MIDPOINT,
        scoregen.solvers.HEUN,
        scoregen.solvers.RK4,
    ):
        text = text.replace(repr(tableau), tableau.name)
    return text if len(text) <= 60 else text[:57] + "..."


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def gaussian(sde: SDE, variance: float = 0.25, mean: float = 0.0, event: Any = (1,)) -> Gaussian:
    return Gaussian(sde, torch.full(event, mean, dtype=F64), variance)


def mixture(sde: SDE) -> GaussianMixture:
    """Three unequal components in the plane, one of them slanted."""
    covariances = torch.tensor(
        [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0], [0, 0.1]], [[0.5, -0.2], [-0.2, 0.4]]]
    )
    means = torch.tensor([[-1.5, 0.2], [1.0, 1.0], [0.5, -1.2]])
    return GaussianMixture(sde, tensor(0.2, 0.5, 0.3), means, covariances)


def inner_times(sde: SDE, count: int = 7) -> Tensor:
    """Times strictly inside the domain, off the knots, clear of both ends."""
    low = max(sde.t_min, 0.013 * sde.t_max)
    return torch.linspace(1.1 * low, 0.9533771 * sde.t_max, count, dtype=F64)


def grid_for(solver: Solver, sde: SDE, steps: int = 5) -> Any:
    """A grid that the solver can walk on the process, away from zero signal."""
    if solver.direction == "fixed":
        return Constant(0.5 * sde.t_max, steps)
    if solver.nfe is None and solver.direction != "any":  # chooses its own steps
        return Times(0.95 * sde.t_max, 0.0)
    if solver.direction == "any":
        return Times(*(f * sde.t_max for f in (0.9, 0.5, 0.7, 0.3)), 0.0)
    return UniformTime(steps, start=0.95 * sde.t_max)


def suits(solver: Solver, sde: SDE) -> bool:
    """Whether a solver has a meaning on a process: without noise only MCMC has."""
    if type(solver).__name__ in APART:
        return False
    return solver.direction == "fixed" or not isinstance(sde, processes.StaticSDE)


class Silent:
    """Counts draws and answers zeros."""

    def __init__(self) -> None:
        self.draws = 0

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        self.draws += 1
        return torch.zeros_like(like)


def response(sampler: Sampler, model: ScoreModel) -> tuple[float, float, Tensor]:
    """(offset, gain of x, gains of the draws) of a sampler that is affine, in one coordinate."""
    silent = Silent()
    sampler.run(model, torch.zeros(1, 1, dtype=F64), noise=silent)
    rows = silent.draws + 2
    x = torch.zeros(rows, 1, dtype=F64)
    x[1] = 1
    draws = []
    for k in range(silent.draws):
        z = torch.zeros(rows, 1, dtype=F64)
        z[2 + k] = 1
        draws.append(z)
    out = sampler.run(model, x, noise=ReplayNoise(draws)).flatten()
    return float(out[0]), float(out[1] - out[0]), out[2:] - out[0]


def output_variance(sampler: Sampler, model: ScoreModel, start: float) -> float:
    """Variance of the output when x starts with variance `start`."""
    _, gain, gains = response(sampler, model)
    return gain**2 * start + float((gains**2).sum())


def zigzag(sde: SDE, first: float, last: float, steps: int, ratio: float = 3.0) -> Times:
    """Steps in log(alpha / sigma) of lengths ratio, 1, ratio, 1, ..."""
    lams = sde.lam(tensor(first, last)).tolist()
    lengths = torch.tensor([ratio if i % 2 == 0 else 1.0 for i in range(steps)], dtype=F64)
    walked = torch.cat([torch.zeros(1, dtype=F64), lengths.cumsum(0)]) / lengths.sum()
    times = sde.time(lams[0] + (lams[1] - lams[0]) * walked).tolist()
    return Times(first, *times[1:-1], last)


def ladder(sde: SDE, first: float, last: float, kind: str, steps: int) -> Any:
    """Grids between two interior times on which orders are measured."""
    if kind == "zigzag":
        return zigzag(sde, first, last, steps)
    rule = {"time": UniformTime, "lam": UniformLam, "karras": scoregen.Karras}[kind]
    return rule(steps, start=first, stop=last)


class Fixed(ScoreModel):
    """A model whose x0 is a function of the level alone, or whatever it is told."""

    def __init__(self, sde: SDE, x0: Callable[[Tensor, Level], Tensor]) -> None:
        super().__init__()
        self.sde, self.rule = sde, x0

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        return Prediction(self.sde, t, x, x0=self.rule(x, t))


class Spy(ScoreModel):
    """Passes on to a model and keeps the times it was asked at."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model, self.sde = model, model.sde
        self.times: list[float] = []

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        self.times.append(t.t)
        return self.model.predict(x, t, **condition)


def slope(errors: Iterable[float]) -> float:
    """Observed order between the last two of a ladder that doubles the steps."""
    *_, coarse, fine = errors
    return math.log2(coarse / fine)


class NoFloat64(TorchDispatchMode):
    """Fails on float64 tensors on the meta device, which stands for one that has none.

    Reading a number from it (`item`, `bool`, `float`, a copy to the host) fails by itself.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.device.type == "meta":
                assert value.dtype != F64, f"{func} makes float64 on the device"
        return out


def benchmark(place: str) -> ModuleType:
    """A script under benchmarks/, such as "checks/fuzz", as a module."""
    path = Path(__file__).resolve().parents[1] / "benchmarks" / f"{place}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
