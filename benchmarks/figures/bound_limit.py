"""The variational bound of a chain against its continuous limit, as the number of knots grows.

On Gaussian data with the exact model every term is integrated exactly by cubature, so the curves
hold no sampling noise. Writes docs/_generated/bound_limit.png and prints the figures.

python benchmarks/figures/bound_limit.py [--out docs/_generated/bound_limit.png]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from scoregen import VPSDE, Gaussian
from scoregen.likelihood import bound, continuous_bound
from scoregen.noise import ReplayNoise

STEPS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
VARIANCES = torch.tensor([0.05, 0.7, 0.8], dtype=torch.float64)


def cubature(model: Gaussian, draws: int) -> tuple[Tensor, ReplayNoise]:
    """Data and noise whose mean over the rows is exact for polynomials of degree 3."""
    n = 2 * len(VARIANCES)
    points = math.sqrt(n) * torch.eye(n, dtype=torch.float64)
    points = torch.cat([points, -points])
    x = model.mean + model.variances.sqrt() * points[:, : len(VARIANCES)]
    return x, ReplayNoise([points[:, len(VARIANCES) :]] * draws)


def curves() -> tuple[dict[str, list[float]], float, float]:
    """sum L_{t-1} by variance and number of knots, its limit, and the limit in closed form."""
    sde = VPSDE(t_min=0.01)
    model = Gaussian(sde, torch.zeros(3), VARIANCES)
    ends = [sde.level(sde.t_max), sde.level(sde.t_min)]
    found: dict[str, list[float]] = {"small": [], "large": []}
    for steps in STEPS:
        lam = torch.linspace(ends[0].lam, ends[1].lam, steps, dtype=torch.float64)
        times = [sde.t_max, *sde.time(lam)[1:-1].tolist(), sde.t_min]
        for variance, values in found.items():
            x, noise = cubature(model, steps)
            terms = bound(model, x, variance=variance, times=times, noise=noise)  # type: ignore[arg-type]
            values.append(float(terms.steps.sum(1).mean()))
    x, noise = cubature(model, 100)
    limit = float(continuous_bound(model, x, nodes=64, noise=noise).steps.sum(1).mean())
    logs = [torch.log1p((level.alpha / level.sigma) ** 2 * VARIANCES).sum() for level in ends]
    return found, limit, float(logs[1] - logs[0]) / 2


def plot(found: dict[str, list[float]], limit: float, path: Path) -> None:
    """The bound, and its distance to the limit, against the number of knots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for variance, values in found.items():
        left.plot(STEPS, values, "o-", ms=3, label=variance)
        right.loglog(STEPS, [v - limit for v in values], "o-", ms=3, label=variance)
    left.axhline(limit, color="k", lw=0.8, ls="--", label="continuous time")
    right.loglog(STEPS, [4 / n for n in STEPS], color="k", lw=0.8, ls=":", label="1 / T")
    left.set(xscale="log", ylim=(limit - 0.5, limit + 6), xlabel="knots T", ylabel="nats")
    right.set(xlabel="knots T", ylabel="above the limit, nats")
    left.set_title("sum of the bound's inner terms", fontsize=10)
    right.set_title("distance to the limit", fontsize=10)
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/_generated/bound_limit.png"))
    options = parser.parse_args()
    found, limit, closed = curves()
    print("| knots | small | large |\n|---|---|---|")
    for i, steps in enumerate(STEPS):
        print(f"| {steps} | {found['small'][i]:.4f} | {found['large'][i]:.4f} |")
    print(f"\nlimit by quadrature {limit:.6f}, in closed form {closed:.6f}")
    plot(found, limit, options.out)


if __name__ == "__main__":
    main()
