"""Gradients per second and effective draws per gradient, beside other libraries, as ratios.

    python benchmarks/figures/mcmc_throughput.py [--rounds 5] [--steps 1000] [--out runs/mcmc]

Every library gets the same target (a Gaussian in 10 dimensions with variances from 0.1 to 1, as an
energy differentiated by its own means), the same number of chains, the same step and the same
number of leapfrog steps. Rounds are interleaved; the best of the rounds is reported. Effective
sizes are measured by one estimator, ours, on the draws of each library. One thread.

torchebm: pip install torchebm. BlackJAX: pip install blackjax into an environment of its own with
this package; where either is missing its rows are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoregen as sg
from scoregen.mcmc import ess

CHAINS, DIMENSIONS, LEAPFROG_STEPS = 64, 10, 5
VARIANCES = torch.logspace(-1, 0, DIMENSIONS)
LANGEVIN_STEP, HMC_STEP, MALA_STEP = 0.02, 0.25, 0.06

Run = Callable[[Tensor, int], tuple[Tensor, float]]  # (start, moves) -> (draws, gradients per move)


def energy(x: Tensor) -> Tensor:
    return (x.square() / VARIANCES).sum(1) / 2


def ours() -> dict[str, Run]:
    model = sg.Potential(energy)
    solvers: dict[str, tuple[sg.Solver, float]] = {
        "Langevin": (sg.Langevin(LANGEVIN_STEP), 1),
        "HMC": (sg.HMC(HMC_STEP, leapfrog_steps=LEAPFROG_STEPS), LEAPFROG_STEPS),
        "MALA": (sg.MALA(MALA_STEP), 1),
        "BAOAB": (sg.mcmc.BAOAB(0.25), 1),
    }

    def runner(solver: sg.Solver, gradients: float) -> Run:
        def run(x: Tensor, moves: int) -> tuple[Tensor, float]:
            noise = sg.noise.TorchNoise(torch.Generator().manual_seed(0))
            sampler = sg.Sampler(solver, sg.Constant(0.0, moves))
            with torch.no_grad():
                steps = list(sampler.iterate(model, x, noise=noise))
            return torch.stack([s.x for s in steps[1:]], 1), gradients

        return run

    return {name: runner(*pair) for name, pair in solvers.items()}


def torchebm() -> dict[str, Run]:
    if importlib.util.find_spec("torchebm") is None:
        print("torchebm is not installed: pip install torchebm")
        return {}
    from torchebm.core import BaseModel
    from torchebm.samplers import HamiltonianMonteCarlo, LangevinDynamics

    class Target(BaseModel):
        def forward(self, x: Tensor) -> Tensor:
            return energy(x)

    samplers: dict[str, tuple[Any, float]] = {
        "Langevin": (LangevinDynamics(Target(), step_size=LANGEVIN_STEP), 1),
        "HMC": (
            HamiltonianMonteCarlo(Target(), step_size=HMC_STEP, n_leapfrog_steps=LEAPFROG_STEPS),
            LEAPFROG_STEPS,
        ),
    }

    def runner(sampler: Any, gradients: float) -> Run:
        def run(x: Tensor, moves: int) -> tuple[Tensor, float]:
            g = torch.Generator().manual_seed(0)
            draws = sampler.sample(x=x, n_steps=moves, return_trajectory=True, generator=g)
            return draws[:, -moves:], gradients

        return run

    return {name: runner(*pair) for name, pair in samplers.items()}


def blackjax() -> dict[str, Run]:
    if importlib.util.find_spec("blackjax") is None:
        print("BlackJAX is not installed: pip install blackjax, in an environment of its own")
        return {}
    import blackjax as bj
    import jax
    import jax.numpy as jnp
    import numpy as np

    variances = jnp.asarray(VARIANCES.numpy())

    def logdensity(x: Any) -> Any:
        return -(x**2 / variances).sum() / 2

    kernels: dict[str, tuple[Any, float]] = {
        "HMC": (bj.hmc(logdensity, HMC_STEP, jnp.ones(DIMENSIONS), LEAPFROG_STEPS), LEAPFROG_STEPS),
        "MALA": (bj.mala(logdensity, MALA_STEP), 1),
    }

    def runner(kernel: Any, gradients: float) -> Run:
        @jax.jit
        def chains(start: Any, keys: Any) -> Any:
            def move(state: Any, key: Any) -> Any:
                split = jax.random.split(key, CHAINS)
                state, _ = jax.vmap(kernel.step)(split, state)
                return state, state.position

            return jax.lax.scan(move, jax.vmap(kernel.init)(start), keys)[1]

        def run(x: Tensor, moves: int) -> tuple[Tensor, float]:
            keys = jax.random.split(jax.random.key(0), moves)
            draws = chains(jnp.asarray(x.numpy()), keys)
            return torch.tensor(np.asarray(draws)).transpose(0, 1), gradients

        return run

    return {name: runner(*pair) for name, pair in kernels.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/mcmc"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[tuple[str, str], Run] = {}
    for library, found in (
        ("scoregen", ours()),
        ("torchebm", torchebm()),
        ("blackjax", blackjax()),
    ):
        runs |= {(library, name): run for name, run in found.items()}
    g = torch.Generator().manual_seed(1)
    start = VARIANCES.sqrt() * torch.randn(CHAINS, DIMENSIONS, generator=g)
    best: dict[tuple[str, str], float] = {}
    size: dict[tuple[str, str], float] = {}
    error: dict[tuple[str, str], float] = {}
    for run in runs.values():
        run(start, args.steps)  # warms caches, compiles where there is a compiler
    for _ in range(args.rounds):
        for key, run in runs.items():
            before = time.perf_counter()
            draws, gradients = run(start, args.steps)
            seconds = time.perf_counter() - before
            best[key] = max(best.get(key, 0.0), CHAINS * args.steps * gradients / seconds)
            size[key] = float(ess(draws).min()) / (CHAINS * args.steps * gradients)
            error[key] = float((draws.flatten(0, 1).var(0) / VARIANCES - 1).abs().max())
    rows = []
    print(
        f"{'library':<10} {'method':<9} {'grad/s':>9} {'ESS/grad':>9} {'ESS/s':>9} {'variance':>9}"
    )
    for key, speed in best.items():
        library, name = key
        mine = ("scoregen", name)
        row = {
            "library": library,
            "method": name,
            "gradients_per_second": speed,
            "ess_per_gradient": size[key],
            "worst_relative_variance_error": error[key],
            "speed_of_scoregen_over_this": best[mine] / speed,
            "ess_per_gradient_of_scoregen_over_this": size[mine] / size[key],
        }
        rows.append(row)
        print(
            f"{library:<10} {name:<9} {speed:9.3g} {size[key]:9.3g} {speed * size[key]:9.3g} "
            f"{error[key]:9.1%}"
        )
    for row in rows:
        if row["library"] != "scoregen":
            print(
                f"scoregen / {row['library']}, {row['method']}: "
                f"{row['speed_of_scoregen_over_this']:.2f} in gradients per second, "
                f"{row['ess_per_gradient_of_scoregen_over_this']:.2f} in effective draws per "
                "gradient"
            )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "mcmc.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
