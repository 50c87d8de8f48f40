"""Every method for inverse problems against exact posteriors under mixture priors.

For every y of a task the posterior is known: a mixture for linear measurements, a grid for the
nonlinear one. Of each method's samples per y it shows

    coverage   exact posterior probability of the central 90 % interval of the samples,
    MMSE gap   E |sample mean - E[x | y]|^2 over the smallest possible error E |x - E[x | y]|^2,
    W1         distance of the marginals, over the posterior's standard deviation,
    modes      mean absolute error of the weights of the modes,

means over coordinates and over y drawn from the model. Coverage alone can be right by luck. What an
exact sampler with as many samples shows is in the first row.

python benchmarks/figures/posteriors.py [--out docs/_generated/posteriors.txt] [--fast]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoregen import VPSDE, Ancestral, DivergenceError, GaussianMixture, Sampler, UniformLam
from scoregen.densities.algebra import moments
from scoregen.guidance import Reconstruction
from scoregen.inverse import (
    DPS,
    TMPD,
    DiffPIR,
    LinearMeasurement,
    PiGDM,
    RePaint,
    Replacement,
    TwistedSMC,
)
from scoregen.mcmc import RewardSteering

F64 = torch.float64
SDE = VPSDE()


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@dataclass
class Exact:
    """One posterior: marginal distribution functions, moments, and the weights of its modes."""

    cdf: Callable[[int, Tensor], Tensor]
    mean: Tensor
    variance: Tensor
    weights: Tensor
    modes: Callable[[Tensor], Tensor]
    draw: Callable[[int, int], Tensor]
    own: GaussianMixture | None


@dataclass
class Task:
    """A prior, a map A, its noise, and as many y as are judged."""

    title: str
    prior: GaussianMixture
    measure: Callable[[Tensor], Tensor]
    noise: float
    y: Tensor
    matrix: Tensor | None = None
    mask: Tensor | None = None


def linear(title: str, prior: GaussianMixture, a: Tensor, noise: float, count: int) -> Task:
    x = prior.sample(count, generator=11)
    y = x @ a.mT + noise * normal(count, len(a), seed=12)
    mask = a.sum(0) > 0 if bool(((a == 0) | (a == 1)).all()) and len(a) < a.shape[1] else None
    return Task(title, prior, lambda x: x @ a.to(x).mT, noise, y, a, mask)


def tasks(count: int) -> Iterator[Task]:
    """Four linear tasks and one that is not."""
    half = torch.tensor([0.3, 0.7])
    prior = GaussianMixture(SDE, half, torch.tensor([[-1.5], [1.0]]), torch.tensor([0.1, 0.2]))
    yield linear("Denoising in one dimension", prior, torch.ones(1, 1, dtype=F64), 0.5**0.5, count)
    corners = 1.2 * torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    prior = GaussianMixture(SDE, torch.tensor([0.2, 0.5, 0.3]), corners, torch.full((3,), 0.06))
    yield linear("One of two coordinates", prior, torch.tensor([[1.0, 0.0]], dtype=F64), 0.3, count)
    prior = GaussianMixture(
        SDE,
        torch.tensor([0.2, 0.3, 0.5]),
        normal(3, 8, seed=1),
        0.1 + 0.2 * torch.rand(3, 8, generator=torch.Generator().manual_seed(2), dtype=F64),
    )
    yield linear("Two averages of eight", prior, normal(2, 8, seed=3) / 8**0.5, 0.3, count)
    seen = torch.eye(4, dtype=F64)[[0, 2]]
    means = torch.tensor([[0.5, -1.0, -0.3, 1.0], [0.8, 1.0, -0.5, -0.5]])
    prior = GaussianMixture(SDE, torch.tensor([0.4, 0.6]), means, torch.full((2,), 0.15))
    yield linear("Inpainting: two of four coordinates, little noise", prior, seen, 0.1, count)
    prior = GaussianMixture(SDE, torch.tensor([0.2, 0.5, 0.3]), corners, torch.full((3,), 0.06))
    x = prior.sample(count, generator=11)
    product = lambda x: x.prod(1, keepdim=True)  # noqa: E731
    y = product(x) + 0.3 * normal(count, 1, seed=12)
    yield Task("The product of two coordinates (nonlinear)", prior, product, 0.3, y)


def closed(task: Task, y: Tensor) -> Exact:
    """The posterior of a linear task: a mixture."""
    found: Any = task.prior * LinearMeasurement(task.matrix, y, task.noise)  # type: ignore[arg-type]
    w, m = found.log_weights.exp(), found.means
    v = moments(found).covariances.diagonal(dim1=-2, dim2=-1)

    def cdf(i: int, x: Tensor) -> Tensor:
        return (w * torch.special.ndtr((x.unsqueeze(-1) - m[:, i]) / v[:, i].sqrt())).sum(-1)

    mean = w @ m
    variance = w @ (v + m.square()) - mean.square()
    level = SDE.level(0.0)
    return Exact(
        cdf, mean, variance, w, lambda x: found.log_joint(x, level).softmax(1).mean(0),
        lambda n, seed: found.sample(n, generator=seed), found,
    )  # fmt: skip


def gridded(task: Task, y: Tensor) -> Exact:
    """The posterior of a task in the plane, on a grid."""
    axis = torch.linspace(-3, 3, 401, dtype=F64)
    x = torch.cartesian_prod(axis, axis)
    logs = task.prior.log_prob(x) - (y - task.measure(x)).square().sum(1) / (2 * task.noise**2)
    p = logs.softmax(0)
    level = SDE.level(0.0)
    marginal = [p.reshape(401, 401).sum(1 - i).cumsum(0) for i in (0, 1)]

    def cdf(i: int, at: Tensor) -> Tensor:
        place = ((at + 3) / 6 * 400).clamp(0, 399.999)
        low, share = place.long(), place - place.floor()
        return marginal[i][low] * (1 - share) + marginal[i][low + 1] * share

    def modes(x: Tensor) -> Tensor:
        return task.prior.log_joint(x, level).softmax(1).mean(0)

    def draw(n: int, seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return x[torch.multinomial(p, n, replacement=True, generator=g)]

    mean = p @ x
    weights = p @ task.prior.log_joint(x, level).softmax(1)
    return Exact(cdf, mean, p @ x.square() - mean.square(), weights, modes, draw, None)


def judged(samples: Tensor, exact: Exact) -> tuple[float, float, float, float, float]:
    """(coverage, squared error of the mean, smallest error, W1, error of the mode weights)."""
    cover = w1 = 0.0
    d = samples.shape[1]
    for i in range(d):
        ends = samples[:, i].quantile(torch.tensor([0.05, 0.95], dtype=F64))
        inside = exact.cdf(i, ends)
        cover += float(inside[1] - inside[0]) / d
        std = float(exact.variance[i].sqrt())
        low = min(float(samples[:, i].min()), float(exact.mean[i]) - 5 * std)
        high = max(float(samples[:, i].max()), float(exact.mean[i]) + 5 * std)
        at = torch.linspace(low, high, 2001, dtype=F64)
        found = torch.searchsorted(samples[:, i].sort().values, at, right=True) / len(samples)
        gap = (found - exact.cdf(i, at)).abs().mean() * (high - low)
        w1 += float(gap) / std / d
    error = float((samples.mean(0) - exact.mean).square().sum())
    weights = float((exact.modes(samples) - exact.weights).abs().mean())
    return cover, error, float(exact.variance.sum()), w1, weights


def methods(task: Task, n: int, steps: int) -> Iterator[tuple[str, Callable[[], list[Tensor]]]]:
    """Name -> one batch of n samples for every y."""
    count, d = len(task.y), task.prior.means.shape[1]
    grid, every = UniformLam(steps), task.y.repeat_interleave(n, 0)

    def batch(solver: Any, model: Any = task.prior) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            x = Sampler(solver, grid).sample(model, (count * n, d), seed=0, dtype=F64)
            return list(x.reshape(count, n, d))

        return run

    def each(make: Callable[[Tensor], tuple[Any, Any]]) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            found = []
            for k, y in enumerate(task.y):
                model, solver = make(y)
                found.append(Sampler(solver, grid).sample(model, (n, d), seed=k, dtype=F64))
            return found

        return run

    spread = float(task.prior.sample(4000, generator=3).var(0).mean())
    if task.matrix is not None:
        a, noise = task.matrix, task.noise
        seen = LinearMeasurement(a, every, noise)
        yield (
            "exact posterior score",
            each(lambda y: (task.prior * LinearMeasurement(a, y, noise), Ancestral())),
        )
        yield "TMPD", batch(Ancestral(), TMPD(task.prior, seen))
        yield f"PiGDM, v = {spread:.2f}", batch(Ancestral(), PiGDM(task.prior, seen, spread))
        for zeta in (0.3, 1.0):
            yield f"DiffPIR, zeta = {zeta:g}", batch(DiffPIR(seen, 1.0, zeta))
        yield (
            f"twisted SMC, {n} particles",
            each(lambda y: (task.prior, TwistedSMC(LinearMeasurement(a, y, noise), spread))),
        )
        if task.mask is not None:
            known = every @ a
            yield "replacement", batch(Replacement(Ancestral(), task.mask, known))
            yield "RePaint, 5 times", batch(RePaint(task.mask, known, 5))
    for scale in (0.3, 1.0):
        yield f"DPS, scale {scale:g}", batch(DPS(task.measure, every, scale))
    for scale in (0.3, 1.0):
        guided = Reconstruction(task.prior, task.measure, every, scale)
        yield f"reconstruction guidance, {scale:g}", batch(Ancestral(), guided)

    def rewarded(y: Tensor) -> tuple[Any, Any]:
        def reward(x: Tensor) -> Tensor:
            return -(y - task.measure(x)).square().sum(1) / (2 * task.noise**2)

        return task.prior, RewardSteering(Ancestral(), reward)

    yield f"reward steering, {n} particles", each(rewarded)


def tables(fast: bool) -> Iterator[str]:
    """Lines of Markdown."""
    count, n, steps = (4, 60, 12) if fast else (16, 250, 50)
    for task in tasks(count):
        exact = [closed(task, y) if task.matrix is not None else gridded(task, y) for y in task.y]
        yield f"\n{task.title}: {count} measurements, {n} samples each, {steps} moves\n"
        yield "| method | coverage of 90 % | MMSE gap | W1 / sd | error of mode weights | seconds |"
        yield "|---|---|---|---|---|---|"
        draws = [e.draw(n, k) for k, e in enumerate(exact)]
        for name, run in [("exact draws", lambda found=draws: found), *methods(task, n, steps)]:
            started = time.process_time()
            try:
                batches = run()
            except DivergenceError:
                yield f"| {name} | diverges | – | – | – | – |"
                continue
            found = [judged(x, e) for x, e in zip(batches, exact, strict=True)]
            cover, error, least, w1, weights = (
                sum(column) / count for column in zip(*found, strict=True)
            )
            taken = time.process_time() - started
            if error > 100 * least:
                yield f"| {name} | diverges | – | – | – | – |"
                continue
            yield (
                f"| {name} | {cover:.3f} | {error / least:.3f} | {w1:.3f} | {weights:.3f} "
                f"| {taken:.1f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=None, help="a Markdown file to write")
    parser.add_argument("--fast", action="store_true", help="fewer measurements and moves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for text in tables(options.fast):
        print(text, flush=True)
        lines.append(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines).lstrip() + "\n")


if __name__ == "__main__":
    main()
