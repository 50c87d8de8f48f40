"""Bits per dimension of the held-out digits: bound, Hutchinson and exact trace beside two fits.

Every figure is -log2 P per pixel of the 297 test digits: mean and standard error over digits. The
ODE's figures and the fits are densities of uniformly dequantised digits (one draw of noise, the
same for all); the bound is on the levels themselves. The bound and the ODE belong to different
models, the reverse chain and the probability-flow ODE, so neither need be the larger.

python benchmarks/figures/digits_likelihood.py [--out docs/_generated/digits_likelihood.txt] [--exact 48]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from sklearn.mixture import GaussianMixture as Mixture
from torch import Tensor

from scoregen import digits
from scoregen.likelihood import BitsRow, bits_per_dim, bits_report, bits_table, dequantise
from scoregen.training import digits_model


def fits(train: Tensor, test: Tensor) -> list[tuple[str, Tensor]]:
    """Log-densities of the test digits under a Gaussian and a mixture fitted to the training ones.

    The mixture's number of components and the ridge on the covariances are chosen on 300 of the
    training digits.
    """
    x, y = train.flatten(1).double().numpy(), test.flatten(1).double().numpy()
    found = []
    for name, counts in (("Gaussian", (1,)), ("mixture", (5, 10, 20, 40))):
        choices = [(k, ridge) for k in counts for ridge in (1e-4, 1e-3, 1e-2)]
        scores = [
            Mixture(k, reg_covar=r, random_state=0).fit(x[:1200]).score(x[1200:])
            for k, r in choices
        ]
        k, ridge = choices[scores.index(max(scores))]
        fit = Mixture(k, reg_covar=ridge, random_state=0).fit(x)
        log_p = torch.from_numpy(fit.score_samples(y))
        found.append((f"{name} fit ({k} components, ridge {ridge:g})", log_p))
    return found


def rows(exact: int, probes: int, knots: int) -> list[BitsRow]:
    """The table's rows."""
    train, test = digits("train"), digits("test")
    levels: dict[str, Any] = {"bins": test.bins, "data_range": test.range}
    model = digits_model()
    found = []
    for of, net, jacobians in (
        ("p(x)", model, exact),
        ("p(x, its class given)", model.given(label=test.label), 0),
    ):
        report = bits_report(net, test.x, **levels, exact=jacobians, probes=probes, knots=knots)
        found += [row._replace(estimate=f"{of}: {row.estimate}") for row in report]
    g = torch.Generator().manual_seed(0)
    moved = dequantise(test.x, **levels, generator=g)
    order = torch.randperm(len(train.x), generator=g)
    noisy = dequantise(train.x[order], **levels, generator=g)
    for name, log_p in fits(noisy, moved):
        bits = bits_per_dim(log_p, test.x[0].numel(), **levels, dequantised=True)
        error = float(bits.std()) / len(bits) ** 0.5
        found.append(BitsRow(name, float(bits.mean()), error, len(bits), float("nan")))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=None, help="a Markdown file to write")
    parser.add_argument("--exact", type=int, default=48, help="digits with the exact trace")
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--knots", type=int, default=500)
    options = parser.parse_args()
    text = bits_table(rows(options.exact, options.probes, options.knots))
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
