"""Error per network evaluation, beside other libraries in the same run.

    python benchmarks/samplers/accuracy.py [--quick | --full] [--workers 2] [--out runs/accuracy] [--page]

Root mean square, over samples and coordinates, of a sampler's x_0 minus the exact end of the
probability-flow path from the same x_T, in float64, with the exact score: what is left is the
sampler's own error. Every solver goes with every grid, ended at several noise levels, with and
without a last evaluation that returns x0; each library gets the same grids. The moves of a method
are as many as its counted evaluations allow.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import logging
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peers import k_diffusion_sampling, versions
from torch import Tensor

import scoregen as sg

F64 = torch.float64
BUDGETS = (5, 8, 10, 15, 20, 30, 50, 100)
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "accuracy.md"


def gauss2(sde: sg.SDE) -> sg.ScoreModel:
    """Standard deviations 1 and 0.1, rotated by 30 degrees."""
    angle = math.radians(30)
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=F64
    )
    spread = torch.diag(torch.tensor([1.0, 0.01], dtype=F64))
    return sg.Gaussian(sde, torch.tensor([0.5, -0.3], dtype=F64), turn @ spread @ turn.mT)


def gauss64(sde: sg.SDE) -> sg.ScoreModel:
    """Standard deviations from 0.03 to 1.5, equal ratios, random rotation, mean 0.3 N(0, 1)."""
    g = torch.Generator().manual_seed(64)
    turn, _ = torch.linalg.qr(torch.randn(64, 64, generator=g, dtype=F64))
    variances = torch.logspace(math.log10(0.03), math.log10(1.5), 64, dtype=F64) ** 2
    mean = 0.3 * torch.randn(64, generator=g, dtype=F64)
    return sg.Gaussian(sde, mean, turn @ torch.diag(variances) @ turn.mT)


def gmm2(sde: sg.SDE) -> sg.ScoreModel:
    """`scoregen.data.sixteen_modes`."""
    modes = sg.data.targets.sixteen_modes()
    return sg.GaussianMixture(sde, modes.weights, modes.means, modes.covariances)


def gmm64(sde: sg.SDE) -> sg.ScoreModel:
    """Eight modes of means 0.4 N(0, 1), each with deviations 0.05 to 0.5 in an order of its own."""
    g = torch.Generator().manual_seed(128)
    means = 0.4 * torch.randn(8, 64, generator=g, dtype=F64)
    std = torch.logspace(math.log10(0.05), math.log10(0.5), 64, dtype=F64)
    stds = torch.stack([std[torch.randperm(64, generator=g)] for _ in range(8)])
    weights = torch.rand(8, generator=g, dtype=F64) + 0.5
    return sg.GaussianMixture(sde, weights, means, stds**2)


PROBLEMS = {"gauss2": gauss2, "gauss64": gauss64, "gmm2": gmm2, "gmm64": gmm64}
PROCESSES: dict[str, sg.SDE] = {
    "VP": sg.VPSDE(),
    "EDM": sg.EDMSDE(),
    "flow": sg.RectifiedSDE(1e-3, 0.999),
}


def ended(process: str, ratio: float) -> sg.SDE:
    """The process whose smallest time has sigma / alpha = ratio."""
    if process == "EDM":
        return sg.EDMSDE(t_min=ratio)
    if process == "flow":
        return sg.RectifiedSDE(ratio / (1 + ratio), 0.999)
    return sg.VPSDE(t_min=float(sg.VPSDE().time(torch.tensor(-math.log(ratio), dtype=F64))))


class Problem:
    """A start, its exact end, and models on its process."""

    def __init__(self, name: str, process: str, rows: int) -> None:
        self.name, self.process = name, process
        self.sde = PROCESSES[process]
        model = PROBLEMS[name](ended(process, 1e-3))
        g = torch.Generator().manual_seed(1)
        d = int(name.removeprefix("gauss").removeprefix("gmm"))
        first = self.sde.level(self.sde.t_max)
        self.x = self.sde.prior_std(first.t) * torch.randn(rows, d, generator=g, dtype=F64)
        if isinstance(model, sg.Gaussian):
            self.truth = model.flow(self.x, first.t, 0.0)
        else:
            self.truth = sg.analysis.exact_flow(model, self.x, first.t, 0.0)
        # other libraries see x / alpha as a function of sigma / alpha
        self.unscaled = self.x / first.alpha
        self.ratio = first.sigma / first.alpha
        self.plain = PROBLEMS[name](sg.EDMSDE(t_min=1e-4, t_max=1e4))
        self.on = cache(lambda ratio: PROBLEMS[name](ended(process, ratio)))

    def error(self, x: Tensor) -> float:
        return float((x - self.truth).square().mean().sqrt())


def vp_power(rho: float) -> Callable[[int, float, float], Tensor]:
    """t^(1/rho) of the VP process equally far apart, carried over by sigma / alpha."""

    def ratios(moves: int, high: float, low: float) -> Tensor:
        vp = sg.VPSDE()
        ends = vp.time(-torch.tensor([high, low], dtype=F64).log()) ** (1 / rho)
        t = torch.linspace(float(ends[0]), float(ends[1]), moves + 1, dtype=F64) ** rho
        return (-vp.lam(t)).exp()

    return ratios


def karras(rho: float) -> Callable[[int, float, float], Tensor]:
    def ratios(moves: int, high: float, low: float) -> Tensor:
        return torch.linspace(high ** (1 / rho), low ** (1 / rho), moves + 1, dtype=F64) ** rho

    return ratios


def focused(centre: float, width: float) -> Callable[[int, float, float], Tensor]:
    """`SinhLam`: densest in log(sigma / alpha) at the centre."""

    def ratios(moves: int, high: float, low: float) -> Tensor:
        ends = [math.asinh(math.log(r / centre) / width) for r in (high, low)]
        ramp = torch.linspace(ends[0], ends[1], moves + 1, dtype=F64)
        return centre * torch.exp(width * torch.sinh(ramp))

    return ratios


def log_power(rho: float) -> Callable[[int, float, float], Tensor]:
    def ratios(moves: int, high: float, low: float) -> Tensor:
        ramp = torch.linspace(1.0, 0.0, moves + 1, dtype=F64) ** rho
        return (math.log(low) + math.log(high / low) * ramp).exp()

    return ratios


# name -> sigma / alpha at the moves + 1 times from high to low
GRIDS = {
    "log-SNR": log_power(1.0),
    "log-SNR^1.3": log_power(1.3),
    "Karras 7": karras(7.0),
    "Karras 12": karras(12.0),
    "focused": focused(0.3, 0.7),
    "VP time^1/2": vp_power(2.0),
}


class Ending(NamedTuple):
    """sigma / alpha at the last positive time, and whether a last evaluation returns x0 there."""

    ratio: float
    denoise: bool

    @property
    def label(self) -> str:
        return f"{self.ratio:g}" + (", x0" if self.denoise else "")


ENDINGS = (
    Ending(0.002, False),
    Ending(0.002, True),
    Ending(0.005, False),
    Ending(0.01, True),
    Ending(0.02, False),
)


def ratios(problem: Problem, grid: str, ending: Ending, moves: int) -> Tensor:
    """The grid itself, its ends exact."""
    r = GRIDS[grid](moves, problem.ratio, ending.ratio)
    r[0], r[-1] = problem.ratio, ending.ratio
    return r


def solvers() -> dict[str, sg.Solver]:
    """The deterministic solvers, in the variants worth their time."""
    late = sg.solvers.EulerStart
    adams = [
        made(order)
        for made in (sg.solvers.LMS, sg.solvers.DEIS, sg.solvers.VelocityAB)
        for order in (3, 4)
    ]
    angles = [
        sg.solvers.AngularAB(p, smooth_end=smooth, bounded=bounded)
        for bounded in (True, False)
        for p, smooth in ((4, False), (2, True), (3, True), (4, True))
    ]
    exponential = [
        sg.solvers.ExponentialAB(order, form) for form in ("x0", "eps") for order in (3, 4)
    ]
    unipc = [sg.UniPC(p, form) for form in ("x0", "eps") for p in (2, 3)]
    every = [
        sg.DDIM(),
        *[sg.solvers.GammaAveraging(gamma) for gamma in (1.5, 2.0)],
        *[sg.solvers.IPNDM(points) for points in (2, 3, 4)],
        *[late(solver) for solver in adams],
        *[late(solver) for solver in angles],
        sg.DPMSolverPP(2),
        sg.solvers.DPMSolver(2),
        *exponential,
        *[late(solver) for solver in exponential],
        *unipc,
        *[late(solver) for solver in unipc if solver.order == 3],
        *[sg.solvers.DPMSolverSingle(order, form) for form in ("x0", "eps") for order in (2, 3)],
        sg.KarrasHeun(),
        sg.ProbabilityFlow(sg.solvers.RK4),
        sg.solvers.SASolver(tau=0.0),
    ]
    return {label(solver): solver for solver in every}


def label(solver: sg.Solver) -> str:
    """A short name that builds the solver again."""
    if isinstance(solver, sg.ProbabilityFlow):
        return f"ProbabilityFlow({solver.tableau.name})"
    if isinstance(solver, sg.solvers.EulerStart):
        return f"EulerStart({label(solver.solver)})"
    shown = repr(solver).replace(", variant='exact'", "").replace(", smooth_end=False", "")
    return shown.split("(churn")[0].replace(", predictor_order=2, corrector_order=2", "")


@cache
def cost(solver: sg.Solver) -> tuple[int, int]:
    """(each, extra): evaluations = each moves + extra, without the last one that returns x0."""
    sde = sg.EDMSDE(t_min=0.01)
    model = sg.Gaussian(sde, torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64))
    counts = []
    for moves in (8, 12):
        with sg.models.Counted(model) as counted:
            grid = sg.UniformLam(moves, stop=sde.t_min)
            start = torch.ones(1, 1, dtype=F64)
            sg.Sampler(solver, grid).run(model, start, noise=sg.noise.SampleNoise(0))
        counts.append(counted.rows)
    each = (counts[1] - counts[0]) // 4
    return each, counts[0] - 8 * each


class Run(NamedTuple):
    """One way to sample: `run(problem, grid, ending, moves)`, and what it costs."""

    origin: str
    name: str
    each: int
    extra: int
    run: Callable[[Problem, str, Ending, int], Tensor]

    def moves(self, budget: int, ending: Ending) -> int:
        return (budget - self.extra - ending.denoise) // self.each


def ours(solver: sg.Solver) -> Callable[[Problem, str, Ending, int], Tensor]:
    def run(problem: Problem, grid: str, ending: Ending, moves: int) -> Tensor:
        model = problem.on(ending.ratio)
        return carried(solver, model, problem.x, ratios(problem, grid, ending, moves), ending)

    return run


def on_rectified_flow(solver: sg.Solver) -> Callable[[Problem, str, Ending, int], Tensor]:
    """The same data and start on straight paths, where time is sigma / (alpha + sigma)."""

    def run(problem: Problem, grid: str, ending: Ending, moves: int) -> Tensor:
        r = ratios(problem, grid, ending, moves)
        ends = [float(ratio / (1 + ratio)) for ratio in (r[-1], r[0])]
        model = PROBLEMS[problem.name](sg.RectifiedSDE(*ends))
        return carried(solver, model, problem.unscaled * (1 - ends[1]), r, ending)

    return run


def carried(
    solver: sg.Solver, model: sg.ScoreModel, x: Tensor, r: Tensor, ending: Ending
) -> Tensor:
    """From the process' t_max to its t_min, and to 0 if the ending says so, else x / alpha."""
    sde = model.sde
    times = sde.time(-r.log()).tolist()
    times[0], times[-1] = sde.t_max, sde.t_min
    tail = [0.0] if ending.denoise else []
    x = sg.Sampler(solver, sg.Times(*times, *tail)).run(model, x, noise=sg.noise.SampleNoise(0))
    return x if ending.denoise else x / sde.level(sde.t_min).alpha


def scoregen_runs() -> Iterator[Run]:
    for name, solver in solvers().items():
        yield Run("scoregen", name, *cost(solver), ours(solver))
    for order in (2, 3, 4):
        velocity = sg.solvers.EulerStart(sg.solvers.VelocityAB(order))
        name = f"{label(velocity)} on RectifiedSDE"
        yield Run("scoregen", name, *cost(velocity), on_rectified_flow(velocity))


def finish(problem: Problem, x: Tensor, ending: Ending) -> Tensor:
    """The last evaluation, for libraries whose samplers stop at the last positive sigma."""
    return problem.plain(x, ending.ratio).x0 if ending.denoise else x


def k_diffusion_runs() -> Iterator[Run]:
    k = k_diffusion_sampling()

    def made(name: str, each: int = 1, **arguments: Any) -> Run:
        sample = getattr(k, f"sample_{name}")

        def run(problem: Problem, grid: str, ending: Ending, moves: int) -> Tensor:
            def denoise(x: Tensor, sigma: Tensor) -> Tensor:
                return problem.plain(x, float(sigma[0])).x0

            sigmas = ratios(problem, grid, ending, moves)
            sigmas = k.append_zero(sigmas) if ending.denoise else sigmas
            return sample(denoise, problem.unscaled, sigmas, disable=True, **arguments)

        shown = ", ".join(f"{key}={value}" for key, value in arguments.items() if key != "eta")
        return Run("k-diffusion", name + (f"({shown})" if shown else ""), each, 0, run)

    yield made("euler")
    yield made("heun", 2)
    yield made("dpm_2", 2)
    yield made("dpmpp_2m")
    yield made("dpmpp_2m_sde", solver_type="heun", eta=0.0)
    yield made("dpmpp_3m_sde", eta=0.0)
    yield made("dpmpp_2s_ancestral", 2, eta=0.0)
    for order in (2, 3, 4):
        yield made("lms", order=order)


def azula_runs() -> Iterator[Run]:
    from azula import denoise, sample

    class Model(denoise.Denoiser):
        """The exact denoiser; time is sigma, alpha is 1."""

        def __init__(self, model: sg.ScoreModel) -> None:
            super().__init__()
            self.model = model

        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ones_like(t), t

        def forward(self, x: Tensor, t: Tensor, **extra: Any) -> Any:
            return denoise.DiracPosterior(self.model(x, float(t)).x0)

    def made(name: str, each: int = 1, **arguments: Any) -> Run:
        cls = getattr(sample, f"{name}Sampler")

        def run(problem: Problem, grid: str, ending: Ending, moves: int) -> Tensor:
            times = ratios(problem, grid, ending, moves)
            gridded = type(name, (cls,), {"timesteps": property(lambda self: times)})
            sampler = gridded(Model(problem.plain), silent=True, **arguments)
            return finish(problem, sampler(problem.unscaled), ending)

        return Run("azula", name + str(arguments.get("order", "")), each, 0, run)

    yield made("Euler")
    yield made("Heun", 2)
    for order in (2, 3, 4):
        for name in ("zAB", "vAB", "zEAB", "xEAB"):
            yield made(name, order=order)


def diffusers_runs() -> Iterator[Run]:
    import diffusers as d

    logging.getLogger("diffusers").setLevel(logging.ERROR)

    def made(name: str, scheduler: Any, each: int = 1, scaled: bool = False) -> Run:
        def run(problem: Problem, grid: str, ending: Ending, moves: int) -> Tensor:
            sigmas = ratios(problem, grid, ending, moves)
            scheduler.set_timesteps(moves)
            if each == 2:  # Heun's scheduler lists every inner sigma twice
                sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)])
            scheduler.sigmas = sigmas
            scheduler.set_begin_index(0)
            scheduler.timesteps = torch.linspace(999, 0, each * moves)
            x = problem.unscaled if scaled else problem.unscaled / math.hypot(1, problem.ratio)
            for i, t in enumerate(scheduler.timesteps):
                sigma = float(sigmas[i])
                scale = math.hypot(1, sigma)
                if scaled:
                    scheduler.scale_model_input(x, t)
                y = x if scaled else x * scale
                eps = problem.plain(y, sigma).eps
                x = scheduler.step(eps, t, x).prev_sample
            x = x if scaled else x * math.hypot(1, ending.ratio)
            return finish(problem, x.to(F64), ending)

        return Run("diffusers", name, each, 0, run)

    low = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
    yield made("DDIM", d.DPMSolverMultistepScheduler(solver_order=1, **low))
    for kind in ("midpoint", "heun"):
        scheduler = d.DPMSolverMultistepScheduler(solver_order=2, solver_type=kind, **low)
        yield made(f"DPM++ 2M {kind}", scheduler)
    yield made("DPM++ 3M", d.DPMSolverMultistepScheduler(solver_order=3, **low))
    eps = {"algorithm_type": "dpmsolver", **low}
    yield made("DPM 2M", d.DPMSolverMultistepScheduler(solver_order=2, **eps))
    for p in (2, 3):
        for kind in ("bh1", "bh2"):
            scheduler = d.UniPCMultistepScheduler(solver_order=p, solver_type=kind, **low)
            yield made(f"UniPC-{p} {kind}", scheduler)
    for order in (2, 3):
        yield made(f"DEIS-{order}", d.DEISMultistepScheduler(solver_order=order))
    yield made("Heun", d.HeunDiscreteScheduler(), 2, scaled=True)


def skrample_runs() -> Iterator[Run]:
    """Structured samplers on a schedule of our grids; needs Python 3.12."""
    from skrample.common import Point, Step
    from skrample.sampling import models, structured

    class Schedule(NamedTuple):
        """sigma and alpha at each of the moves + 1 times, alpha^2 + sigma^2 = 1."""

        sigmas: Tensor

        def ipoint(self, time: float) -> Any:
            r = float(self.sigmas[round(time * (len(self.sigmas) - 1))])
            return Point(time, r / math.hypot(1, r), 1 / math.hypot(1, r))

        def ipoints(self, step: Any) -> Any:
            return [self.ipoint(time) for time in step]

    data = models.DataModel()

    def made(name: str, solver: Any) -> Run:
        def run(problem: Problem, grid: str, ending: Ending, moves: int) -> Tensor:
            schedule = Schedule(ratios(problem, grid, ending, moves))
            x, previous = problem.unscaled / math.hypot(1, problem.ratio), []
            for i in range(moves):
                sigma = float(schedule.sigmas[i])
                x0 = problem.plain(x * math.hypot(1, sigma), sigma).x0
                step = Step.from_int(i, moves)
                previous.append(solver.sample(x, x0, step, data, schedule, None, previous))
                x = previous[-1].final
            return finish(problem, x * math.hypot(1, ending.ratio), ending)

        return Run("skrample", name, 1, 0, run)

    forms = {"x0": data, "eps": models.NoiseModel(), "v": models.VelocityModel()}
    for form, transform in forms.items():
        for order in (2, 3):
            for cls in (structured.DPM, structured.Adams, structured.UniP, structured.UniPC):
                name = f"{cls.__name__}-{order} {form}"
                yield made(name, cls(order=order, derivative_transform=transform))
    yield made("SPC", structured.SPC())


PEERS = {
    "k-diffusion": k_diffusion_runs,
    "azula": azula_runs,
    "diffusers": diffusers_runs,
    "skrample": skrample_runs,
}

# The least error over up to 471 configurations of nine libraries a problem, measured apart from
# this script (azula, diffusers, k-diffusion, diff-sampler, dpm-solver, UniPC, edm, smalldiffusion,
# torchebm), methods with a known order defect left out; gmm2 with sixteen modes of another seed.
PUBLISHED = {
    ("gauss2", "VP"): (1.08e-3, 2.47e-3, 2.44e-3, 1.75e-3, 2.39e-4, 9.30e-5, 2.93e-5, 2.68e-6),
    ("gauss64", "VP"): (1.79e-2, 3.13e-3, 1.62e-3, 1.31e-3, 5.17e-4, 8.88e-5, 3.51e-5, 1.56e-5),
    ("gmm2", "VP"): (8.61e-2, 5.35e-2, 4.75e-2, 2.39e-2, 1.38e-2, 4.53e-3, 7.48e-4, 7.26e-5),
    ("gauss2", "EDM"): (7.36e-3, 4.97e-3, 1.23e-3, 1.54e-3, 5.07e-4, 2.12e-4, 1.86e-5, 5.07e-6),
    ("gauss64", "EDM"): (1.86e-2, 2.53e-3, 1.37e-3, 1.14e-3, 5.33e-4, 1.82e-4, 2.68e-5, 1.72e-5),
    ("gmm2", "EDM"): (1.23e-1, 7.39e-2, 5.02e-2, 2.41e-2, 1.88e-2, 7.25e-3, 7.19e-4, 5.83e-5),
}


class Measured(NamedTuple):
    problem: str
    process: str
    nfe: int
    origin: str
    sampler: str
    grid: str
    ending: str
    error: float

    @property
    def key(self) -> tuple[str, str, int]:
        return self.problem, self.process, self.nfe

    @property
    def shown(self) -> str:
        return f"{self.sampler}, {self.grid}, {self.ending}"


def measure(problem: Problem, runs: list[Run], grids: list[str], endings: list[Ending],
            budgets: tuple[int, ...]) -> Iterator[Measured]:  # fmt: skip
    """Every run on every grid, ending and budget; a method may spend less than its budget."""
    for run in runs:
        for grid in grids:
            for ending in endings:
                for budget in budgets:
                    moves = run.moves(budget, ending)
                    if moves < 2:
                        continue
                    x = run.run(problem, grid, ending, moves)
                    error = problem.error(x)
                    if math.isfinite(error):
                        yield Measured(
                            problem.name, problem.process, budget, run.origin, run.name, grid,
                            ending.label, error,
                        )  # fmt: skip


RECOMMENDED = "sg.tuning.recommended(model, n)"


def recommended(problem: Problem, budgets: tuple[int, ...]) -> Iterator[Measured]:
    """As a user has it: the process as it comes, from t_max to 0."""
    model = PROBLEMS[problem.name](problem.sde)
    for budget in budgets:
        with sg.models.Counted(model) as counted:
            sampler = sg.tuning.recommended(model, budget)
            start = model.sde.level(problem.sde.t_max)
            first = sampler.levels(model.sde)[0]
            scale = math.hypot(first.alpha, first.sigma) / math.hypot(start.alpha, start.sigma)
            x = sampler.run(model, scale * problem.x, noise=sg.noise.SampleNoise(0))
        if counted.rows != budget * len(problem.x):
            raise RuntimeError(
                f"{budget} evaluations were meant, {counted.rows} rows were evaluated"
            )
        yield Measured(
            problem.name, problem.process, budget, "scoregen", RECOMMENDED, "its own",
            "its own", problem.error(x),
        )  # fmt: skip


def best(found: list[Measured], origins: Callable[[str], bool]) -> dict[Any, Measured]:
    """The least error for each problem, process and budget."""
    least: dict[Any, Measured] = {}
    for m in found:
        if origins(m.origin) and (m.key not in least or m.error < least[m.key].error):
            least[m.key] = m
    return least


def over_the_least(
    found: list[Measured], least: dict[tuple[str, str, int], float], budgets: tuple[int, ...]
) -> dict[str, tuple[float, float]]:
    """(geometric mean, worst) ratio to the least error, of the samplers that every problem has."""
    keys = {key for key in least if key[2] in budgets}
    ratios: dict[str, list[float]] = {}
    for m in found:
        if m.key in keys:
            name = f"{m.origin}: {m.shown}"
            ratios.setdefault(name, []).append(math.log(m.error / least[m.key]))
    return {
        name: (math.exp(statistics.fmean(values)), math.exp(max(values)))
        for name, values in ratios.items()
        if len(values) == len(keys)
    }


def among_named(found: list[Measured], least: dict[tuple[str, str, int], float]) -> Iterator[str]:
    """The rule beside every sampler that has a name: one solver, grid and ending for all problems."""
    yield (
        "Nobody has the truth in hand, so the fair comparison is with samplers that have a name: one "
        "solver, grid and ending for all problems of a budget, of any library. Errors over the least:\n"
    )
    yield (
        "| evaluations | recommended: geometric mean, worst | rank by geometric mean | best geometric mean "
        "of the others | least worst of the others |\n|---|---|---|---|---|"
    )
    for budget in sorted({key[2] for key in least}):
        known = over_the_least(found, least, (budget,))
        mean, worst = known.pop(f"scoregen: {RECOMMENDED}, its own, its own")
        rank = 1 + sum(other < mean for other, _ in known.values())
        best_mean, best_worst = (min(v) for v in zip(*known.values(), strict=True))
        yield (
            f"| {budget} | {mean:.2f}, {worst:.1f} | {rank} of {len(known) + 1} | {best_mean:.2f} "
            f"| {best_worst:.1f} |"
        )
    yield ""


def tables(found: list[Measured]) -> Iterator[str]:
    """Markdown: the best of scoregen beside the best of the others, and fixed samplers."""
    mine = best(found, lambda origin: origin == "scoregen")
    theirs = best(found, lambda origin: origin != "scoregen")
    usual = {m.key: m.error for m in found if m.sampler == RECOMMENDED}
    least = {k: min(m.error, theirs[k].error if k in theirs else math.inf) for k, m in mine.items()}
    for low, words in ((0, "5 evaluations"), (10, "10 evaluations")):
        above = [math.log(usual[k] / least[k]) for k in usual if k[2] >= low]
        mean, worst = math.exp(statistics.fmean(above)), math.exp(max(above))
        yield (
            f"From {words} on, over all problems here, the error of `{RECOMMENDED}` is {mean:.2f} "
            f"times the least of any sampler measured here (geometric mean), at most {worst:.1f} "
            f"times.\n"
        )
    count = len({(m.origin, m.sampler, m.grid, m.ending) for m in found})
    yield (
        f"The least is the best of a search over {count} combinations of solver, grid and ending, "
        "made anew for every problem and budget with the truth in hand. It is a bound on what "
        "choosing could reach, and no sampler that anyone could have named before.\n"
    )
    yield from among_named(found, least)
    for problem, process in itertools.product(PROBLEMS, PROCESSES):
        keys = [k for k in mine if k[:2] == (problem, process)]
        if not keys:
            continue
        yield f"\n### {problem}, {process}\n"
        yield (
            "| NFE | recommended | best of scoregen | RMS | best of the others | RMS | ratio "
            "| published | ratio |\n|---|---|---|---|---|---|---|---|---|"
        )
        for key in keys:
            m, other, known = mine[key], theirs.get(key), PUBLISHED.get(key[:2])
            cells = [str(key[2]), f"{usual[key]:.1e}", m.shown, f"{m.error:.1e}"]
            if other is None:
                cells += ["–"] * 3
            else:
                shown = f"{other.origin} {other.shown}"
                cells += [shown, f"{other.error:.1e}", f"{m.error / other.error:.2f}"]
            at = known[BUDGETS.index(key[2])] if known else math.nan
            cells += [f"{at:.1e}", f"{m.error / at:.2f}"] if known else ["–"] * 2
            yield "| " + " | ".join(cells) + " |"
    yield "\n### Fixed samplers\n"
    yield (
        "Error over the least of any sampler at that budget, for one solver on one grid with one "
        "ending, over all problems and 10 evaluations or more.\n"
    )
    yield "| sampler | geometric mean | worst |\n|---|---|---|"
    late = over_the_least(found, least, tuple(n for n in BUDGETS if n >= 10))
    ranked = sorted((mean, worst, name) for name, (mean, worst) in late.items())
    for origin in ("scoregen", *PEERS):
        count = 10 if origin == "scoregen" else 3
        for mean, worst, name in [row for row in ranked if row[2].startswith(origin)][:count]:
            yield f"| {name} | {mean:.2f} | {worst:.1f} |"


def plot(found: list[Measured], path: Path) -> None:
    """Error against evaluations, a panel for each problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(PROCESSES), 4, figsize=(16, 10), sharex=True)
    origins = sorted({m.origin for m in found})
    for column, problem in enumerate(PROBLEMS):
        for row, process in enumerate(PROCESSES):
            axis = axes[row][column]
            for origin in origins:
                least = best(found, lambda name, origin=origin: name == origin)
                points = [(k[2], m.error) for k, m in least.items() if k[:2] == (problem, process)]
                wide = 2.5 if origin == "scoregen" else 1.2
                axis.loglog(*zip(*points, strict=True), "o-", ms=3, lw=wide, label=origin)
            if (problem, process) in PUBLISHED:
                axis.loglog(BUDGETS, PUBLISHED[problem, process], "k:", label="published")
            axis.set_title(f"{problem}, {process}")
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("evaluations")
    for row in axes:
        row[0].set_ylabel("RMS error")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def every_run() -> Iterator[Run]:
    """scoregen's and those of the libraries that are installed."""
    yield from scoregen_runs()
    for origin, build in PEERS.items():
        try:
            yield from build()
        except ModuleNotFoundError as error:
            print(f"{origin} is left out: {error}")


def job(task: tuple[str, str, int, str]) -> list[Measured]:
    """All that is measured on one problem and process."""
    name, process, rows, extent = task
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    began = time.perf_counter()
    grids, endings, budgets = list(GRIDS), list(ENDINGS), BUDGETS
    if extent == "quick":
        grids, endings, budgets = ["log-SNR", "focused"], endings[:1], BUDGETS[:6]
    elif extent == "usual":
        grids, endings = ["log-SNR", "Karras 7", "VP time^1/2", "focused"], endings[::3]
    problem = Problem(name, process, rows if name.endswith("2") else rows // 2)
    found = list(measure(problem, list(every_run()), grids, endings, budgets))
    found += recommended(problem, budgets)
    took = time.perf_counter() - began
    print(f"{name}, {process}: {len(found)} errors in {took:.0f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=64, help="starts in 2-D; half in 64-D")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="two problems, two grids")
    size.add_argument("--full", action="store_true", help="every grid and ending")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument(
        "--page", action="store_true", help="write docs/explanation/accuracy.md too"
    )
    options = parser.parse_args()
    began = time.perf_counter()
    extent = "quick" if options.quick else "full" if options.full else "usual"
    names = ["gauss2", "gmm2"] if options.quick else list(PROBLEMS)
    tasks = [(n, p, options.rows, extent) for n in reversed(names) for p in PROCESSES]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        found = [m for part in pool.map(job, tasks, chunksize=1) for m in part]
    found.sort(
        key=lambda m: (list(PROBLEMS).index(m.problem), list(PROCESSES).index(m.process), m.nfe)
    )
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Measured._fields)
        writer.writerows((*m[:-1], f"{m.error:.6e}") for m in found)
    text = "\n".join(tables(found)) + "\n"
    (options.out / "table.md").write_text(text)
    plot(found, options.out / "plot.png")
    print(text)
    print(", ".join(f"{library} {version}" for library, version in versions().items()))
    print(f"{len(found)} errors in {time.perf_counter() - began:.0f} s, written to {options.out}")
    if options.page:
        PAGE.write_text(HEAD + text)


HEAD = """\
# Error per evaluation

How far is a sampler's output from the exact end of the probability-flow path, at equal numbers of
evaluations? The score is exact here, so this is the sampler's own error; a network's comes on top, and
below it a smaller one is not seen. Blue is scoregen, orange the best of diffusers, k-diffusion,
azula and skrample; "recommended" is {py:func}`scoregen.tuning.recommended`, chosen by a rule, the others are the best
of a search with the truth in hand.

![Error against evaluations on four problems and two processes, for the recommended sampler, the best of scoregen and the best of the others](../_generated/accuracy.svg)

Which configuration is best at one budget and problem is partly luck. So fixed samplers, one solver on one
grid, are compared over all problems, from 10 evaluations on:

![For fixed samplers: the geometric mean and the worst of their errors over the least of any sampler](../_generated/accuracy_fixed.svg)

## How it was measured

This page is written by `python benchmarks/samplers/accuracy.py --full --page`, its pictures by
`python benchmarks/figures/accuracy_plots.py`. Errors are root mean squares, over samples and
coordinates, of a sampler's x_0 minus the exact end of the probability-flow path from the same x_T:
float64, exact score, x_0 at sigma = 0.

Every solver goes with every grid, ended at sigma / alpha = 0.002, 0.005, 0.01 or 0.02, with ("x0")
or without a last evaluation there that returns x0; without, x / alpha counts. diffusers,
k-diffusion, azula and skrample get the same grids and endings in the same run. Moves are as many as the
counted evaluations allow. Errors change their sign as a grid is varied, which is why the best one is
partly luck. "Published" is the least error over up to 471 configurations of nine libraries a problem as
shipped, measured apart from this run from starts of its own (and on gmm2 with other modes of the
same kind), so that column is a guide within a few per cent, on gmm2 a rough one.

*gauss2*: standard deviations 1 and 0.1, rotated by 30 degrees, mean (0.5, -0.3). *gauss64*: 0.03 to
1.5 in equal ratios, random rotation, mean 0.3 N(0, 1). *gmm2*:
{py:func}`scoregen.data.sixteen_modes`. *gmm64*: eight modes of means 0.4 N(0, 1), standard
deviations 0.05 to 0.5 along the axes in an order of its own for each. VP: beta from 0.1 to 20, from
t = 1. EDM: from sigma = 80. flow: rectified flow from t = 0.999.

{py:func}`scoregen.tuning.recommended` has one rule for exact scores, which this page measures, and
another for networks, whose errors these methods of high order enlarge: see [](../how-to/few-steps.md). For
exact scores it works in theta = atan(sigma / alpha), where the flow is of the size of the data at
both ends of every process ({py:class}`scoregen.solvers.AngularAB`), with steps that are smallest
near sigma / alpha = 0.3 ({py:class}`scoregen.tuning.SinhSpacing`). With `smooth_end` the last move
follows the flow to sigma = 0 instead of returning the posterior mean x0. That needs a density that
is smooth on the scale of the last positive noise level.

## In numbers

"""

if __name__ == "__main__":
    main()
