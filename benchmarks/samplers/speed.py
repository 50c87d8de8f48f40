"""Default noise, exact densities and the import, each beside what it is measured by, in one run.

    python benchmarks/samplers/speed.py [--rounds 31]

Rounds are interleaved and the minimum of the processor time is reported. One thread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import torch

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    level = sg.Level(1.0, 0.0, 1.0, 0.0)
    g = torch.Generator().manual_seed(0)
    for shape in ((256, 2), (64, 1, 8, 8), (64, 3, 32, 32)):
        like, noise = torch.zeros(shape), SampleNoise(0)
        acts: dict[str, Callable[[], object]] = {
            "randn": lambda shape=shape: torch.randn(shape, generator=g),
            "noise": lambda like=like, noise=noise: noise(like, level, level),
        }
        ms = least(acts, 10 * rounds)
        print(f"SampleNoise / torch.randn at {shape}: {ms['noise'] / ms['randn']:.2f}")
    x, points = torch.randn(256, 64, generator=g), torch.randn(10_000, 64, generator=g)
    models: dict[str, sg.ScoreModel] = {
        "Empirical, 10,000 points": sg.Empirical(sg.VPSDE(), points)
    }
    for k in (100, 1000):
        spread = 0.01 + 0.2 * torch.rand(k, 64, generator=g)
        law = sg.GaussianMixture(sg.VPSDE(), torch.ones(k), points[:k], spread)
        models[f"GaussianMixture, {k} components"] = law
    for name, model in models.items():
        ms = least({name: lambda model=model: model(x, 0.3)}, min(rounds, 5))
        print(f"{name}, d = 64, 256 rows: {ms[name]:.1f} ms")
    ratios = [
        float(
            subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True).stdout
        )
        for _ in range(3)
    ]
    print(f"import scoregen / import torch: {sorted(ratios)[1]:.2f}")


if __name__ == "__main__":
    main()
