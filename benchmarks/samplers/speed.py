"""Default noise, exact densities and the import, each beside what it is measured by, in one run.

Stochastic samplers are timed with the noise that each library takes unless told otherwise: ours
`SampleNoise`, whose sample i is that of every batch; k-diffusion's the global generator in
euler_ancestral and a Brownian tree in its SDE solvers. Cold runs compute their coefficients.

    python benchmarks/samplers/speed.py [--rounds 31]

Rounds are interleaved and the minimum of the processor time is reported. One thread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from overhead import Half, forget
from peers import k_diffusion_sampling
from torch import Tensor

import scoregen as sg
from scoregen.noise import SampleNoise

IMPORT = """
import time
start = time.process_time()
import torch
middle = time.process_time()
import scoregen
print((time.process_time() - start) / (middle - start))
"""


def least(acts: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least milliseconds of processor time of each, over interleaved rounds."""
    best = dict.fromkeys(acts, float("inf"))
    for _ in range(rounds + 1):
        for name, act in acts.items():
            start = time.process_time()
            act()
            best[name] = min(best[name], 1e3 * (time.process_time() - start))
    return best


def default_noise(shape: tuple[int, ...], rounds: int, steps: int = 20) -> None:
    """Print the time of stochastic samplers with default noise over k-diffusion's."""
    try:
        k = k_diffusion_sampling()
    except ModuleNotFoundError as error:
        print(f"k-diffusion is left out: {error}")
        return
    model, sigmas = Half(sg.EDMSDE()), k.get_sigmas_karras(steps - 1, 0.002, 80.0)
    x = 80 * torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def denoiser(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        return x * 0.5

    for name, solver, twin in (
        ("Ancestral", sg.Ancestral(), "euler_ancestral"),
        ("SDEDPMSolverPP", sg.SDEDPMSolverPP(), "dpmpp_2m_sde"),
        ("SDEDPMSolverPP(3)", sg.SDEDPMSolverPP(3), "dpmpp_3m_sde"),
        ("SDEDPMSolverPP2S", sg.solvers.SDEDPMSolverPP2S(), "dpmpp_sde"),
    ):
        sampler, theirs = sg.Sampler(solver, sg.Karras(steps)), getattr(k, f"sample_{twin}")

        def ours(sampler: sg.Sampler = sampler) -> object:
            return sampler.run(model, x, noise=SampleNoise(0))

        def cold(ours: Callable[[], object] = ours) -> object:
            forget()
            return ours()

        def other(theirs: Any = theirs) -> object:
            return theirs(denoiser, x, sigmas, disable=True)

        with torch.random.fork_rng(devices=[]):
            ms = least({"warm": ours, "cold": cold, "k": other}, rounds)
        warm, cold_ratio = ms["warm"] / ms["k"], ms["cold"] / ms["k"]
        print(f"| {name} | k-diffusion {twin} | {shape} | {warm:.2f} | {cold_ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torchsde")
    level = sg.Level(1.0, 0.0, 1.0, 0.0)
    g = torch.Generator().manual_seed(0)
    print("| default noise | beside | state | time over it, warm | cold |\n|---|---|---|---|---|")
    for shape in ((256, 2), (64, 1, 8, 8), (64, 3, 32, 32)):
        like, noise = torch.zeros(shape), SampleNoise(0)
        acts: dict[str, Callable[[], object]] = {
            "randn": lambda shape=shape: torch.randn(shape, generator=g),
            "noise": lambda like=like, noise=noise: noise(like, level, level),
        }
        ms = least(acts, 10 * rounds)
        print(f"| a draw | torch.randn | {shape} | {ms['noise'] / ms['randn']:.2f} |  |")
    with torch.no_grad():
        for shape in ((256, 2), (64, 3, 32, 32)):
            default_noise(shape, rounds)
    x, points = torch.randn(256, 64, generator=g), torch.randn(10_000, 64, generator=g)
    models: dict[str, sg.ScoreModel] = {
        "Empirical, 10,000 points": sg.Empirical(sg.VPSDE(), points)
    }
    for k in (100, 1000):
        spread = 0.01 + 0.2 * torch.rand(k, 64, generator=g)
        law = sg.GaussianMixture(sg.VPSDE(), torch.ones(k), points[:k], spread)
        models[f"GaussianMixture, {k} components"] = law
    print("\n| exact density, 64 coordinates, 256 rows | milliseconds |\n|---|---|")
    for name, model in models.items():
        ms = least({name: lambda model=model: model(x, 0.3)}, min(rounds, 5))
        print(f"| {name} | {ms[name]:.1f} |")
    ratios = [
        float(
            subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True).stdout
        )
        for _ in range(3)
    ]
    print(f"\n`import scoregen` over `import torch`: {sorted(ratios)[1]:.2f}")


if __name__ == "__main__":
    main()
