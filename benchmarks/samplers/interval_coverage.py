"""Do the intervals of a study hold the truth, and how often do equal samplers tie?

    make coverage        (or: python benchmarks/samplers/interval_coverage.py [--repeats 200])

On a Gaussian in the plane, where sampling is cheap: repeats of studies with 3 seeds of 100 samples
are cut from one long study, whose mean over all seeds stands for the truth. Written per metric: the
share of 95 % intervals of a mean and of a paired difference that hold it, and the share of ties
between two samplers that differ in noise alone (95 % is right for all three; equal samplers on equal
noise tie always, since their difference is zero). Then, on the digits at 10 evaluations, what 20
seeds tell apart that single intervals do not. Last, the standard error that each metric states of
one measurement over the standard deviation of its values, both over fresh samples and references.
The tables go to docs/_generated/.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import scoregen as sg
from scoregen.comparison import Comparison, Row

SAMPLERS = {
    "a": sg.Sampler(sg.DDIM(), sg.UniformLam(6)),
    "b": sg.Sampler(sg.DDIM(), sg.UniformTime(6)),
}
SEEDS = 3


def of_seeds(study: Comparison, metric: str, sampler: str, first: int, name: str) -> list[Row]:
    """The rows of some consecutive seeds, called seeds 0, 1, 2 of another sampler."""
    rows = {r.seed: r for r in study.rows if (r.sampler, r.metric) == (sampler, metric)}
    return [replace(rows[first + i], sampler=name, seed=i) for i in range(SEEDS)]


def covered(study: Comparison, metric: str, repeats: int) -> tuple[float, float]:
    """Shares of repeats whose intervals hold the mean and the difference over all seeds."""
    (mean,) = (s.value for s in study.summaries if (s.name, s.metric) == ("a", metric))
    (whole,) = study.versus("a", 6, metric)
    means = differences = 0
    for k in range(repeats):
        rows = [r for n in SAMPLERS for r in of_seeds(study, metric, n, SEEDS * k, n)]
        part = replace(study, rows=rows)
        (found,) = (s for s in part.summaries if s.name == "a")
        (paired,) = part.versus("a", 6, metric)
        means += found.low <= mean <= found.high
        differences += paired.low <= whole.difference <= paired.high
    return means / repeats, differences / repeats


def ties(study: Comparison, metric: str, repeats: int, apart: int) -> float:
    """Share of ties between one sampler and itself, under two names, `apart` repeats apart."""
    tied = 0
    for k in range(repeats):
        other = (k + apart) % repeats
        rows = of_seeds(study, metric, "a", SEEDS * k, "a")
        rows += of_seeds(study, metric, "a", SEEDS * other, "b")
        (found,) = replace(study, rows=rows).versus("a", 6, metric)
        tied += found.verdict == "tie"
    return tied / repeats


def gaussian(repeats: int) -> list[str]:
    model = sg.Gaussian(sg.VPSDE(), torch.zeros(2), torch.tensor([1.0, 0.25]))
    square = sg.metrics.FunctionMetric(
        lambda x, y: float(x.square().mean()), direction="lower", biased=False, name="mean square"
    )
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
            sg.metrics.PosteriorCoverage.of(
                torch.ones(1), torch.zeros(1, 2), torch.tensor([[1.0, 0.25]])
            ),
            square,
        ],
        reference=model.sample(400, generator=1).float(),
        samples=100,
        seeds=range(SEEDS * repeats),
        progress=False,
    )
    lines = [
        f"Shares over {repeats} repeats of {SEEDS} seeds of 100 samples.",
        "",
        "| metric | interval of a mean | of a difference | ties of equals, other noise | equal noise |",
        "|---|---|---|---|---|",
    ]
    for metric in study.metrics:
        shares = [*covered(study, metric, repeats), ties(study, metric, repeats, repeats // 2)]
        shares.append(ties(study, metric, repeats, 0))
        lines.append(f"| {metric} | {' | '.join(f'{s:.1%}' for s in shares)} |")
    return lines


def digits(seeds: int) -> list[str]:
    train = sg.digits("train")
    samplers = {
        "uniform log-SNR": sg.Sampler(sg.DPMSolverPP(), sg.UniformLam(10)),
        "Karras": sg.Sampler(sg.DPMSolverPP(), sg.Karras(10)),
    }
    study = sg.compare(
        sg.digits_model(),
        samplers,
        steps=[10],
        metrics=[sg.metrics.SlicedWasserstein(64)],
        reference=train,
        samples=100,
        seeds=range(seeds),
        condition={"label": torch.arange(100) % 10},
        progress=False,
    )
    one, other = study.summaries
    (found,) = study.versus("uniform log-SNR", 10)
    overlap = "overlap" if one.low < other.high and other.low < one.high else "are apart"
    verdict = "ties" if found.verdict == "tie" else f"is {found.verdict}"
    return [
        f"DPM-Solver++ 2M on the digits at 10 evaluations, {seeds} seeds of 100 samples, {one.metric}:",
        "",
        "| grid | mean | 95 % interval |",
        "|---|---|---|",
        *(f"| {s.name} | {s.value:.4f} | {s.low:.4f} to {s.high:.4f} |" for s in (one, other)),
        "",
        f"The intervals {overlap}. The paired difference is {found.difference:.4f} with the interval "
        f"{found.low:.4f} to {found.high:.4f}: {found.name} {verdict}.",
    ]


def standard_errors(repeats: int) -> list[str]:
    """Stated over true standard error of one measurement, for each metric."""
    metrics = [
        sg.metrics.Frechet(),
        sg.metrics.DebiasedFrechet(),
        sg.metrics.SlicedWasserstein(64),
        sg.metrics.MMD(1.0),
        sg.metrics.KID(),
        sg.metrics.C2ST(classifier=LogisticRegression()),
        sg.metrics.Precision(),
        sg.metrics.Recall(),
        sg.metrics.Density(),
        sg.metrics.Coverage(),
        sg.metrics.Diversity(features=torch.nn.Identity()),
    ]

    def draw(seed: int, d: int, same: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(300, d, generator=generator, dtype=torch.float64) for _ in range(2))
        return (x if same else 0.8 * x + 0.4), y

    cases = {"the same law": (2, True), "another law": (2, False), "another law, d = 8": (8, False)}
    lines = [
        f"Stated standard error over the standard deviation of the values, {repeats} repeats of 300 "
        "samples and 300 points of reference.",
        "",
        f"| metric | {' | '.join(cases)} |",
        "|---|---|---|---|",
    ]
    for metric in metrics:
        ratios = []
        for d, same in cases.values():
            found = [metric(*draw(seed, d, same)) for seed in range(repeats)]
            values, errors = torch.tensor(found, dtype=torch.float64).T
            ratios.append(float(errors.square().mean().sqrt() / values.std()))
        lines.append(f"| {metric.name} | {' | '.join(f'{r:.2f}' for r in ratios)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=20, help="on the digits")
    parser.add_argument("--folder", type=Path, default=Path("docs/_generated"))
    parser.add_argument("--only", choices=("gaussian", "digits", "errors"), help="one table")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.only in (None, "gaussian"):
        written(options.folder / "interval_coverage.txt", gaussian(options.repeats))
    if options.only in (None, "digits"):
        written(options.folder / "paired_digits.txt", digits(options.seeds))
    if options.only in (None, "errors"):
        written(options.folder / "standard_errors.txt", standard_errors(options.repeats))


def written(path: Path, lines: list[str]) -> None:
    print("\n".join(lines), end="\n\n")
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
