"""The main job: samplers compared on real digits, with the bundled network.

    make demo        (or: python benchmarks/demo.py [--samples 1000] [--out runs/demo])

Twelve sampler x grid pairs at 5, 10, 20 and 50 network evaluations per sample, all from the same
noise and with the labels of the training digits. The reference is the training digits; the dotted
line is what held-out digits reach.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import scoregen as sg

SAMPLERS = {
    "DDIM, uniform time": sg.Sampler(sg.DDIM(), sg.UniformTime(10)),
    "DDIM, uniform log-SNR": sg.Sampler(sg.DDIM(), sg.UniformLam(10)),
    "ancestral small, uniform time": sg.Sampler(sg.Ancestral("small"), sg.UniformTime(10)),
    "ancestral large, uniform time": sg.Sampler(sg.Ancestral("large"), sg.UniformTime(10)),
    "Euler-Maruyama, uniform time": sg.Sampler(sg.EulerMaruyama(), sg.UniformTime(10)),
    "flow RK4, uniform time": sg.Sampler(sg.ProbabilityFlow(sg.solvers.RK4), sg.UniformTime(10)),
    "EDM Heun, Karras": sg.Sampler(sg.KarrasHeun(), sg.Karras(10)),
    "EDM Heun churn 0.1, Karras": sg.Sampler(sg.KarrasHeun(churn=0.1), sg.Karras(10)),
    "DPM-Solver++ 2M, uniform time": sg.Sampler(sg.DPMSolverPP(), sg.UniformTime(10)),
    "DPM-Solver++ 2M, uniform log-SNR": sg.Sampler(sg.DPMSolverPP(), sg.UniformLam(10)),
    "DPM-Solver++ 2M, Karras": sg.Sampler(sg.DPMSolverPP(), sg.Karras(10)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()
    train, test = sg.digits("train"), sg.digits("test")
    labels = train.label[torch.arange(options.samples) % len(train)]
    result = sg.compare(
        sg.digits_model(),
        SAMPLERS,
        steps=(5, 10, 20, 50),
        metrics=[
            sg.metrics.Frechet(sg.metrics.digits_features),
            sg.metrics.SlicedWasserstein(),
            sg.metrics.MMD(),
        ],
        reference=train.x,
        floor=test.x,
        samples=options.samples,
        seed=options.seed,
        condition={"label": labels},
        out=options.out,
    )
    print(result.markdown())
    out = options.out
    print(f"Done in {time.perf_counter() - began:.0f} s. Look at:")
    for name, what in (
        ("table.md", "the table"),
        ("quality.png", "steps versus quality"),
        ("samples.png", "the samples"),
        ("results.csv", "every number"),
        ("results.json", "every number, with what made it"),
    ):
        print(f"  {out / name}: {what}")


if __name__ == "__main__":
    main()
