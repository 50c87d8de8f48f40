"""Write docs/reference/samplers.md: every solver, its claims, what is measured; or check it.

python benchmarks/samplers/samplers_page.py           # measure everything, write the page
python benchmarks/samplers/samplers_page.py --check   # measure everything, compare with the page
"""

from __future__ import annotations

import argparse
import inspect
import math
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scoregen import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    DiscreteVPSDE,
    Karras,
    RectifiedSDE,
    Sampler,
    Solver,
    Times,
    UniformLam,
    UniformTime,
    _families,
    solvers,
)
from scoregen.analysis import (
    NotAffineError,
    Order,
    ZigZag,
    amplification,
    gaussian_model,
    output_law,
    strong_error,
)
from scoregen.models import Counted
from scoregen.noise import SampleNoise

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "samplers.md"
PROCESSES: dict[str, SDE] = {
    "VP": VPSDE(),
    "VE": VESDE(),
    "EDM": EDMSDE(),
    "rectified": RectifiedSDE(),
    "DDPM linear": DiscreteVPSDE.linear(1000),
    "DDPM cosine": DiscreteVPSDE.cosine(1000),
}
VARIANCES = (0.05, 0.5, 2.0)
ENDS = (-1.5, 1.5)  # log(alpha / sigma) at the ends of the grids on which orders are measured
PAIRS = ((32, 64), (64, 128), (128, 256))
DISTANCE_STEPS = (8, 16, 32, 64, 128)
SLACK = 0.2
TOLERANCE_LADDER = (1e-2, 1e-3, 1e-4, 1e-5)

# Instances beyond `Class()`, as keyword arguments; a name in brackets is built first.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "AngularAB": [{"order": 2}, {"order": 3}, {"order": 4}, {"order": 4, "smooth_end": True}],
    "Ancestral": [{"variance": "small"}, {"variance": "large"}],
    "BAOAB": [{"step_size": 0.05}],
    "DDIM": [{}, {"eta": 0.5}, {"eta": 1.0}],
    "DEIS": [{"order": 2}, {"order": 3}, {"order": 4}],
    "DPMSolver": [{"order": 2}, {"order": 3}],
    "DPMSolverPP": [{"order": 2}, {"order": 3}],
    "DPMSolver3MAsPublished": [{"form": "x0"}, {"form": "eps"}],
    "DPMSolverSingle": [
        {"order": order, "form": form} for form in ("eps", "x0") for order in (2, 3)
    ],
    "DualAveraging": [{"solver": ("MALA", {"step_size": 0.02}), "warmup": 100}],
    "EulerStart": [{"solver": ("DPMSolverPP", {"order": n})} for n in (2, 3)],
    "ExponentialAB": [
        {"order": order, "form": form} for form in ("x0", "eps") for order in (2, 3, 4)
    ],
    "ExponentialEuler": [{}, {"eta": 0.5}],
    "GammaAveraging": [{"gamma": 1.5}, {"gamma": 2.0}],
    "HMC": [{"step_size": 0.05}],
    "KarrasHeun": [{}, {"churn": 0.1}],
    "LMS": [{"order": 2}, {"order": 3}, {"order": 4}],
    "Langevin": [{"step_size": 1e-3}],
    "MALA": [{"step_size": 0.02}],
    "OBABO": [{"step_size": 0.05}],
    "PNDM": [{"start": "runge-kutta"}, {"start": "heun"}],
    "PredictorCorrector": [
        {"corrector": ("Langevin", {"step_size": 1e-3})},
        {"corrector": ("SNRLangevin", {})},
    ],
    "ProbabilityFlow": [
        {"tableau": tableau}
        for tableau in (solvers.EULER, solvers.MIDPOINT, solvers.HEUN, solvers.RK4)
    ],
    "SASolver": [{}, {"tau": 0.0}, {"predictor_order": 3, "corrector_order": 3}],
    "SDEDPMSolverPP": [
        *({"max_order": n} for n in (1, 2, 3)),
        {"max_order": 2, "eta": 0.0},
    ],
    "SGLD": [{"step_size": 0.01}],
    "StochasticHeun": [{}, {"eta": 0.0}],
    "UniPC": [
        *({"order": n, "form": form} for form in ("x0", "eps") for n in (1, 2, 3)),
        {"order": 2, "variant": "bh1"},
        {"order": 2, "variant": "bh2"},
    ],
    "VelocityAB": [{"order": 2}, {"order": 3}, {"order": 4}],
}

INTRODUCTION = """\
# Samplers

A sampler is a solver on a [grid](grids.md): `Sampler(DPMSolverPP(), UniformLam(20))`. This page lists the
solvers and what is known of each. It is written by `python benchmarks/samplers/samplers_page.py` from
measurements, none of them random: for Gaussian data {py:func}`scoregen.analysis.output_law` gives the
exact law of any sampler that is affine in its inputs. Tests fail when a measured order lies more than
0.2 below the claim. Which one to take for few evaluations: [few evaluations](../how-to/few-steps.md).

## Methods

*ODE* solvers draw no noise, *SDE* solvers do, *MCMC* kernels stay at their level, *adaptive* ones choose
their steps. Names link to the arguments; a box above each table hides the rows that do not hold its words.
"""

ORDERS = """
## Orders

*Deterministic* is the order of the error of the output against the exact probability-flow map, for
noise-free solvers; *law* the order of the W2 distance of the output's law from the exact one; the columns
of the processes have both. Measured on a Gaussian with variances 0.05, 0.5 and 2 between the interior
levels log(alpha / sigma) = -1.5 and 1.5, in float64, by doubling the steps; each figure is the smallest
of three grids: equal steps in log(alpha / sigma), Karras' (rho = 7), and zig-zag, whose steps
alternate 3 : 1. A figure above the claim is super-convergence on Gaussian data, no promise. "exact"
means that the error is rounding alone. Evaluations per move are counted at the model; "+ k" are
those that a start of matching order costs once. `AngularAB` and `UniPC` count the past evaluations
that predict, and their corrector adds one order to that, 4 at most. The DDPM columns are chains of
1,000 knots, linear and cosine betas; their rates jump at the knots, and methods whose polynomials
are of time there are ones of the angle atan(sigma / alpha).
"""

AMPLIFICATION = """
## Amplification of the network's error

What a unit error in one evaluation does to the output, largest and root of the sum of squares over
the evaluations, for an error made in eps, x0 or v: {py:func}`scoregen.analysis.amplification`, exact,
for Gaussian data of variance 0.25 on `VPSDE()`. Independent errors of size e move the output by the second
figure times e. The grids have 10 moves, the last one to clean data. A figure above 1 in the form that a
network predicts means that its error grows on the way; 3 and more is what an explosion on a trained
network looks like beforehand.
"""

TOLERANCES = """
## Adaptive solvers

They claim no order; their error follows the tolerance. Root mean square distance to the exact flow
of 256 samples of the same Gaussian (EDM, 80 to 0.02), and evaluations per sample, at
rtol = atol = tolerance.
"""

DISTANCES = """\
## Distances

Exact W2 on the same Gaussian, sigma from 80 to 0.02 in n equal ratios (EDM), begun at the exact
law. Every first-order method misses the spread of every direction by a constant times L / n,
L = log(80 / 0.02): DDIM by -1/4, ancestral sampling by -1/2 (both always under-disperse), reverse
diffusion by +1/2.
"""


class Row(NamedTuple):
    """One solver in the table of orders; the measured cells are empty where nothing was measured."""

    label: str
    nfe: str
    order: str
    weak_order: str

    def line(self, measured: list[str]) -> str:
        return "| " + " | ".join((*self, *measured)) + " |"


def solver_classes() -> Iterator[type[Solver]]:
    """Every concrete public solver, by name."""
    found = _families.classes("solver")
    return (found[n] for n in sorted(found, key=str.lower))


def instances() -> list[Solver]:
    """The solvers on the page."""
    classes = {cls.__name__: cls for cls in solver_classes()}

    def build(value: Any) -> Any:
        if isinstance(value, tuple) and len(value) == 2 and value[0] in classes:
            return classes[value[0]](**value[1])
        return value

    made = []
    for name, cls in classes.items():
        needed = [
            p
            for p in inspect.signature(cls).parameters.values()
            if p.default is p.empty and p.kind is not p.VAR_POSITIONAL
        ]
        for arguments in VARIANTS.get(name, [{}] if not needed else []):
            made.append(cls(**{key: build(value) for key, value in arguments.items()}))
    # a population's rows belong together, so no row alone has a law
    return [solver for solver in made if not solver.population]


def methods() -> Iterator[str]:
    """A line for each class: what it does, of which kind it is, what it does not do, its source."""
    made: dict[type[Solver], list[Solver]] = {cls: [] for cls in solver_classes()}
    for solver in instances():
        made[type(solver)].append(solver)
    for cls, built in made.items():
        name = f"{{py:obj}}`~{cls.__module__.rpartition('.')[0]}.{cls.__name__}`"
        kinds = ", ".join(dict.fromkeys(kind(solver) for solver in built)) or "–"
        words = []
        for limit in dict.fromkeys(limit for solver in built for limit in limits(solver)):
            every = all(limit in limits(solver) for solver in built)
            words.append(limit if every else f"with some settings {limit}")
        cells = (name, kinds, update(cls), "; ".join(words) or "–", paper(cls))
        yield f"| {' | '.join(cells)} |"


def unbuilt() -> Iterator[str]:
    """Lines for solvers that need arguments and have no entry in VARIANTS: no figures."""
    built = {type(solver) for solver in instances()}
    for cls in solver_classes():
        if cls not in built:
            yield Row(f"`{cls.__name__}(...)`", "–", "–", "–").line(["–"] * len(PROCESSES))


def label(solver: Solver) -> str:
    """A constructor call without the arguments that have their defaults."""
    shown = []
    for name, parameter in inspect.signature(type(solver)).parameters.items():
        value = getattr(solver, name)
        if value != parameter.default or (
            type(solver).__name__ in VARIANTS and _varied(solver, name)
        ):
            text = getattr(value, "name", None) or (
                label(value) if isinstance(value, Solver) else repr(value)
            )
            shown.append(f"{name}={text}")
    return f"{type(solver).__name__}({', '.join(shown)})"


def _varied(solver: Solver, name: str) -> bool:
    return all(name in arguments for arguments in VARIANTS[type(solver).__name__])


def paper(cls: type[Solver]) -> str:
    """arXiv numbers that the docstring cites."""
    numbers = re.findall(r"\b\d{4}\.\d{4,5}\b", inspect.getdoc(cls) or "")
    links = [f"[{n}](https://arxiv.org/abs/{n})" for n in dict.fromkeys(numbers)]
    return ", ".join(links) or "–"


def update(cls: type[Solver]) -> str:
    """The first line of the docstring, without what it cites."""
    text = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    text = re.sub(r"\s*\([^()]*\d{4}[^()]*\)", "", text)
    return text.replace("|", "\\|").rstrip(".:")


def grids(sde: SDE) -> dict[str, Any]:
    """Grids between two interior levels, with a count of steps."""
    start, stop = (float(sde.time(torch.tensor(lam, dtype=torch.float64))) for lam in ENDS)
    return {
        "uniform": UniformLam(32, start=start, stop=stop),
        "karras": Karras(32, start=start, stop=stop),
        "zigzag": ZigZag(32, start=start, stop=stop),
    }


@cache
def errors(solver: Solver, process: str, grid: str, n: int) -> tuple[float, float]:
    """(distance to the exact flow, or NaN with noise; distance of the law) in n moves."""
    sde = PROCESSES[process]
    law = output_law(Sampler(solver, replace(grids(sde)[grid], steps=n)), sde, VARIANCES)
    return math.nan if len(law.draws) else law.flow_error, law.w2


def slope(solver: Solver, process: str, kind: str, grid: str) -> float:
    """Observed order of one pair of steps, further out while the claim is not reached."""
    which = ("flow", "law").index(kind)
    claim = (solver.order, solver.weak_order)[which]
    found = -math.inf
    for pair in PAIRS:
        found = Order.of(pair, [errors(solver, process, grid, n)[which] for n in pair]).last
        if claim is None or found >= claim - SLACK:
            break
    return found


def measured(solver: Solver, process: str, kind: str) -> float:
    """The smallest observed order of the three grids."""
    return min(slope(solver, process, kind, grid) for grid in ("uniform", "karras", "zigzag"))


@cache
def affine(solver: Solver) -> bool:
    """Whether the solver takes a falling grid and has an exact law there."""
    if solver.direction == "fixed":
        return False
    try:
        errors(solver, "EDM", "uniform", 4)
    except NotAffineError:
        return False
    return True


def noisy(solver: Solver) -> bool:
    """Whether the solver draws noise on a falling grid."""
    return math.isnan(errors(solver, "EDM", "uniform", 4)[0])


def number(value: float) -> str:
    return "exact" if math.isinf(value) else f"{value:.1f}"


def nfe(solver: Solver) -> str:
    """Evaluations per move, and what the first moves cost beyond."""
    if solver.nfe is None or not affine(solver):
        return "–" if solver.nfe is None else str(solver.nfe)
    sde = PROCESSES["EDM"]
    counts = [
        output_law(Sampler(solver, UniformLam(n, 4.0, 0.2)), sde, (1.0,)).nfe for n in (8, 16)
    ]
    each = (counts[1] - counts[0]) / 8
    extra = counts[0] - 8 * each
    return f"{each:g}" + (f" + {extra:g}" if extra else "")


def starts_from_pure_noise(solver: Solver) -> bool:
    """Whether it runs on rectified flow from t = 1, where no signal is left."""
    sde = PROCESSES["rectified"]
    try:
        Sampler(solver, UniformTime(4)).run(
            gaussian_model(sde, (1.0,)), torch.ones(2, 1, dtype=torch.float64), noise=SampleNoise(0)
        )
    except (ValueError, RuntimeError, ZeroDivisionError, OverflowError):
        return False
    return True


def limits(solver: Solver) -> list[str]:
    """What the solver does not do."""
    known = {"down": "towards data only", "fixed": "stays at its level", "any": "also turns"}
    words = [known[solver.direction]] if solver.direction in known else []
    if solver.direction != "fixed":
        if not affine(solver):
            words.append("steps follow x: no exact law")
        if not starts_from_pure_noise(solver):
            words.append("needs signal (alpha > 0) at the start")
    return words


def kind(solver: Solver) -> str:
    """How it moves, in one word."""
    if solver.direction == "fixed":
        return "MCMC"
    if not affine(solver):
        return "adaptive" if solver.nfe is None else "SDE"
    return "SDE" if noisy(solver) else "ODE"


def row(solver: Solver) -> Row:
    """The cells that need no ladder of steps."""
    orders = ["–" if order is None else str(order) for order in (solver.order, solver.weak_order)]
    return Row(f"`{label(solver)}`", nfe(solver), *orders)


def cells(solver: Solver) -> list[str]:
    """Measured orders, deterministic / law, on each process."""
    if not affine(solver):
        return ["–"] * len(PROCESSES)
    found = []
    for process in PROCESSES:
        flow = "–" if noisy(solver) else number(measured(solver, process, "flow"))
        found.append(f"{flow} / {number(measured(solver, process, 'law'))}")
    return found


def distances(solver: Solver) -> list[str]:
    """Exact W2 on the reference problem."""
    sampler = Sampler(solver, UniformLam(8, stop=0.02))
    return [
        f"{output_law(sampler.with_steps(n), PROCESSES['EDM'], VARIANCES).w2:.1e}"
        for n in DISTANCE_STEPS
    ]


FORMS = ("eps", "x0", "v")
AMPLIFYING = {"UniformLam": UniformLam(10), "Karras": Karras(10)}


def gains(solver: Solver, grid: str) -> list[str]:
    """Largest and root-sum-square gain of an error, by form."""
    sampler = Sampler(solver, AMPLIFYING[grid])
    found = (amplification(sampler, PROCESSES["VP"], (0.25,), form) for form in FORMS)
    return [f"{gain.largest:.2f} / {gain.independent:.2f}" for gain in found]


@cache
def adaptive(solver: Solver) -> bool:
    """Whether it chooses its steps by a tolerance, and draws no noise."""
    names = inspect.signature(type(solver)).parameters
    return {"rtol", "atol"} <= set(names) and solver.direction == "both"


def tolerances(solver: Solver) -> list[str]:
    """Error to the exact flow and evaluations, tolerance by tolerance."""
    sde = PROCESSES["EDM"]
    model = gaussian_model(sde, VARIANCES)
    x = model.sample(256, 80.0)
    truth = model.flow(x, 80.0, 0.02)
    found = []
    for tolerance in TOLERANCE_LADDER:
        tight = type(solver)(**{**vars(solver), "rtol": tolerance, "atol": tolerance})
        with Counted(model) as count:
            error = strong_error(Sampler(tight, Times(80.0, 0.02)), model, x, truth=truth)
        found.append(f"{error:.1e} in {count.rows / len(x):.0f}")
    return found


def _named(line: str) -> str:
    return line.split("(")[0].lower()


def table(*columns: str) -> list[str]:
    """The head of a table."""
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]


def page() -> str:
    """The whole page."""
    every = instances()
    exact = [solver for solver in every if affine(solver)]
    lines = [INTRODUCTION, *table("solver", "kind", "method", "limits", "paper"), *methods()]
    lines += [ORDERS, *table("solver", "NFE per move", "order", "law", *PROCESSES)]
    lines += sorted(
        [*(row(solver).line(cells(solver)) for solver in every), *unbuilt()], key=_named
    )
    lines += ["", DISTANCES, *table("solver", *(f"n = {n}" for n in DISTANCE_STEPS))]
    lines += [f"| `{label(solver)}` | {' | '.join(distances(solver))} |" for solver in exact]
    lines.append(AMPLIFICATION)
    for grid in AMPLIFYING:
        lines += [f"\n### On {grid}(10)\n", *table("solver", *FORMS)]
        lines += [f"| `{label(solver)}` | {' | '.join(gains(solver, grid))} |" for solver in exact]
    lines += [TOLERANCES, *table("solver", *(f"{tolerance:g}" for tolerance in TOLERANCE_LADDER))]
    for solver in every:
        if adaptive(solver):
            lines.append(f"| `{label(solver)}` | {' | '.join(tolerances(solver))} |")
    return "\n".join(lines) + "\n"


def differences(old: str, new: str) -> list[str]:
    """Lines that differ by more than the last printed digit of a number."""
    before, after = old.splitlines(), new.splitlines()
    wrong = [] if len(before) == len(after) else [f"{len(before)} lines, now {len(after)}"]
    pattern = re.compile(r"(?<![\w.])\d+\.\d+(?:e[-+]\d+)?(?![\w.])")
    for a, b in zip(before, after, strict=False):
        pairs = list(zip(pattern.findall(a), pattern.findall(b), strict=False))
        close = all(math.isclose(float(x), float(y), rel_tol=0.1, abs_tol=0.11) for x, y in pairs)
        if pattern.sub("#", a) != pattern.sub("#", b) or not close:
            wrong.append(f"- {a}\n+ {b}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=textwrap.dedent(__doc__ or ""))
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = page()
    if not arguments.check:
        PAGE.write_text(text)
        return 0
    wrong = differences(PAGE.read_text() if PAGE.is_file() else "", text)
    if wrong:
        print(
            f"{PAGE} is out of date; run python benchmarks/samplers/samplers_page.py",
            *wrong,
            sep="\n",
        )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
