"""Does the stated interval of log Z hold the truth? Eight targets, 200 runs each.

    python benchmarks/figures/evidence_coverage.py [--runs 200] [--confidence 0.999] [--out runs/evidence]

Each run draws its own chains and states an interval; the truth is known in closed form. Low
effective sizes belong to the test: two targets are reached in far too few levels. Beside the
coverage stand that of the certificate, the median effective size, the median width of the intervals
that have an upper end, and how often they do.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

import scoregen as sg
from scoregen import energies, mcmc

F64 = torch.float64
STATIC = sg.StaticSDE()


class Target(NamedTuple):
    """A path, exact draws at its start, its kernel and grid, and the truth."""

    model: sg.ScoreModel
    start: Callable[[int, torch.Generator], Tensor]
    kernel: mcmc.Kernel
    grid: Any
    truth: float
    resample: float = 0.0
    groups: int = 10


def normal(dimensions: int, variance: float = 1.0) -> sg.Gaussian:
    return sg.Gaussian(STATIC, torch.zeros(dimensions, dtype=F64), variance)


def path(
    dimensions: int, energy: Callable[[Tensor], Tensor], variance: float = 1.0
) -> energies.GeometricPath:
    return energies.GeometricPath(normal(dimensions, variance), sg.Potential(energy))


def from_normal(dimensions: int, variance: float = 1.0) -> Callable[..., Tensor]:
    def start(count: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(count, dimensions, generator=generator, dtype=F64)
        return math.sqrt(variance) * z

    return start


def quadratic(precision: float) -> Callable[[Tensor], Tensor]:
    return lambda x: precision * x.square().sum(1) / 2


def gaussian_step(precision: float, share: float) -> Callable[[sg.Level], float]:
    """A step that follows the precision t + (1 - t) precision of the path."""
    return lambda t: share / (t.t + (1 - t.t) * precision)


def targets() -> dict[str, Target]:
    two = sg.GaussianMixture(
        STATIC,
        torch.tensor([0.3, 0.7]),
        torch.tensor([[-1.5], [1.5]]),
        torch.tensor([0.3, 0.2]),
    )
    edm = sg.EDMSDE(0.05, 3.0)
    product = energies.Product(
        sg.Gaussian(edm, torch.tensor([-0.5], dtype=F64), 1.0),
        sg.Gaussian(edm, torch.tensor([0.5], dtype=F64), 0.5),
    )

    def product_log_z(t: float) -> float:
        v = 1.5 + 2 * t**2
        return -0.5 * (1 / v + math.log(2 * math.pi * v))

    va, vb = 1.0 + 9.0, 0.5 + 9.0
    joint = 1 / (1 / va + 1 / vb)
    mean = joint * (-0.5 / va + 0.5 / vb)

    def product_start(count: int, generator: torch.Generator) -> Tensor:
        return mean + from_normal(1, joint)(count, generator)

    def log_z(d: int, precision: float) -> float:
        return d / 2 * math.log(2 * math.pi / precision)

    grid = sg.UniformTime
    ladder = sg.Times(*((50 - 50 ** (k / 12)) / 49 for k in range(12)), 0.0)
    quartic = math.gamma(1 / 4) / math.sqrt(2)  # int exp(-x^4 / 4) dx
    return {
        "Gaussian, 1-D": Target(
            path(1, quadratic(4.0)), from_normal(1), sg.MALA(0.2), grid(10), log_z(1, 4.0)
        ),
        "Gaussian, 10-D": Target(
            path(10, quadratic(4.0)), from_normal(10), sg.MALA(0.15), grid(20), log_z(10, 4.0)
        ),
        "Gaussian, 10-D, 2 levels": Target(
            path(10, quadratic(9.0)), from_normal(10), sg.MALA(0.05), grid(2), log_z(10, 9.0)
        ),
        "Gaussian, 20-D, 1 level": Target(
            path(20, quadratic(3.0)), from_normal(20), sg.MALA(0.05), grid(1), log_z(20, 3.0)
        ),
        "two modes": Target(
            path(1, lambda x: 2.0 - two.log_prob(x, 0.0), 4.0),
            from_normal(1, 4.0),
            sg.HMC(0.4, leapfrog_steps=3),
            grid(10),
            -2.0,
        ),
        "quartic, unadjusted": Target(
            path(1, lambda x: x.pow(4).sum(1) / 4),
            from_normal(1),
            sg.Langevin(0.05),
            grid(10),
            math.log(quartic),
        ),
        "noise levels": Target(
            product,
            product_start,
            sg.MALA(lambda t: 0.4 * (0.4 + t.sigma**2)),
            sg.UniformLam(12, start=3.0, stop=0.05),
            product_log_z(0.05) - product_log_z(3.0),
        ),
        "Gaussian, 5-D, resampled": Target(
            path(5, quadratic(50.0)),
            from_normal(5),
            sg.MALA(gaussian_step(50.0, 0.4)),
            ladder,
            log_z(5, 50.0),
            resample=0.5,
            groups=20,
        ),
    }


def covered(target: Target, runs: int, chains: int, confidence: float, name: str) -> dict[str, Any]:
    """Coverage of the interval and of the certificate over independent runs."""
    hits = certified = 0
    sizes, widths = [], []
    for seed in tqdm(range(runs), desc=name, leave=False):
        x = target.start(chains, torch.Generator().manual_seed(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = mcmc.annealed_importance(
                target.kernel,
                target.grid,
                target.model,
                x,
                noise=sg.noise.TorchNoise(torch.Generator().manual_seed(10_000 + seed)),
                confidence=confidence,
                resample=target.resample,
                groups=target.groups,
            )
        hits += found.low < target.truth < found.high
        certified += found.certified_low < target.truth
        sizes.append(found.ess)
        if math.isfinite(found.high):
            widths.append(found.high - found.low)
    return {
        "target": name,
        "coverage": hits / runs,
        "certificate": certified / runs,
        "median_ess": float(torch.tensor(sizes).median()),
        "median_width": float(torch.tensor(widths).median()) if widths else math.inf,
        "upper_end": len(widths) / runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--chains", type=int, default=200)
    parser.add_argument("--confidence", type=float, default=0.999)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'target':<26} {'covers':>7} {'cert.':>6} {'ESS':>6} {'width':>7} {'upper':>6}")
    for name, target in targets().items():
        row = covered(target, args.runs, args.chains, args.confidence, name)
        rows.append(row)
        print(
            f"{name:<26} {row['coverage']:7.3f} {row['certificate']:6.3f} "
            f"{row['median_ess']:6.0f} {row['median_width']:7.3f} {row['upper_end']:6.2f}",
            flush=True,
        )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "coverage.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
