"""Bits per dimension of the held-out digits: bound, Hutchinson and exact trace beside two fits.

Every figure is -log2 P per pixel of the 297 test digits: mean and standard error over digits. The
ODE's figures and the fits are densities of uniformly dequantised digits (one draw of noise, the
same for all); the bound is on the levels themselves. The bound and the ODE belong to different
models, the reverse chain and the probability-flow ODE, so neither need be the larger.

python benchmarks/digits_likelihood.py [--out docs/_generated/digits_likelihood.md] [--exact 48]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.mixture import GaussianMixture as Mixture
from torch import Tensor

from scoregen import ScoreModel, digits
from scoregen.checkpoint import digits_model
from scoregen.likelihood import (
    DiscretisedGaussian,
    Exact,
    Hutchinson,
    bits_per_dim,
    bound,
    dequantise,
    log_prob,
)

HEAD = "| estimate | of | bits per dimension | digits | seconds |\n|---|---|---|---|---|"


def row(name: str, of: str, bits: Tensor, seconds: float) -> str:
    """A line of the table: mean and standard error over the digits."""
    error = float(bits.std()) / len(bits) ** 0.5
    return (
        f"| {name} | {of} | {float(bits.mean()):.3f} ± {error:.3f} | {len(bits)} | {seconds:.0f} |"
    )


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


def lines(exact: int, probes: int, knots: int) -> list[str]:
    """The table's rows."""
    train, test = digits("train"), digits("test")
    levels: dict[str, object] = {"bins": test.bins, "data_range": test.range}
    g = torch.Generator().manual_seed(0)
    moved = dequantise(test.x, **levels, generator=g)  # type: ignore[arg-type]
    order = torch.randperm(len(train.x), generator=g)
    noisy = dequantise(train.x[order], **levels, generator=g)  # type: ignore[arg-type]
    dims = test.x[0].numel()

    def bits(nats: Tensor) -> Tensor:
        return bits_per_dim(nats, dims, **levels, dequantised=True)  # type: ignore[arg-type]

    model = digits_model()
    found = []
    for label, net in (("p(x)", model), ("p(x, its class given)", model.given(label=test.label))):
        found += network_rows(net, label, test.x, moved, bits, dims, probes, knots)
    start = time.time()
    few = log_prob(model, moved[:exact], trace=Exact(chunk=16), rtol=1e-4, atol=1e-4)
    name = f"ODE, exact trace, at t = {few.t_min:g}"
    found.append(row(name, "p(x)", bits(few.value), time.time() - start))
    start = time.time()
    same = log_prob(model, moved[:exact], trace=Hutchinson(probes), rtol=1e-4, atol=1e-4)
    name = f"ODE, {probes} Hutchinson probes, the same digits"
    found.append(row(name, "p(x)", bits(same.value), time.time() - start))
    gap = (same.value - few.value) / same.stderr
    print(f"(Hutchinson - exact) / its standard error: mean {float(gap.mean()):.2f}, "
          f"spread {float(gap.std()):.2f} over {exact} digits")  # fmt: skip
    start = time.time()
    for name, log_p in fits(noisy, moved):
        found.append(row(name, "p(x)", bits(log_p), time.time() - start))
    return found


def network_rows(
    model: ScoreModel,
    label: str,
    x: Tensor,
    moved: Tensor,
    bits: Callable[[Tensor], Tensor],
    dims: int,
    probes: int,
    knots: int,
) -> list[str]:
    """The bound on the levels and the Hutchinson estimate of all digits."""
    sde = model.sde
    lam = torch.linspace(
        sde.level(sde.t_max).lam, sde.level(sde.t_min).lam, knots, dtype=torch.float64
    )
    times = [sde.t_max, *sde.time(lam)[1:-1].tolist(), sde.t_min]
    start = time.time()
    decoder = DiscretisedGaussian(17, (-1.0, 1.0))
    found = bound(model, x, times=times, decoder=decoder)
    rows = [row(f"bound, {knots} knots", label, found.bits_per_dim(dims), time.time() - start)]
    start = time.time()
    estimate = log_prob(model, moved, trace=Hutchinson(probes), rtol=1e-4, atol=1e-4)
    name = f"ODE, {probes} Hutchinson probes, at t = {estimate.t_min:g}"
    return [*rows, row(name, label, bits(estimate.value), time.time() - start)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=None, help="a Markdown file to write")
    parser.add_argument("--exact", type=int, default=48, help="digits with the exact trace")
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--knots", type=int, default=500)
    options = parser.parse_args()
    text = "\n".join([HEAD, *lines(options.exact, options.probes, options.knots)])
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
