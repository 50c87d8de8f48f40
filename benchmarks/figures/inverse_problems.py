"""Every method for inverse problems against the exact posterior, on Gaussian data and a linear A.

For data N(m, S) and y = A x + noise the posterior is a Gaussian in closed form. Most methods are
then affine in their noise, so their output law is read off exactly, from one run on unit inputs.
The others (DPS, which divides by a norm, and particles) are measured on samples, with standard
errors.

python benchmarks/figures/inverse_problems.py [--out docs/_generated/inverse_problems.txt] [--fast]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scoregen import SDE, VPSDE, Ancestral, Gaussian, Level, Sampler, ScoreModel, Solver, UniformLam
from scoregen.densities import gaussian_w2
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
from scoregen.models import Counted
from scoregen.noise import ReplayNoise

F64 = torch.float64
MEAN = torch.tensor([0.5, -0.5, 1.0, 0.0], dtype=F64)
VARIANCES = torch.tensor([0.1, 0.4, 1.0, 2.0], dtype=F64)


class Problem(NamedTuple):
    """A linear inverse problem with its exact answer."""

    model: Gaussian
    seen: LinearMeasurement
    mean: Tensor
    covariance: Tensor


class Law(NamedTuple):
    """Mean and covariance of an output, and evaluations (Jacobian products included) per sample."""

    mean: Tensor
    covariance: Tensor
    nfe: float


class _Draws:
    """Zeros, counted: how many draws a sampler asks for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        self.count += 1
        return torch.zeros_like(like)


def data(sde: SDE) -> Gaussian:
    """N(m, S) with four coordinates that depend on one another."""
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=F64))
    return Gaussian(sde, MEAN, q @ torch.diag(VARIANCES) @ q.mT)


def posterior(model: Gaussian, seen: LinearMeasurement) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x given y = A x + noise."""
    vectors = torch.eye(len(model.mean), dtype=F64) if model.vectors is None else model.vectors
    prior = vectors @ torch.diag(model.variances) @ vectors.mT
    a = seen.matrix
    total = a @ prior @ a.mT + seen.noise**2 * torch.eye(len(a), dtype=F64)
    gain = torch.linalg.solve(total, a @ prior).mT
    covariance = prior - gain @ a @ prior
    return model.mean + gain @ (seen.y - a @ model.mean), (covariance + covariance.mT) / 2


def noisy(sde: SDE) -> Problem:
    """Two averages of the four coordinates, measured with noise 0.2."""
    model = data(sde)
    matrix = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.3, 0.7, 1.0]], dtype=F64)
    seen = LinearMeasurement(matrix, torch.tensor([0.8, -0.6], dtype=F64), 0.2)
    return Problem(model, seen, *posterior(model, seen))


def inpainting(sde: SDE) -> Problem:
    """Two of the four coordinates known exactly."""
    model = data(sde)
    mask = torch.tensor([True, False, True, False])
    known = torch.tensor([1.0, 0.0, 0.2, 0.0], dtype=F64)
    seen = LinearMeasurement.mask(mask, known, 0.0)
    return Problem(model, seen, *posterior(model, seen))


def affine_law(sampler: Sampler, model: ScoreModel, d: int) -> Law:
    """The exact law of an affine sampler's output, started from N(0, prior_std^2 I).

    Row 0 has no noise at all, row k the k-th unit of the start and of every draw.

    Raises:
        ValueError: if the sampler is not affine.
    """
    zero = torch.zeros(1, d, dtype=F64)
    std = model.sde.prior_std(sampler.levels(model.sde)[0].t)
    counter = _Draws()
    with torch.no_grad():
        offset = sampler.run(model, zero, noise=counter)
        count = counter.count + 1
        outputs = []
        for scale in (1.0, 3.0):
            units = scale * torch.eye(count * d, dtype=F64).reshape(count * d, count, d)
            source = ReplayNoise(list(units[:, 1:].unbind(1)))
            outputs.append((sampler.run(model, std * units[:, 0], noise=source) - offset) / scale)
        with Counted(model) as counted:
            sampler.run(model, zero, noise=_Draws())
    gain = outputs[0]
    if float((outputs[1] - gain).abs().max()) > 1e-8 * (1 + float(gain.abs().max())):
        raise ValueError(f"{sampler.solver} is not affine in its noise")
    return Law(offset[0], gain.mT @ gain, float(counted.rows))


def sampled_law(sampler: Sampler, model: ScoreModel, d: int, batch: int, runs: int) -> list[Law]:
    """Mean and covariance of each of `runs` independent batches."""
    laws = []
    for seed in range(runs):
        with Counted(model) as counted:
            x = sampler.sample(model, (batch, d), seed=seed, dtype=F64)
        laws.append(Law(x.mean(0), x.mT.cov(), counted.rows / batch))
    return laws


def pooled(laws: list[Law]) -> Law:
    """Mean and covariance of all batches together."""
    mean = torch.stack([law.mean for law in laws]).mean(0)
    within = torch.stack([law.covariance for law in laws]).mean(0)
    between = torch.stack([law.mean - mean for law in laws])
    return Law(mean, within + between.mT @ between / len(laws), laws[0].nfe)


def w2(law: Law, problem: Problem) -> float:
    """W2 between the output's moments and the exact posterior, as Gaussians."""
    return float(gaussian_w2(law.mean, law.covariance, problem.mean, problem.covariance))


def line(name: str, nfe: float, law: Law, problem: Problem, error: float | None = None) -> str:
    """A row: W2, error of the mean, ratio of the standard deviations, evaluations."""
    shift = float((law.mean - problem.mean).norm())
    ratio = math.sqrt(float(law.covariance.trace() / problem.covariance.trace()))
    found = f"{w2(law, problem):.4f}" + ("" if error is None else f" ± {error:.4f}")
    return f"| {name} | {nfe:g} | {found} | {shift:.4f} | {ratio:.3f} |"


HEAD = """| method | evaluations | W2 to the exact posterior | error of the mean | std / exact std |
|---|---|---|---|---|"""


def affine_methods(problem: Problem, known: bool) -> Iterator[tuple[str, ScoreModel, Solver]]:
    """(name, model, solver) of every method that is affine on Gaussian data."""
    model, seen = problem.model, problem.seen
    exact = Gaussian(model.sde, problem.mean, problem.covariance)
    yield "exact posterior score", exact, Ancestral()
    yield "TMPD", TMPD(model, seen), Ancestral()
    for v in (0.1, 0.875, 2.0):
        yield f"PiGDM, v = {v:g}", PiGDM(model, seen, v), Ancestral()
    if not known:
        for scale in (1.0, 10.0):
            name = f"reconstruction guidance, scale {scale:g}"
            yield name, Reconstruction(model, seen, seen.y, scale), Ancestral()
    for zeta in (0.3, 1.0):
        yield f"DiffPIR, zeta = {zeta:g}", model, DiffPIR(seen, 1.0, zeta)
    if known:
        mask = seen.matrix.sum(0) > 0
        full = seen.y @ seen.matrix
        yield "replacement", model, Replacement(Ancestral(), mask, full)
        for times in (2, 5, 20):
            yield f"RePaint, {times} times", model, RePaint(mask, full, times)


def tables(steps: int, fast: bool) -> Iterator[str]:
    """Both tables as Markdown lines.

    Methods that differentiate the denoiser also cost a product with its Jacobian per evaluation
    (TMPD one per row of A), which the column of evaluations leaves out.
    """
    sde = VPSDE()
    for title, problem, known in [
        ("Two noisy averages of four coordinates", noisy(sde), False),
        ("Inpainting: two of four coordinates known exactly", inpainting(sde), True),
    ]:
        yield f"\n{title}, {steps} moves in log-SNR on the VP process:\n"
        yield HEAD
        for name, model, solver in affine_methods(problem, known):
            repeats = getattr(solver, "resample", 1)
            sampler = Sampler(solver, UniformLam(max(2, steps // repeats)))
            law = affine_law(sampler, model, 4)
            yield line(name, law.nfe, law, problem)
        if known:
            continue
        grid = UniformLam(steps)
        for scale in (0.3, 1.0, 3.0):
            solver = DPS(problem.seen, problem.seen.y, scale)
            laws = sampled_law(Sampler(solver, grid), problem.model, 4, 4000, 2 if fast else 4)
            error = float(torch.tensor([w2(law, problem) for law in laws]).std())
            law = pooled(laws)
            yield line(f"DPS, scale {scale:g}", law.nfe, law, problem, error / len(laws) ** 0.5)
        for particles in (16, 256, 4096):
            runs = {16: 64, 256: 16, 4096: 4}[particles] * (1 if fast else 2)
            sampler = Sampler(TwistedSMC(problem.seen), grid)
            laws = sampled_law(sampler, problem.model, 4, particles, runs)
            halves = [pooled(laws[i::4]) for i in range(4)]
            error = float(torch.tensor([w2(law, problem) for law in halves]).std() / 2)
            law = pooled(laws)
            yield line(f"twisted SMC, {particles} particles", law.nfe, law, problem, error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=None, help="a Markdown file to write")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--fast", action="store_true", help="fewer samples")
    options = parser.parse_args()
    lines = []
    for text in tables(options.steps, options.fast):
        print(text, flush=True)
        lines.append(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines).lstrip() + "\n")


if __name__ == "__main__":
    main()
