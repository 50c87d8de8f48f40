"""Do the intervals of a study hold the truth, and how often do equal samplers tie?

    python benchmarks/samplers/interval_coverage.py [--repeats 200]

On a Gaussian in the plane, where sampling is cheap: repeats of studies with 3 seeds of 100 samples
are cut from one long study, whose mean over all seeds stands for the truth. Printed per metric: the
share of 95 % intervals of a mean and of a paired difference that hold it, and the share of ties
between two samplers that differ in noise alone (95 % is right for all three).
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

import scoregen as sg

SAMPLERS = {
    "a": sg.Sampler(sg.DDIM(), sg.UniformLam(6)),
    "b": sg.Sampler(sg.DDIM(), sg.UniformTime(6)),
}


def covered(study: sg.comparison.Comparison, metric: str, repeats: int, seeds: int) -> list[float]:
    """Shares of repeats whose intervals hold the mean and the difference over all seeds."""
    mean = next(s for s in study.summaries if s.name == "a" and s.metric == metric).value
    (whole,) = study.versus("a", 6, metric)
    held = [0, 0]
    for k in range(repeats):
        part = [r for r in study.rows if seeds * k <= r.seed < seeds * (k + 1)]
        one = replace(study, rows=part)
        found = next(s for s in one.summaries if s.name == "a" and s.metric == metric)
        (paired,) = one.versus("a", 6, metric)
        held[0] += found.low <= mean <= found.high
        held[1] += paired.low <= whole.difference <= paired.high
    return [h / repeats for h in held]


def ties(study: sg.comparison.Comparison, metric: str, repeats: int, seeds: int) -> float:
    """Share of ties between one sampler and itself on other seeds: equal laws, other noise."""
    rows = [r for r in study.rows if r.sampler == "a" and r.metric == metric]
    by_seed = {r.seed: r for r in rows}
    tied = 0
    for k in range(repeats // 2):
        first = [by_seed[2 * seeds * k + i] for i in range(seeds)]
        other = [
            replace(by_seed[2 * seeds * k + seeds + i], sampler="b", seed=first[i].seed)
            for i in range(seeds)
        ]
        (found,) = replace(study, rows=[*first, *other]).versus("a", 6, metric)
        tied += found.verdict == "tie"
    return tied / (repeats // 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    seeds = 3
    model = sg.Gaussian(sg.VPSDE(), torch.zeros(2), torch.tensor([1.0, 0.25]))
    study = sg.compare(
        model,
        SAMPLERS,
        steps=[6],
        metrics=[
            sg.metrics.Frechet(),
            sg.metrics.DebiasedFrechet(),
            sg.metrics.SlicedWasserstein(16),
            sg.metrics.MMD(1.0),
            sg.metrics.KID(),
            sg.metrics.Coverage(),
            sg.metrics.FunctionMetric(
                lambda x, y: float(x.square().mean()),
                direction="lower",
                biased=False,
                name="square",
            ),
        ],
        reference=model.sample(400, generator=1).float(),
        samples=100,
        seeds=range(seeds * options.repeats),
    )
    print("metric                  mean  difference  ties of equals")
    for metric in study.metrics:
        shares = [*covered(study, metric, options.repeats, seeds)]
        shares.append(ties(study, metric, options.repeats, seeds))
        print(f"{metric:22s} {shares[0]:5.1%} {shares[1]:11.1%} {shares[2]:15.1%}")


if __name__ == "__main__":
    main()
