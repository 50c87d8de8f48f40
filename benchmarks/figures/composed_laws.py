"""Composed laws against quadrature: mode weights, means and variances of Feynman-Kac populations.

Product, tempered and guided compositions of mixtures in one dimension, and a sum of mixtures that
have only scores. Each is sampled by runs of 2,000 particles; one run's standard
deviation of a mode weight is about .016, so 16 runs are pooled. Standard errors come from the runs.

python benchmarks/figures/composed_laws.py [--out docs/_generated/composed_laws.txt] [--runs 16]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoregen import VPSDE, Ancestral, GaussianMixture, Level, Sampler, ScoreModel, UniformLam
from scoregen.energies import Mixture, Product, Tempered
from scoregen.mcmc import MALA, FeynmanKac, Superposition, factors
from scoregen.models import Prediction, Wrapped

F64 = torch.float64
SDE = VPSDE()
PARTICLES = 2000
MOVE = MALA(lambda t: 0.3 * (0.1 * t.alpha**2 + t.sigma**2))


class Hidden(Wrapped):
    """The score of a model, and nothing else of it."""

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        return Prediction(self.sde, t, x, score=self.model.predict(x, t).score)


def mixture(weights: list[float], means: list[float], variances: list[float]) -> GaussianMixture:
    return GaussianMixture(
        SDE, torch.tensor(weights), torch.tensor(means).unsqueeze(1), torch.tensor(variances)
    )


A = mixture([0.6, 0.4], [-1.5, 1.5], [0.15, 0.3])
B = mixture([0.3, 0.4, 0.3], [-1.5, 0.0, 1.5], [0.2, 0.5, 0.4])


def compositions() -> dict[str, ScoreModel]:
    return {
        "product A B": Product(A, B),
        "tempered A, T = 2": Tempered(A, 2.0),
        "guided A^3 B^-2": Product(A, B, weights=(3.0, -2.0)),
        "sum .7 A + .3 B": Mixture(A, B, weights=(0.7, 0.3)),
    }


def hidden(model: Any) -> Any:
    """The same composition of models that know only scores."""
    if isinstance(model, Tempered):
        return Tempered(Hidden(model.models[0]), model.temperature)  # type: ignore[arg-type]
    parts = [Hidden(part) for part in model.models]
    if isinstance(model, Mixture):
        return Mixture(*parts, weights=model.shares.tolist())
    return Product(*parts, weights=model.weights)


def exact(model: Any, t: float) -> tuple[float, float, float]:
    """(weight of x > 0, mean, variance) of the composed law at a time, by quadrature."""
    x = torch.linspace(-7, 7, 40_001, dtype=F64).unsqueeze(1)
    if isinstance(model, Mixture):
        p = model.shares[0] * A.log_prob(x, t).exp() + model.shares[1] * B.log_prob(x, t).exp()
        p = p / p.sum()
    else:
        terms = [b * part.log_prob(x, t) for b, part in factors(model)]  # type: ignore[operator]
        p = torch.stack(terms).sum(0).softmax(0)
    u = x[:, 0]
    mean = float((p * u).sum())
    return float(p[u > 0].sum()), mean, float((p * u.square()).sum()) - mean**2


def sampled(
    solver: Any, model: ScoreModel, moves: int, runs: int
) -> tuple[list[float], list[float]]:
    """Means over the runs of the same three numbers, and their standard errors."""
    rows = []
    for seed in range(runs):
        x = Sampler(solver, UniformLam(moves)).sample(model, (PARTICLES, 1), seed=seed, dtype=F64)
        rows.append([float((x > 0).double().mean()), float(x.mean()), float(x.var())])
    table = torch.tensor(rows, dtype=F64)
    return table.mean(0).tolist(), (table.std(0) / math.sqrt(runs)).tolist()


def solvers(model: ScoreModel) -> list[tuple[str, Any, Any, int]]:
    """(name, solver, model as it sees it, moves)."""
    if isinstance(model, Mixture):
        return [
            ("its own score", Ancestral("large"), model, 200),
            ("Superposition, scores", Superposition(), hidden(model), 200),
        ]
    return [
        ("sum of scores, no weights", Ancestral("large"), model, 200),
        ("FeynmanKac, scores", FeynmanKac(), hidden(model), 400),
        ("FeynmanKac and MALA, densities", FeynmanKac(weights="densities", kernel=MOVE), model, 60),
    ]


def rows(
    runs: int, only: str
) -> Iterator[tuple[str, str, tuple[float, ...], list[float], list[float]]]:
    """(composition, sampler, exact numbers, found numbers, standard errors)."""
    for name, model in compositions().items():
        if only not in name:
            continue
        truth = exact(model, 0.0)
        for title, solver, seen, moves in solvers(model):
            yield f"{name}", f"{title}, {moves} moves", truth, *sampled(solver, seen, moves, runs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=None, help="a Markdown file to write")
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--only", default="", help="compositions whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| law | sampler | right mode | exact | mean | exact | variance | exact |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, title, truth, found, error in rows(options.runs, options.only):
        cells = [
            f"{f:.4f} ± {e:.4f} | {t:.4f}" for f, e, t in zip(found, error, truth, strict=True)
        ]
        lines.append(f"| {name} | {title} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
