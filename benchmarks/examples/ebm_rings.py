"""One energy network, four objectives, three samplers: rings in the plane.

    python benchmarks/examples/ebm_rings.py

Writes docs/_static/examples/ebm_rings.png and .txt. Every objective learns the same thing, the
energy of the data noised by sigma = 0.1, so every result has one yardstick: fresh noised data.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from scipy.stats import ks_2samp
from torch import Tensor, nn

import scoregen as sg
from scoregen.mcmc import ess

OUT = Path(__file__).resolve().parents[2] / "docs" / "_static" / "examples"
T = 0.1
SDE = sg.EDMSDE(t_min=0.01, t_max=10.0)


class Net(nn.Module):
    """E(x) = |x|^2 / 8 + MLP(features of x) + c; the clock is not needed at one level."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.inlet = nn.Linear(2, width)
        self.body = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.outlet = nn.Linear(width, 1)
        with torch.no_grad():
            self.inlet.weight.mul_(4)  # rings 0.4 apart need short waves

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        return x.square().sum(1) / 8 + self.outlet(self.body(self.inlet(x))).squeeze(1)


def fixed(sde: sg.SDE, count: int, generator: torch.Generator) -> Tensor:
    return torch.full((count,), T, dtype=torch.float64)


def objectives(x: Tensor) -> dict[str, tuple[Any, int]]:
    """Name -> (objective, training steps)."""
    noise = sg.Gaussian(SDE, x.mean(0), torch.cov(x.mT))
    g = torch.Generator().manual_seed(5)
    buffer = sg.objectives.ReplayBuffer(torch.randn(4096, 2, generator=g))
    moves = sg.Sampler(sg.MALA(0.004), sg.Constant(T, 10))
    return {
        "denoising": (sg.DenoisingScoreMatching(fixed, sg.objectives.Simple()), 1500),
        "sliced": (sg.objectives.SlicedScoreMatching(t=T), 1500),
        "persistent CD": (sg.objectives.PersistentContrastiveDivergence(moves, buffer, t=T), 1500),
        "noise contrastive": (sg.objectives.NoiseContrastive(noise, draws=4, t=T), 3000),
    }


def train(objective: Any, x: Tensor, steps: int) -> sg.energies.EnergyNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sg.energies.EnergyNetwork(Net(), SDE)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    )
    g = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(len(x), (512,), generator=g)
        optimiser.zero_grad()
        objective(model, x[rows], generator=g).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(model)
    return average.module


SAMPLERS: dict[str, sg.Solver] = {
    "ULA": sg.Langevin(0.002),
    "MALA": sg.mcmc.DualAveraging(sg.MALA(0.002), warmup=200),
    "HMC": sg.mcmc.DualAveraging(sg.HMC(0.06, leapfrog_steps=8), warmup=200),
}


def apart(x: Tensor, y: Tensor) -> float:
    """Kolmogorov-Smirnov distance of the radii: sees rings, where transport hardly does."""
    return float(ks_2samp(x.norm(dim=1).numpy(), y.norm(dim=1).numpy()).statistic)


def main() -> None:
    torch.set_num_threads(1)
    x = sg.data.targets.rings(20_000, seed=0)
    fresh = SDE.perturb(
        sg.data.targets.rings(4000, seed=1),
        T,
        torch.randn(4000, 2, generator=torch.Generator().manual_seed(2)),
    )
    again = SDE.perturb(
        sg.data.targets.rings(4000, seed=3),
        T,
        torch.randn(4000, 2, generator=torch.Generator().manual_seed(4)),
    )
    distance = sg.metrics.SlicedWasserstein()
    floor = distance(again, fresh).value
    lines = [
        "| objective | sampler | sliced Wasserstein | KS of the radius | acceptance "
        "| ESS per 1000 gradients |",
        "|---|---|---|---|---|---|",
        f"| data against data | - | {floor:.3f} | {apart(again, fresh):.3f} | - | - |",
    ]
    span = torch.linspace(-2.2, 2.2, 160)
    where = torch.cartesian_prod(span, span).flip(1)
    fig, axes = plt.subplots(2, 4, figsize=(11, 5.6), layout="constrained")
    start = 1.2 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(7))
    for column, (name, (objective, steps)) in enumerate(objectives(x).items()):
        before = time.perf_counter()
        model = train(objective, x, steps)
        print(f"{name}: trained in {time.perf_counter() - before:.0f} s")
        with torch.no_grad():
            energy = sg.energies.energy_of(model, where, T).reshape(160, 160)
        axes[0, column].imshow(
            (energy.min() - energy).exp(), origin="lower", extent=(-2.2, 2.2, -2.2, 2.2)
        )
        axes[0, column].set_title(name)
        for label, solver in SAMPLERS.items():
            moves = 400 if label == "HMC" else 1200
            sampler = sg.Sampler(solver, sg.Constant(T, moves))
            noise = sg.noise.TorchNoise(torch.Generator().manual_seed(3))
            warmup = moves // 2
            chains = sg.run_chains(sampler, model, start, noise=noise, warmup=warmup)
            last = chains.draws[:, :: chains.draws.shape[1] // 4][:, 1:5].flatten(0, 1)
            value = distance(last[:4000], fresh).value
            # the radius mixes slowest: it crosses from ring to ring
            radius = chains.draws.norm(dim=2)
            size = float(ess(radius)) / (len(start) * chains.evaluations) * 1000
            rate = "-" if chains.acceptance is None else f"{float(chains.acceptance.mean()):.2f}"
            off = apart(last[:4000], fresh)
            lines.append(f"| {name} | {label} | {value:.3f} | {off:.3f} | {rate} | {size:.1f} |")
            print(lines[-1])
            if label == "HMC":
                axes[1, column].scatter(*last[:3000].mT, s=1, alpha=0.5)
        axes[1, column].set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("exp(-E)")
    axes[1, 0].set_ylabel("HMC draws")
    OUT.mkdir(parents=True, exist_ok=True)
    fig.savefig(OUT / "ebm_rings.png", dpi=100)
    (OUT / "ebm_rings.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
