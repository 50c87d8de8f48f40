"""Bayesian logistic regression by SGLD against a long HMC run, on scikit-learn's cancer data.

    python benchmarks/examples/sgld_logistic.py

Writes docs/_static/examples/sgld_logistic.png and .txt.
"""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor

import scoregen as sg

OUT = Path(__file__).resolve().parents[2] / "docs" / "_static" / "examples"


def data() -> tuple[Tensor, Tensor]:
    """569 rows of 10 standardised features (means) and a constant; labels -1 and 1."""
    bunch = load_breast_cancer()
    x = torch.tensor(bunch.data[:, :10])
    x = (x - x.mean(0)) / x.std(0)
    y = 2.0 * torch.tensor(bunch.target, dtype=x.dtype) - 1
    return torch.cat([x, torch.ones_like(x[:, :1])], 1), y


def posterior() -> sg.mcmc.PosteriorEnergy:
    """Weights with prior N(0, I) and E = log(1 + exp(-y x.w)) for every row."""

    def prior(w: Tensor) -> Tensor:
        return w.square().sum(1) / 2

    def term(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-y * torch.einsum("bd,bmd->bm", w, x))

    return sg.mcmc.PosteriorEnergy(prior, term, *data())


def moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    flat = draws.flatten(0, 1)
    return flat.mean(0), flat.std(0)


def main() -> None:
    torch.set_num_threads(1)
    model, start = posterior(), torch.zeros(8, 11, dtype=torch.float64)
    rows = []

    before = time.perf_counter()
    solver = sg.mcmc.DualAveraging(sg.HMC(0.05, leapfrog_steps=12), warmup=200)
    noise = sg.noise.SampleNoise(0)
    sampler = sg.Sampler(solver, sg.Constant(0.0, 1200))
    chains = sg.run_chains(sampler, model, start, noise=noise, warmup=200)
    judged = sg.mcmc.chain_report(chains)
    mean, std = moments(chains.draws)
    print(f"HMC: {time.perf_counter() - before:.0f} s, {judged}")
    rows.append(("HMC, 569 rows", 569 * chains.evaluations, 0.0, 0.0, judged.ess, judged.rhat))

    found = {}
    for batch, first in ((8, 1e-3), (32, 2e-3), (128, 4e-3)):
        before, moves, warmup = time.perf_counter(), 12_000, 2000
        decay = sg.mcmc.PolynomialDecay(first, delay=1000.0, power=0.55)
        sampler = sg.Sampler(sg.mcmc.SGLD(decay, batch), sg.Constant(0.0, moves))
        noise = sg.noise.SampleNoise(1)
        drawn = sg.run_chains(sampler, model, start, noise=noise, warmup=warmup, thin=5)
        # steps shrink, so an early draw stands for more time than a late one
        steps = torch.tensor([decay(warmup + 5 * (k + 1) - 1) for k in range(drawn.draws.shape[1])])
        weights = (steps / steps.sum()).to(drawn.draws.dtype)
        average = torch.einsum("cnd,n->cd", drawn.draws, weights).mean(0)
        square = torch.einsum("cnd,n->cd", (drawn.draws - average) ** 2, weights).mean(0)
        found[batch] = (average, square.sqrt())
        wrong_mean = float(((average - mean) / std).square().mean().sqrt())
        wrong_std = float((square.sqrt() / std - 1).mean())
        size, rhat = (
            float(sg.mcmc.ess(drawn.draws).min()),
            float(sg.mcmc.split_rhat(drawn.draws).max()),
        )
        rows.append((f"SGLD, {batch} rows", batch * moves, wrong_mean, wrong_std, size, rhat))
        print(f"{rows[-1]}, {time.perf_counter() - before:.0f} s")

    OUT.mkdir(parents=True, exist_ok=True)
    lines = [
        "| method | rows read per chain | mean, in posterior sd | sd, relative | ESS | R-hat |",
        "|---|---|---|---|---|---|",
    ]
    for name, cost, wrong_mean, wrong_std, size, rhat in rows:
        first = "-" if name.startswith("HMC") else f"{wrong_mean:.2f}"
        second = "-" if name.startswith("HMC") else f"{wrong_std:+.1%}"
        lines.append(f"| {name} | {cost:,.0f} | {first} | {second} | {size:.0f} | {rhat:.3f} |")
    (OUT / "sgld_logistic.txt").write_text("\n".join(lines) + "\n")

    fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for ax, k, title in zip(axes, (0, 1), ("posterior mean", "posterior sd"), strict=True):
        exact = (mean, std)[k]
        ax.axline((float(exact.min()),) * 2, slope=1, color="0.7", lw=1)
        for batch, marker in ((8, "o"), (32, "s"), (128, "^")):
            ax.plot(exact, found[batch][k], marker, ms=4, label=f"SGLD, {batch} rows", alpha=0.8)
        ax.set(title=f"{title} of 11 weights", xlabel="HMC", ylabel="SGLD")
    axes[0].legend(frameon=False)
    fig.savefig(OUT / "sgld_logistic.png", dpi=110)


if __name__ == "__main__":
    main()
