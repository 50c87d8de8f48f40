"""The main job: samplers compared on real digits, with the bundled network.

    make demo        (or: python benchmarks/samplers/demo.py [--seeds 3] [--out runs/demo])

Eight sampler x grid pairs at 5, 10, 20 and 40 network evaluations per sample, three seeds of 297
samples each, as many as there are held-out digits: their own distance from the training digits is
the dotted line. A sampler that was fitted to the network at 5 evaluations (data/digits_v_5.json, made
by `scoregen tune --nfe 5 --label 0 1 2 3 4 5 6 7 8 9`) is a row of its own. Everything lies in one
page, report.html.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import scoregen as sg

SAMPLERS = {
    "Euler-Maruyama": sg.Sampler(sg.EulerMaruyama(), sg.UniformTime(10)),
    "ancestral (DDPM)": sg.Sampler(sg.Ancestral("small"), sg.UniformTime(10)),
    "DDIM, uniform time": sg.Sampler(sg.DDIM(), sg.UniformTime(10)),
    "DDIM": sg.Sampler(sg.DDIM(), sg.UniformLam(10)),
    "EDM Heun": sg.Sampler(sg.KarrasHeun(), sg.Karras(10)),
    "DPM-Solver++ 2M": sg.Sampler(sg.DPMSolverPP(), sg.UniformLam(10)),
    "DPM-Solver++ 2M, Karras": sg.Sampler(sg.DPMSolverPP(), sg.Karras(10)),
    "SDE-DPM-Solver++": sg.Sampler(sg.SDEDPMSolverPP(), sg.UniformLam(10)),
}
FITTED = Path(__file__).with_name("data") / "digits_v_5.json"
NAMED = (
    "Euler-Maruyama",
    "ancestral (DDPM)",
    "DDIM",
    "EDM Heun",
    "DPM-Solver++ 2M",
    "SDE-DPM-Solver++",
)


def story(study: sg.comparison.Comparison, metric: str) -> str:
    """Which of the named samplers comes as close as real digits first, and which last."""
    floor = study.manifest["floor"][metric]["value"]
    reached: dict[str, int] = {}
    for s in sorted(study.summaries, key=lambda s: s.budget or 0):
        if s.name in NAMED and s.metric == metric and s.budget and s.low <= floor:
            reached.setdefault(s.name, s.budget)
    if len(reached) < 2:
        return "Nothing comes as close as real digits"
    first, last = min(reached, key=reached.__getitem__), max(reached, key=reached.__getitem__)
    return (
        f"{first} is as close as real digits with {reached[first]} evaluations, "
        f"{last} with {reached[last]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--figure", type=Path, help="write the README's picture here")
    options = parser.parse_args()
    began = time.perf_counter()
    train, test = sg.digits("train"), sg.digits("test")
    model = sg.digits_model()
    study = sg.compare(
        model,
        {**SAMPLERS, "sg.tune(model, 5)": sg.tuning.load_sampler(FITTED, model)},
        steps=(5, 10, 20, 40),
        metrics=[
            sg.metrics.SlicedWasserstein(),
            sg.metrics.Frechet(sg.metrics.digits_features),
            sg.metrics.KID(sg.metrics.digits_features),
        ],
        reference=train,
        floor=test.x,
        samples=len(test),
        seeds=range(options.seeds),
        condition={"label": train.label[torch.arange(len(test)) % len(train)]},
        out=options.out,
    )
    print(study.markdown())
    for verdict in study.versus("DDIM", budget=10, metric=study.metrics[0]):
        print(verdict)
    report = study.report(options.out / "report.html", heading="Samplers on 8 x 8 digits")
    if options.figure:
        sg.comparison.plot_quality(
            study,
            options.figure,
            metrics=study.metrics[:1],
            names=NAMED,
            width=7.0,
            size=10.5,
            heading=story(study, study.metrics[0]),
        )
    print(f"Done in {time.perf_counter() - began:.0f} s. Look at {report}")
    print(f"Tables, pictures and every number stand beside it, in {options.out}.")


if __name__ == "__main__":
    main()
