"""Effective draws per gradient of NUTS, HMC and MALA, and of Pyro's NUTS at the same step.

    python benchmarks/figures/nuts_efficiency.py [--out docs/_generated/nuts_efficiency.txt] [--fast]

Chains start from exact draws; steps are tuned by dual averaging to the kernel's own target and then
frozen. Effective sizes are measured by one estimator, ours, for the mean and for the mean square of
the worst coordinate, over gradients per chain (a tree's own steps, not what the batch waits for).
Pyro (pip install pyro-ppl) gets the step of our NUTS, no mass matrix and the same depth; without it
its rows are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoregen as sg
from scoregen.mcmc import DualAveraging, ess

F64 = torch.float64
STATIC = sg.StaticSDE()
DEPTH = 8


def targets() -> dict[str, Any]:
    """Densities with exact draws: scales apart, coordinates tied, two modes."""
    tied = 0.95 * torch.ones(4, 4, dtype=F64) + 0.05 * torch.eye(4, dtype=F64)
    modes = torch.tensor([[-1.5, 0.0], [1.5, 0.0]])
    return {
        "10 scales from 1 to 10": sg.Gaussian(
            STATIC, torch.zeros(10, dtype=F64), torch.logspace(0, 2, 10, dtype=F64)
        ),
        "4 coordinates, correlation .95": sg.Gaussian(STATIC, torch.zeros(4, dtype=F64), tied),
        "two modes 3 sd apart": sg.GaussianMixture(
            STATIC, torch.tensor([0.4, 0.6]), modes, torch.ones(2, dtype=F64)
        ),
    }


def per_gradient(draws: Tensor, gradients: float) -> tuple[float, float]:
    """(ESS of the mean, ESS of the mean square) per 100 gradients, worst coordinate."""
    centred = draws - draws.mean((0, 1))
    return tuple(100 * float(ess(v).min()) / gradients for v in (draws, centred.square()))  # type: ignore[return-value]


def ours(model: Any, kernel: Any, chains: int, moves: int) -> tuple[Tensor, float, Any]:
    """(draws, gradients of all chains, the frozen kernel)."""
    x = model.sample(chains, generator=0)
    noise = sg.noise.TorchNoise(torch.Generator().manual_seed(1))
    tuned = DualAveraging(kernel, warmup=150)
    *_, last = sg.Sampler(tuned, sg.Constant(0.0, 150)).iterate(model, x, noise=noise)
    frozen: Any = tuned.frozen(last.state)
    kept, gradients = [], 0.0
    for move in sg.Sampler(frozen, sg.Constant(0.0, moves)).iterate(model, x, noise=noise):
        if move.index == 0:
            continue
        kept.append(move.x)
        if isinstance(kernel, sg.mcmc.NUTS):
            gradients += float(move.state.steps.sum())
        else:
            gradients += chains * (kernel.leapfrog_steps if isinstance(kernel, sg.HMC) else 1)
    return torch.stack(kept, 1), gradients, frozen


def pyro(model: Any, step: float, chains: int, moves: int) -> tuple[Tensor, float]:
    """Pyro's NUTS from exact draws at a fixed step, one chain after another."""
    from pyro.infer.mcmc import MCMC
    from pyro.infer.mcmc import NUTS as Theirs

    calls = 0

    def energy(z: dict[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return -model.log_prob(z["x"].unsqueeze(0))[0]

    kept = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for start in model.sample(chains, generator=0):
            kernel = Theirs(
                potential_fn=energy,
                step_size=step,
                adapt_step_size=False,
                adapt_mass_matrix=False,
                max_tree_depth=DEPTH,
            )
            chain = MCMC(
                kernel, moves, warmup_steps=0, initial_params={"x": start}, disable_progbar=True
            )
            chain.run()
            kept.append(chain.get_samples()["x"])
    return torch.stack(kept), float(calls)


def rows(fast: bool) -> Iterator[str]:
    chains, moves = (4, 60) if fast else (8, 300)
    for title, model in targets().items():
        found: dict[str, tuple[float, float]] = {}
        kernels: dict[str, Any] = {
            "NUTS": sg.mcmc.NUTS(0.3, depth=DEPTH),
            "HMC, 4 steps": sg.HMC(0.3, leapfrog_steps=4),
            "HMC, 16 steps": sg.HMC(0.3, leapfrog_steps=16),
            "MALA": sg.MALA(0.1),
        }
        step = 0.0
        for name, kernel in kernels.items():
            draws, gradients, frozen = ours(model, kernel, chains, moves)
            found[name] = per_gradient(draws, gradients)
            step = frozen.step_size if name == "NUTS" else step
        if importlib.util.find_spec("pyro") is not None:
            draws, gradients = pyro(model, step, 2, moves)
            found["Pyro's NUTS, same step"] = per_gradient(draws, gradients)
        best = found["NUTS"]
        for name, (mean, square) in found.items():
            ratios = f"{mean / best[0]:.2f} | {square / best[1]:.2f}"
            yield f"| {title} | {name} | {mean:.2f} | {square:.2f} | {ratios} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=None, help="a Markdown file to write")
    parser.add_argument("--fast", action="store_true", help="fewer chains and moves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| target | kernel | ESS of the mean per 100 gradients | of the square | over NUTS | over NUTS |",
        "|---|---|---|---|---|---|",
    ]
    for line in rows(options.fast):
        print(line, flush=True)
        lines.append(line)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
