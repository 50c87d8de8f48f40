"""Unit inputs through a real sampler: its coefficients, and whether it has any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_finite, check_kind, check_number, check_numbers, check_tensor
from ..densities import Gaussian
from ..models import Counted
from ..noise import Noise
from ..processes import SDE, Level
from ..sampling import Sampler

__all__ = ["NotAffineError", "gaussian_model"]


class NotAffineError(ValueError):
    """A sampler whose output on Gaussian data is not Gaussian, or not independent of its batch.

    >>> issubclass(NotAffineError, ValueError)
    True
    """


def gaussian_model(
    sde: SDE,
    variances: Tensor | Sequence[float],
    mean: Tensor | float = 0.0,
    kind: type[Gaussian] = Gaussian,
) -> Gaussian:
    """The exact model of N(mean, diag(variances)) in float64, a `kind` of Gaussian.

    >>> from scoregen import EDMSDE
    >>> gaussian_model(EDMSDE(), (0.5, 2.0), 1.0).mean
    tensor([1., 1.], dtype=torch.float64)
    """
    check_kind("sde", sde, SDE, "VPSDE()")
    if not (isinstance(kind, type) and issubclass(kind, Gaussian)):
        raise TypeError(f"kind must be Gaussian or a class made from it, got {kind!r:.80}")
    values = _numbers("variances", variances)
    if values.dim() != 1 or len(values) == 0 or not bool((values > 0).all()):
        raise ValueError(
            f"variances must be positive and of shape (d,), got {variances!r}; rotate the Gaussian "
            "into its eigenbasis first"
        )
    centre = _numbers("mean", mean)
    if centre.shape not in ((), (1,), values.shape):
        raise ValueError(
            f"mean must be a number or of shape {tuple(values.shape)}, got {tuple(centre.shape)}"
        )
    return kind(sde, centre.expand(values.shape), values)


def _numbers(name: str, values: Tensor | Sequence[float] | float) -> Tensor:
    """Finite real numbers in float64."""
    if isinstance(values, Tensor):
        found = check_tensor(name, values).to(torch.float64)
    elif isinstance(values, Sequence):
        found = torch.tensor(check_numbers(name, values), dtype=torch.float64)
    else:
        found = torch.tensor(check_number(name, values), dtype=torch.float64)
    check_finite(name, found)
    return found


class _Draws:
    """Noise that writes a given row pattern into each draw, and notes the shapes wanted."""

    def __init__(self, given: list[Tensor] | None, units: bool = False):
        self.given, self.units, self.count = given, units, 0
        self.generator = torch.Generator().manual_seed(1)
        self.shapes: set[tuple[int, ...]] = set()
        self.seen: list[Tensor] = []

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        index = self.count
        self.count += 1
        self.shapes.add(tuple(like.shape))
        if self.units:
            z = torch.zeros_like(like)
            if index + 2 < len(z):
                z[index + 2] = 1.0
            return z
        if self.given is not None:
            return self.given[index] if index < len(self.given) else torch.zeros_like(like)
        z = torch.randn(like.shape[1:], generator=self.generator, dtype=like.dtype)
        self.seen.append(z)
        return torch.stack([z, 8.0 * z])  # the same draw at two scales


def _run(sampler: Sampler, model: Gaussian, x: Tensor, noise: Noise) -> Tensor:
    for step in sampler.iterate(model, x, noise=noise):
        x = step.x
    if not bool(torch.isfinite(x).all()):
        raise NotAffineError(
            "the sampler left values that are not finite, so it has no affine law here: take more "
            "steps, or a grid that ends before the trouble"
        )
    return x


class Probe(NamedTuple):
    offset: Tensor
    gain: Tensor
    draws: Tensor
    nfe: float
    bend: float  # relative residual of superposition at two scales
    coupling: float  # relative change of a row that is run alone


@torch.no_grad()
def probe(sampler: Sampler, model: Gaussian) -> Probe:
    """The coefficients of the sampler, and the two residuals that say whether it has any."""
    d = len(model.mean)
    first = sampler.levels(model.sde)[0]
    spread = math.sqrt(first.alpha**2 * float(model.variances.max()) + first.sigma**2)
    generator = torch.Generator().manual_seed(0)
    u = spread * torch.randn(d, generator=generator, dtype=torch.float64)
    dry = _Draws(None)
    with Counted(model) as count:
        pair = _run(sampler, model, torch.stack([u, 8.0 * u]), dry)
    if dry.shapes - {(2, d)}:
        raise NotAffineError(
            f"the sampler draws noise of shapes {sorted(dry.shapes)} for a state of shape (2, {d}):"
            " such draws decide about whole samples (acceptance), and its output has no affine law"
        )
    rows = torch.zeros(dry.count + 2, d, dtype=torch.float64)
    rows[1] = 1.0
    unit = _Draws(None, units=True)
    out = _run(sampler, model, rows, unit)
    if unit.count != dry.count:
        raise NotAffineError(
            f"the sampler drew noise {dry.count} times in one run and {unit.count} times in the "
            "next: its moves depend on x, and its output has no affine law"
        )
    offset, gain, draws = out[0], out[1] - out[0], out[2:] - out[0]
    alone = _run(sampler, model, u.unsqueeze(0), _Draws([z.unsqueeze(0) for z in dry.seen]))[0]
    moved = gain * u + (draws * torch.stack(dry.seen)).sum(0) if dry.seen else gain * u
    scales = torch.tensor([[1.0], [8.0]], dtype=torch.float64)
    size = torch.cat([out.abs(), pair.abs()]).max().clamp(min=1e-300)
    bend = float((pair - offset - scales * moved).abs().max() / size)
    coupling = float((alone - pair[0]).abs().max() / size)
    return Probe(offset, gain, draws, count.rows / 2, bend, coupling)


TOLERANCE = 1e-8  # relative residual of the guards: far above rounding, far below any real bend


def refuse_bends(sampler: Sampler, model: Gaussian) -> Probe:
    """The coefficients of a sampler that is affine in its inputs, row by row; refuses others."""
    found = probe(sampler, model)
    if not found.bend <= TOLERANCE:
        raise NotAffineError(
            f"the sampler is not affine in its inputs (superposition fails by {found.bend:.1e}): "
            "clipping, thresholds, adaptive or norm-based steps have no Gaussian output law; "
            "measure samples instead"
        )
    if not found.coupling <= TOLERANCE:
        raise NotAffineError(
            f"a sample's output changes by {found.coupling:.1e} with its batch mates: the law of "
            "one sample is not defined; measure samples instead"
        )
    return found
