"""Which training sees the weights of modes far apart? One energy network, every objective.

Data are .2 N(-1.2, .1^2) + .8 N(1.2, .1^2). The energy is that of the data noised to sigma = .1,
where 17 standard deviations lie between the modes; its share of the right mode is found by
quadrature of exp(-E), without sampling. Score matching sees only slopes, and there are none between
the modes that data would show.

python benchmarks/figures/energy_training.py [--out docs/_generated/energy_training.txt] [--long]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoregen as sg
from scoregen import objectives
from scoregen.energies import DenoiserEnergy, energy_of

SDE = sg.VPSDE()
RIGHT = 0.8
DATA = sg.GaussianMixture(
    SDE, torch.tensor([1 - RIGHT, RIGHT]), torch.tensor([[-1.2], [1.2]]), torch.full((2,), 0.01)
)
T = float(SDE.time(torch.tensor(2.297, dtype=torch.float64)))  # sigma = .1
LAW = objectives.UniformLamLaw(high=2.297)


class Offset(nn.Module):
    """c(lam): a small network of log(alpha / sigma)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, lam: Tensor) -> Tensor:
        return self.net(lam.unsqueeze(1)).squeeze(1)


def fixed(sde: sg.SDE, count: int, generator: torch.Generator) -> Tensor:
    return torch.full((count,), T, dtype=torch.float64)


def every_objective(x: Tensor) -> dict[str, Any]:
    """Name -> objective; the last three learn at the level T alone."""
    chains = sg.Sampler(sg.MALA(0.01), sg.Constant(T, 10))
    noise = sg.Gaussian(SDE, x.mean(0), x.var(0))
    buffer = objectives.ReplayBuffer(
        1.2 * torch.randn(4096, 1, generator=torch.Generator().manual_seed(5))
    )
    denoising = objectives.DenoisingScoreMatching(LAW)
    return {
        "denoising score matching": denoising,
        "noise classification (DiffCLF)": objectives.NoiseClassification(8, LAW, None),
        "both": objectives.NoiseClassification(8, LAW, denoising),
        "diffusion recovery": objectives.DiffusionRecovery(sg.UniformLam(8, stop=T), 20),
        "contrastive divergence": objectives.ContrastiveDivergence(chains, T, 1e-3),
        "persistent CD": objectives.PersistentContrastiveDivergence(chains, buffer, T, 1e-3),
        "noise contrastive": objectives.NoiseContrastive(noise, draws=4, t=T),
    }


def train(objective: Any, x: Tensor, steps: int, seed: int) -> DenoiserEnergy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = sg.MLP(event=(1,), hidden=64, depth=2)
        network = sg.ScoreNetwork(net, SDE, sg.Eps(), sg.HalfLogSNR())
        model = DenoiserEnergy(network, Offset())
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (256,), generator=g)
        optimiser.zero_grad()
        objective(model, x[rows], generator=g).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    return model


@torch.no_grad()
def judged(model: DenoiserEnergy) -> tuple[float, float]:
    """(share of the right mode, RMS error of the score on data over their RMS score)."""
    x = torch.linspace(-3, 3, 6001).unsqueeze(1)
    p = (-energy_of(model, x, T)).double().softmax(0)
    y = DATA.sample(4000, T, generator=9).float()
    exact = DATA.score(y, T)
    error = (model.score(y, T) - exact).square().mean() / exact.square().mean()
    return float(p[x[:, 0] > 0].sum()), float(error.sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=None, help="a Markdown file to write")
    parser.add_argument("--only", default="", help="objectives whose name holds this")
    parser.add_argument("--long", action="store_true", help="3,000 steps, three seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = DATA.sample(20_000, generator=1).float()
    steps, seeds = (3000, 3) if options.long else (300, 1)
    lines = [
        f"| objective, {steps} steps | right mode, true .8 | relative error of the score | seconds |",
        "|---|---|---|---|",
    ]
    for name in every_objective(x):
        if options.only not in name:
            continue
        started = time.process_time()
        found = [judged(train(every_objective(x)[name], x, steps, k)) for k in range(seeds)]
        taken = (time.process_time() - started) / seeds
        shares = ", ".join(f"{share:.3f}" for share, _ in found)
        error = sum(error for _, error in found) / seeds
        lines.append(f"| {name} | {shares} | {error:.2f} | {taken:.0f} |")
        print(lines[-1], flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
