"""Few evaluations: the recommended and the tuned sampler beside others, on three trained networks.

    python benchmarks/samplers/few_steps.py [--tune] [--networks eps x0 v] [--out runs/few_steps] [--page]

First part: root mean square, over samples and coordinates, of a sampler's x_0 minus the end of a
fine trajectory (100 moves of UniPC-2 on UniformLam) of the *same network* from the same noise;
float32, data of standard deviation about 0.75. With it the largest gain of an error in eps
(`scoregen.analysis.amplification`, data of standard deviation 1/2). Second part, with --tune:
`scoregen.tuning.tune` at 3 to 8 evaluations, judged on noise that neither fit nor choice has seen,
beside the best of the 96 hand-made samplers that it begins at; for the digits also by how much the
Frechet distance of 1,000 samples exceeds that of the network's own flow, over three seeds.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accuracy import PROBLEMS
from torch import Tensor

import scoregen as sg
from scoregen.analysis import amplification
from scoregen.grids import SinhLam
from scoregen.metrics import Frechet, digits_features
from scoregen.noise import ReplayNoise, SampleNoise
from scoregen.solvers import IPNDM, AngularAB, EulerStart, ExponentialAB
from scoregen.tuning import Fit, Tuned, candidates, recommended, tune

DATA = Path(__file__).with_name("data")
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "few-steps.md"
START, END = "<!-- figures", "<!-- end of figures -->"
BUDGETS = (5, 8, 10, 20, 50)
TUNED = (3, 4, 5, 6, 8)
FINE = 100
DRAWN, SEEDS = 1000, (101, 102, 103)


class Network(NamedTuple):
    """A model, the condition of its trajectories, and the shape of a sample."""

    model: sg.ScoreModel
    condition: dict[str, Any]
    event: tuple[int, ...]

    def bound(self, rows: int) -> sg.ScoreModel:
        given = {k: v[torch.arange(rows) % len(v)] for k, v in self.condition.items()}
        return self.model.given(**given)


def networks(names: list[str]) -> dict[str, Network]:
    """The trained ones; a name of accuracy.py's problems is an exact score on VP."""
    found = {}
    for name in names:
        if name == "v":
            found[name] = Network(sg.digits_model(), {"label": torch.arange(10)}, (1, 8, 8))
        elif name in ("eps", "x0"):
            found[name] = Network(sg.load(DATA / f"digits_{name}"), {}, (1, 8, 8))
        else:
            model: Any = PROBLEMS[name](sg.VPSDE())
            found[name] = Network(model, {}, model.event)
    return found


def usual(n: int) -> dict[str, sg.Sampler]:
    """Samplers as papers and other libraries have them, and the one that 0.1 recommended."""
    angular = EulerStart(AngularAB(4, smooth_end=True, bounded=False))
    lam = sg.UniformLam(n)
    return {
        "recommended by 0.1": sg.Sampler(angular, SinhLam(n)),
        "the same, UniformLam": sg.Sampler(angular, lam),
        "DPM++2M, UniformLam": sg.Sampler(EulerStart(sg.DPMSolverPP(2)), lam),
        "UniPC-2, UniformLam": sg.Sampler(sg.UniPC(2), lam),
        "eps-AB-3, UniformLam": sg.Sampler(EulerStart(ExponentialAB(3, "eps")), lam),
        "IPNDM-3, Karras": sg.Sampler(IPNDM(3), sg.Karras(n)),
        "DDIM, UniformTime": sg.Sampler(sg.DDIM(), sg.UniformTime(n)),
    }


def end(sampler: sg.Sampler, model: sg.ScoreModel, z: Tensor) -> Tensor:
    """From z as x / hypot(alpha, sigma) at the sampler's first time."""
    first = sampler.levels(model.sde)[0]
    x = math.hypot(first.alpha, first.sigma) * z
    return sampler.run(model, x, noise=ReplayNoise([]))


def noise(network: Network, rows: int, seed: int = 2024) -> Tensor:
    level = network.model.sde.level(network.model.sde.t_max)
    return SampleNoise(seed)(torch.empty(rows, *network.event), level, level)


class Row(NamedTuple):
    network: str
    nfe: int
    sampler: str
    error: float
    gain: float


def measure(name: str, network: Network, rows: int, best_of_96: bool) -> list[Row]:
    model, z = network.bound(rows), noise(network, rows)
    truth = end(sg.Sampler(sg.UniPC(2), sg.UniformLam(FINE)), model, z)
    print(f"{name}: standard deviation of the ends {float(truth.std()):.3f}", flush=True)
    found = []
    for nfe in BUDGETS:
        every = {"recommended": recommended(model, nfe), **usual(nfe)}
        for title, sampler in every.items():
            error = float((end(sampler, model, z) - truth).square().mean().sqrt())
            gain = amplification(sampler, model.sde, (0.25,)).largest
            found.append(Row(name, nfe, title, error, gain))
        if best_of_96 and nfe <= 10:
            least = min(
                float((end(s, model, z) - truth).square().mean().sqrt())
                for s in candidates(model.sde, nfe)
            )
            found.append(Row(name, nfe, "best of 96", least, math.nan))
    return found


def table(found: list[Row]) -> list[str]:
    """A table for each network, a line for each sampler; last the recommended one over the best."""
    lines, ratios = [], []
    for network in dict.fromkeys(row.network for row in found):
        cells = {(row.sampler, row.nfe): row for row in found if row.network == network}
        budgets = list(dict.fromkeys(nfe for _, nfe in cells))
        lines += [f"| {network} | {' | '.join(f'{n} evaluations' for n in budgets)} |"]
        lines += ["|" + "---|" * (len(budgets) + 1)]
        for title in dict.fromkeys(sampler for sampler, _ in cells):
            shown = [shown_as(cells.get((title, nfe))) for nfe in budgets]
            lines.append(f"| {title} | {' | '.join(shown)} |")
        over = [
            cells["recommended", n].error / min(r.error for (_, m), r in cells.items() if m == n)
            for n in budgets
        ]
        lines += [f"| recommended / best | {' | '.join(f'{ratio:.2f}' for ratio in over)} |", ""]
        ratios += over
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    lines.append(
        f"RMS error, in brackets the largest gain of an error in eps. The recommended sampler over "
        f"the best of its column: geometric mean {mean:.2f}, worst {max(ratios):.2f}."
    )
    return lines


def shown_as(row: Row | None) -> str:
    """Error and gain; the best of 96 has no one gain."""
    if row is None:
        return "–"
    return f"{row.error:.3g}" + (f" ({row.gain:.2g})" if row.gain > 0 else "")


@cache
def flow(name: str, seed: int) -> tuple[sg.ScoreModel, Tensor, float]:
    """A network with its condition bound, starts of a seed, the Frechet distance of its own flow."""
    network = networks([name])[name]
    model, z = network.bound(DRAWN), noise(network, DRAWN, seed)
    return model, z, frechet(sg.Sampler(sg.UniPC(2), sg.UniformLam(FINE)), model, z)


def frechet(sampler: sg.Sampler, model: sg.ScoreModel, z: Tensor) -> float:
    with torch.no_grad():
        x = end(sampler, model, z)
    return Frechet(digits_features)(x, sg.digits("train").x).value


def beyond(name: str, sampler: sg.Sampler) -> str:
    """Frechet distance beyond the flow's from the same starts: mean and standard error over seeds."""
    if name not in ("eps", "x0", "v"):
        return "–"
    gaps = []
    for seed in SEEDS:
        model, z, own = flow(name, seed)
        gaps.append(frechet(sampler, model, z) - own)
    return f"{statistics.fmean(gaps):.3f} ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.3f}"


def tuned(name: str, network: Network, nfe: int, trajectories: int | None) -> tuple[Any, ...]:
    """One fit: held-out figures, ratios, and what it cost."""
    spent = time.process_time()
    with sg.models.Counted(network.model) as counted:
        sampler = tune(
            network.model, nfe, event=network.event, condition=network.condition or None,
            trajectories=trajectories, progress=False,
        )  # fmt: skip
    solver = sampler.solver
    if not isinstance(solver, Tuned) or not solver.before or not solver.training:
        raise TypeError("tune returns a Tuned solver with its figures")
    held = solver.held_out or Fit(math.nan, math.nan, math.nan)
    row = (
        name, nfe, solver.before.rms, solver.before.median, held.rms, held.median,
        held.rms / solver.training.rms, counted.rows, time.process_time() - spent,
        beyond(name, recommended(network.model, nfe)), beyond(name, sampler),
    )  # fmt: skip
    print(", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row), flush=True)
    return row


def tuned_table(rows: list[tuple[Any, ...]]) -> list[str]:
    lines = [
        "| network | NFE | best of 96: RMS, median | tuned: RMS, median | times less: RMS, median | "
        "held-out / training RMS | network rows | CPU seconds | Fréchet beyond the flow: recommended "
        "| tuned |",
        "|" + "---|" * 10,
    ]
    for name, nfe, a, b, c, d, gap, count, seconds, usual_gap, tuned_gap in rows:
        lines.append(
            f"| {name} | {nfe} | {a:.2g}, {b:.2g} | {c:.2g}, {d:.2g} | {a / c:.1f}, {b / d:.1f}"
            f" | {gap:.2f} | {count:,} | {seconds:.0f} | {usual_gap} | {tuned_gap} |"
        )
    return lines


def write_page(sections: dict[str, list[str]]) -> None:
    """Put each table between its marks; the text around them stays."""
    text = PAGE.read_text()
    for title, lines in sections.items():
        mark = f"{START}: {title} -->"
        head, found, tail = text.partition(mark)
        if not found:
            raise ValueError(f"{PAGE} has no line {mark}")
        text = head + mark + "\n\n" + "\n".join(lines) + "\n\n" + tail[tail.index(END) :]
    PAGE.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["eps", "x0", "v"])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--best-of-96", action="store_true", help="the hand-made ones in the table")
    parser.add_argument("--tune", nargs="*", default=[], help="NETWORK:NFE, or all")
    parser.add_argument("--trajectories", type=int)
    parser.add_argument("--skip-table", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/few_steps"))
    parser.add_argument("--page", action="store_true", help="write docs/how-to/few-steps.md too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    sections: dict[str, list[str]] = {}
    if not options.skip_table:
        with torch.no_grad():
            found = [
                row
                for name, network in networks(options.networks).items()
                for row in measure(name, network, options.rows, options.best_of_96)
            ]
        with (options.out / "errors.csv").open("w", newline="") as file:
            csv.writer(file).writerows([Row._fields, *found])
        sections["errors"] = table(found)
    wanted = options.tune
    if wanted == ["all"]:
        every = [*options.networks, "gauss64", "gmm64"]
        wanted = [f"{name}:{nfe}" for name in every for nfe in TUNED]
    if wanted:
        pairs = [item.partition(":") for item in wanted]
        models = networks(list(dict.fromkeys(name for name, _, _ in pairs)))
        rows = [tuned(n, models[n], int(nfe), options.trajectories) for n, _, nfe in pairs]
        with (options.out / "tuned.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        sections["tuned"] = tuned_table(rows)
    for lines in sections.values():
        print("\n".join(lines), end="\n\n")
    if options.page:
        write_page(sections)


if __name__ == "__main__":
    main()
