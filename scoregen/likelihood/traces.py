"""How the trace of a Jacobian is found: exactly, or by random probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._checks import check_choice, check_count
from ..noise import SampleNoise

__all__ = ["Exact", "Hutchinson"]


@dataclass(frozen=True)
class Exact:
    """tr J = sum_i e_i . J e_i, one product with the Jacobian per coordinate.

    Args:
        chunk: most products at once, to bound the memory; all unless given.

    >>> Exact().products(torch.zeros(2, 3)).shape
    torch.Size([3, 2, 3])
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None:
            check_count("chunk", self.chunk)

    def products(self, x: Tensor) -> Tensor:
        """The unit vectors, shape (d, batch, *event)."""
        d = x[0].numel()
        basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])
        return basis.expand(d, *x.shape)

    def sums(self, terms: Tensor) -> Tensor:
        """What is integrated, from e_i . J e_i of shape (d, batch): the trace, (1, batch)."""
        return terms.sum(0, keepdim=True)


@dataclass(frozen=True)
class Hutchinson:
    """tr J = E v . J v for E v v^T = I (Hutchinson 1989; Grathwohl et al. 2019, 1810.01367).

    The probes are drawn once and frozen for the whole integral; sample i's depend only on
    (seed, first + i). Var(v . J v) is 2 sum_{i != j} Sym(J)_ij^2 for Rademacher probes, which are
    exact where J is diagonal, and 2 |Sym(J)|_F^2 for Gaussian ones.

    Args:
        probes: how many are averaged; two or more give a standard error.
        kind: "rademacher" or "gaussian".
        seed: of the probes.
        first: index of the first sample, for batches that share a seed.

    >>> Hutchinson(probes=8).products(torch.zeros(2, 3)).shape
    torch.Size([8, 2, 3])
    """

    probes: int = 1
    kind: Literal["rademacher", "gaussian"] = "rademacher"
    seed: int = 0
    first: int = 0
    chunk = None

    def __post_init__(self) -> None:
        check_count("probes", self.probes)
        check_count("seed", self.seed, 0)
        check_count("first", self.first, 0)
        check_choice("kind", self.kind, ("rademacher", "gaussian"))

    def products(self, x: Tensor) -> Tensor:
        """The probes, shape (probes, batch, *event)."""
        event = (self.probes, *x.shape[1:])
        v = SampleNoise(self.seed, self.first).rows(len(x), event, 0).to(x.device, x.dtype)
        v = v.transpose(0, 1).contiguous()
        # copysign, not sign: a draw of exactly 0 must not be a probe of 0
        return torch.ones_like(v).copysign(v) if self.kind == "rademacher" else v

    def sums(self, terms: Tensor) -> Tensor:
        """What is integrated, from v . J v of shape (probes, batch): each probe on its own."""
        return terms
