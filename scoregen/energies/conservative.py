"""Between a score and an energy: the line integral, the curl, the sign, and the energy itself.

A field is a gradient if its Jacobian is symmetric; then E(y) - E(x) = -int score . dx on any path.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._checks import check_count, check_same_shape
from ..models import Prediction, ScoreModel
from ..processes import Level, StaticSDE
from .energy import EnergyModel, energy_of

__all__ = [
    "Curl",
    "LineIntegral",
    "ScoreEnergy",
    "check_energy_sign",
    "curl",
    "energy_from_score",
    "line_integral",
]


class LineIntegral(NamedTuple):
    """E(y) - E(x) and an estimate of its absolute error, each of shape (batch,).

    >>> LineIntegral(torch.zeros(1), torch.zeros(1)).error
    tensor([0.])
    """

    difference: Tensor
    error: Tensor


def line_integral(
    model: ScoreModel,
    x: Tensor,
    y: Tensor,
    t: Level | float,
    *,
    nodes: int = 16,
    pieces: int = 1,
    **condition: Any,
) -> LineIntegral:
    """E(y) - E(x) = -int_0^1 score(x + u (y - x)) . (y - x) du, with an error estimate.

    Gauss-Legendre on each of `pieces` equal parts of the segment. The error is the difference from
    half the nodes on the same parts, plus rounding: an upper estimate, since the rule returned
    is far better than the one it is compared with. Where it is too large, take more pieces.
    Costs 3/2 nodes x pieces evaluations.

    Args:
        model: any score model.
        x: start points, shape (batch, *event).
        y: end points, shaped like x.
        t: level or time.
        nodes: an even number of nodes in each part.
        pieces: parts of the segment.

    >>> from scoregen import EDMSDE, Gaussian
    >>> model = Gaussian(EDMSDE(), torch.zeros(1), 1.0)
    >>> zero, two = torch.zeros(1, 1).double(), torch.full((1, 1), 2.0).double()
    >>> round(line_integral(model, zero, two, 0.0).difference.item(), 9)
    2.0
    """
    check_same_shape("y", y, x)
    if check_count("nodes", nodes, 2) % 2:
        raise ValueError(f"nodes must be even, so that half of them check the rule, got {nodes}")
    check_count("pieces", pieces)
    level = t if isinstance(t, Level) else model.level(t, x)
    fine, coarse, size = (x.new_zeros(len(x)) for _ in range(3))
    for k in range(pieces):
        for count in (nodes, nodes // 2):
            points, weights = np.polynomial.legendre.leggauss(count)
            for u, w in zip((points + 1) / 2, weights / 2, strict=True):
                at = x + (float(u) + k) / pieces * (y - x)
                score = model.predict(at, level, **condition).score
                along = (score * (y - x)).reshape(len(x), x.shape[1:].numel()).sum(1)
                slope = float(w) / pieces * along
                if count == nodes:
                    fine, size = fine - slope, size + slope.abs()
                else:
                    coarse = coarse - slope
    rounding = 8 * torch.finfo(x.dtype).eps * size
    return LineIntegral(fine, (fine - coarse).abs() + rounding)


class Curl(NamedTuple):
    """How far a field is from a gradient, per sample: Frobenius norms, each of shape (batch,).

    Attributes:
        skew: of (J - J^T) / 2, with J the Jacobian of the score; 0 for a gradient.
        size: of J itself.

    >>> Curl(torch.tensor([3.0]), torch.tensor([6.0])).relative
    tensor([0.5000])
    """

    skew: Tensor
    size: Tensor

    @property
    def relative(self) -> Tensor:
        """skew / size, between 0 (a gradient) and about 1 (a pure rotation), shape (batch,)."""
        return self.skew / self.size.clamp(min=torch.finfo(self.size.dtype).tiny)


def curl(
    model: ScoreModel,
    x: Tensor,
    t: Level | float,
    *,
    generator: torch.Generator,
    probes: int = 8,
    **condition: Any,
) -> Curl:
    """Is this field a gradient? Root mean squares of (v J u - u J v) / 2 and u J v over pairs.

    For independent standard normal u and v, E (u J v)^2 is the squared Frobenius norm of J; the
    antisymmetric form gives that of (J - J^T) / 2. Costs two backward passes per pair.

    Args:
        model: any score model, differentiable in x.
        x: points, shape (batch, *event).
        t: level or time.
        generator: source of the probes.
        probes: pairs of probes.

    >>> from scoregen import EDMSDE, Gaussian
    >>> model = Gaussian(EDMSDE(), torch.zeros(2), 1.0)
    >>> g = torch.Generator().manual_seed(0)
    >>> curl(model, torch.zeros(1, 2), 1.0, generator=g).relative
    tensor([0.])
    """
    check_count("probes", probes)
    level = t if isinstance(t, Level) else model.level(t, x)
    skew, size = x.new_zeros(len(x)), x.new_zeros(len(x))
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        score = model.predict(leaf, level, **condition).score
        for _ in range(probes):
            u, v = (
                torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
                for _ in range(2)
            )
            u, v = u.to(x.device), v.to(x.device)
            forms = []
            for left, right in ((u, v), (v, u)):
                (pulled,) = torch.autograd.grad(score, leaf, left, retain_graph=True)
                forms.append((pulled * right).reshape(len(x), -1).sum(1))
            skew = skew + ((forms[0] - forms[1]) / 2).square() / probes
            size = size + (forms[0].square() + forms[1].square()) / (2 * probes)
    return Curl(skew.sqrt(), size.sqrt())


class ScoreEnergy(EnergyModel):
    """A model at one level, seen as a time-free energy: E(x) = E(x) - E(anchor) at that level.

    The score is the model's own; the energy is exact where the model has one, and a line integral
    from the anchor otherwise. Differences are integrated from point to point, not by the anchor.

    Args:
        model: any score model.
        t: the time at which it is frozen.
        anchor: a point of zero energy, shape event; the origin unless given.
        nodes: Gauss-Legendre nodes of the line integral.

    >>> from scoregen import EDMSDE, Gaussian
    >>> frozen = ScoreEnergy(Gaussian(EDMSDE(), torch.zeros(1), 3.0), 1.0)
    >>> round(energy_of(frozen, torch.full((1, 1), 2.0)).item(), 6)
    0.5
    """

    def __init__(
        self, model: ScoreModel, t: float, *, anchor: Tensor | None = None, nodes: int = 16
    ):
        super().__init__()
        self.model, self.sde, self.nodes = model, StaticSDE(), check_count("nodes", nodes)
        self.at = model.level(t, torch.zeros(1))
        if self.at.sigma == 0 and not isinstance(model.sde, StaticSDE):
            raise ValueError(
                f"at t = {t:g} there is no noise, where a score may not exist; freeze the model at "
                f"t >= {max(model.sde.t_min, 1e-3):g}"
            )
        self.register_buffer("anchor", anchor)
        self.anchor: Tensor | None

    def _start(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.anchor is None else self.anchor.to(x).expand_as(x)

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        return self.model.energy_difference(
            self._start(x), x, self.at, nodes=self.nodes, **condition
        )

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        score = self.model.predict(x, self.at, **condition).score
        return Prediction(self.sde, t, x, score=score)

    def energy_difference(
        self, x: Tensor, y: Tensor, t: Level | float, *, nodes: int | None = None, **condition: Any
    ) -> Tensor:
        return self.model.energy_difference(x, y, self.at, nodes=nodes or self.nodes, **condition)

    def check_condition(self, **condition: Any) -> None:
        self.model.check_condition(**condition)


def energy_from_score(
    model: ScoreModel, t: float, *, anchor: Tensor | None = None, nodes: int = 16
) -> ScoreEnergy:
    """The marginal p_t of a score model as a time-free energy model; see `ScoreEnergy`.

    It is an energy only as far as the score is a gradient: `curl` measures that.

    >>> from scoregen import EDMSDE, Gaussian
    >>> frozen = energy_from_score(Gaussian(EDMSDE(), torch.zeros(2), 1.0), 1.0)
    >>> frozen.score(torch.ones(1, 2), 0.0)
    tensor([[-0.5000, -0.5000]])
    """
    return ScoreEnergy(model, t, anchor=anchor, nodes=nodes)


def check_energy_sign(
    model: ScoreModel,
    x: Tensor,
    t: Level | float = 0.0,
    *,
    samples: Tensor | None = None,
) -> None:
    """Refuse a model whose score is not minus the gradient of its energy.

    Compares E(x + d) - E(x - d) with -2 score . d along the score; and, where samples of the
    model's own distribution are given, Stein's identity E[grad E . (x - mean)] = number of
    coordinates, which is negative for an energy learned upside down.

    Args:
        model: a model with an energy.
        x: points to compare at, shape (batch, *event), away from the modes.
        t: level or time.
        samples: data the energy is meant for, shape (n, *event).

    Raises:
        ValueError: for a wrong sign.

    >>> from scoregen.energies import Potential
    >>> check_energy_sign(Potential(lambda x: x.square().sum(1)), torch.ones(3, 2))
    """
    with torch.no_grad():
        level = t if isinstance(t, Level) else model.level(t, x)
        score = model(x, level).score
        size = score.square().mean().sqrt()
        d = score * (torch.finfo(x.dtype).eps ** (1 / 3) / size.clamp(min=1e-30))
        rise = energy_of(model, x + d, level) - energy_of(model, x - d, level)
        expected = -2 * (score * d).reshape(len(x), -1).sum(1)
        ratio = float(rise.sum() / expected.sum())
        if not 0.8 < ratio < 1.25:
            raise ValueError(
                "a score must be minus the gradient of its energy, but along the score the energy "
                f"changes by {ratio:.3g} times what the score says (1 is right, -1 a wrong sign); "
                "check the sign convention: p is proportional to exp(-E)"
            )
        if samples is not None:
            force = -model(samples, level).score
            centred = samples - samples.mean(0)
            stein = float((force * centred).reshape(len(samples), -1).sum(1).mean())
            if not stein > 0:
                raise ValueError(
                    f"on these samples grad E . (x - mean) averages {stein:.3g}, where the number "
                    f"of coordinates, {samples[0].numel()}, is due: the energy is upside down; "
                    "retrain it, or wrap it with Negated"
                )
