"""Bits per dimension of quantised data, by every estimate side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._checks import check_count, check_data, check_flag, check_kind
from ..models import ScoreModel
from ..models.base import check_model
from .bound import bound
from .decoders import DiscretisedGaussian
from .levels import bits_per_dim, dequantise
from .ode import log_prob
from .traces import Exact, Hutchinson

__all__ = ["BitsRow", "bits_report", "bits_table"]


class BitsRow(NamedTuple):
    """One estimate of -log2 P per dimension: mean over samples, standard error, seconds.

    >>> BitsRow("bound", 3.2, 0.01, 297, 5.0).bits
    3.2
    """

    estimate: str
    bits: float
    stderr: float
    samples: int
    seconds: float


def bits_report(
    model: ScoreModel,
    x: Tensor,
    *,
    bins: int,
    data_range: tuple[float, float],
    knots: int = 500,
    probes: int = 4,
    exact: int = 48,
    rtol: float = 1e-4,
    seed: int = 0,
    progress: bool = True,
) -> list[BitsRow]:
    """The chain's bound, Hutchinson's and the exact trace of the probability-flow ODE.

    The bound is on the levels themselves, the ODE's figures are densities of uniformly dequantised
    data. They belong to different models, the reverse chain and the flow, so neither need be the
    larger.

    Args:
        model: a score model, its condition bound.
        x: data on the levels, shape (n, *event).
        bins: number of levels.
        data_range: the lowest and the highest level.
        knots: of the chain that the bound is of, equally far apart in log(alpha / sigma).
        probes: Hutchinson probes.
        exact: how many samples get the exact trace, which costs one Jacobian an evaluation; a row
            with Hutchinson's estimate of the same samples stands beside it.
        rtol: tolerance of the ODE.
        seed: of the dequantisation and of the probes.
        progress: show a bar.

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.full((2,), 0.3))
    >>> x = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    >>> rows = bits_report(model, x, bins=3, data_range=(-1.0, 1.0), knots=20, exact=2,
    ...                    progress=False)
    >>> [row.estimate for row in rows]
    ['bound, 20 knots', 'ODE, 4 Hutchinson probes', 'ODE, 4 Hutchinson probes, the same samples',
     'ODE, exact trace']
    """
    check_model(model)
    check_data(x)
    if len(x) == 0:
        raise ValueError("x must hold at least one sample, got none")
    check_count("knots", knots, 2)
    check_count("probes", probes)
    check_count("exact", exact, 0)
    check_count("seed", seed, 0)
    check_flag("progress", progress)
    generator = torch.Generator().manual_seed(seed)
    moved = dequantise(x.cpu(), bins=bins, data_range=data_range, generator=generator).to(x)
    dims = x[0].numel()

    def bits(nats: Tensor) -> Tensor:
        return bits_per_dim(nats, dims, bins=bins, data_range=data_range, dequantised=True)

    def estimates() -> Iterator[tuple[str, Tensor]]:
        sde = model.sde
        first, last = sde.level(sde.t_max).lam, sde.level(sde.t_min).lam
        lam = torch.linspace(first, last, knots, dtype=torch.float64)
        times = [sde.t_max, *sde.time(lam)[1:-1].tolist(), sde.t_min]
        decoder = DiscretisedGaussian(bins, data_range)
        yield (
            f"bound, {knots} knots",
            bound(model, x, times=times, decoder=decoder).bits_per_dim(dims),
        )
        hutchinson = log_prob(model, moved, trace=Hutchinson(probes), rtol=rtol, atol=rtol)
        yield f"ODE, {probes} Hutchinson probes", bits(hutchinson.value)
        if exact == 0:
            return
        few = moved[:exact]
        same = hutchinson.value[:exact]
        yield f"ODE, {probes} Hutchinson probes, the same samples", bits(same)
        yield (
            "ODE, exact trace",
            bits(log_prob(model, few, trace=Exact(chunk=16), rtol=rtol, atol=rtol).value),
        )

    rows, began = [], time.perf_counter()
    for name, value in tqdm(
        estimates(), total=4 if exact else 2, desc="likelihood", disable=not progress
    ):
        now = time.perf_counter()
        stderr = float(value.std()) / len(value) ** 0.5
        rows.append(BitsRow(name, float(value.mean()), stderr, len(value), now - began))
        began = now
    return rows


def bits_table(rows: list[BitsRow]) -> str:
    """The rows as markdown.

    >>> print(bits_table([BitsRow("bound", 3.2, 0.01, 297, 5.0)]))
    | estimate | bits per dimension | samples | seconds |
    |---|---|---|---|
    | bound | 3.200 ± 0.010 | 297 | 5 |
    """
    check_kind("rows", rows, list, "what bits_report returned")
    for row in rows:
        check_kind("a row", row, BitsRow, 'BitsRow("bound", 3.2, 0.01, 297, 5.0)')
    lines = ["| estimate | bits per dimension | samples | seconds |", "|---|---|---|---|"]
    lines += [
        f"| {r.estimate} | {r.bits:.3f} ± {r.stderr:.3f} | {r.samples} | {_seconds(r.seconds)} |"
        for r in rows
    ]
    return "\n".join(lines)


def _seconds(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else ""
