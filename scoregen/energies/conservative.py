"""Between a score and an energy: the curl, the sign, and the energy itself.

A field is a gradient if its Jacobian is symmetric; then E(y) - E(x) = -int score . dx on any path.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_count, check_data, check_finite, check_kind, check_state, check_tensor
from ..densities import Analytic
from ..models import Given, Prediction, ScoreModel
from ..models.base import check_model
from ..noise.sources import normal_like
from ..processes import Level, StaticSDE
from .composition import Weighted
from .energy import EnergyModel, EnergyPrediction, energy_of
from .line import LineIntegral, part_integral

__all__ = [
    "Curl",
    "PathEnergy",
    "ScoreEnergy",
    "check_energy_sign",
    "curl",
    "energy_change",
    "energy_from_score",
]

_CURL = 0.01  # share of antisymmetry beyond which a score is no gradient for practical use


def energy_change(
    model: ScoreModel, before: Prediction, after: Prediction, t: Level, nodes: int = 8
) -> LineIntegral:
    """E(y) - E(x) from two predictions at one level, with its error; costs nothing for energies.

    Models that have only a score pay for `nodes` evaluations of the line integral, whose error is
    the larger of the differences from the rules on every other node. Where a model of its own
    kind states a difference without an error, the error is nan.

    Args:
        model: the model that made both predictions.
        before: the prediction at x.
        after: the prediction at y.
        t: the level of both.
        nodes: Gauss-Legendre nodes where there is only a score.

    >>> from scoregen.energies import Potential
    >>> model = Potential(lambda x: x.square().sum(1) / 2)
    >>> zero, one = model(torch.zeros(1, 1), 0.0), model(torch.ones(1, 1), 0.0)
    >>> energy_change(model, zero, one, zero.t)
    LineIntegral(difference=tensor([0.5000]), error=tensor([0.]))
    """
    if isinstance(before, EnergyPrediction) and isinstance(after, EnergyPrediction):
        difference = after.energy - before.energy
        return LineIntegral(difference, torch.zeros_like(difference))
    check_model(model)
    for name, prediction in (("before", before), ("after", after)):
        check_kind(name, prediction, Prediction, "model(x, t)")
    return _measured(model, before.x, after.x, t, nodes, {})


def _measured(
    model: ScoreModel, x: Tensor, y: Tensor, t: Level, nodes: int, condition: dict[str, Any]
) -> LineIntegral:
    """The model's own energy difference, and how far its line integrals may be off."""
    if isinstance(model, Given):
        return _measured(model.model, x, y, t, nodes, {**model.condition, **condition})
    if isinstance(model, ScoreEnergy):
        return _measured(model.model, x, y, model.at, model.nodes, condition)
    if isinstance(model, Weighted):
        difference, error = x.new_zeros(len(x)), x.new_zeros(len(x))
        for weight, part, level in model.parts(t):
            share = weight.reshape(-1) if isinstance(weight, Tensor) else weight
            change = _measured(part, x, y, level, nodes, condition)
            difference = difference + share * change.difference
            error = error + abs(share) * change.error
        return LineIntegral(difference, error)
    if isinstance(model, EnergyModel | Analytic):
        difference = energy_of(model, y, t, **condition) - energy_of(model, x, t, **condition)
        return LineIntegral(difference, torch.zeros_like(difference))
    if type(model).energy_difference is not ScoreModel.energy_difference:
        difference = model.energy_difference(x, y, t, nodes=nodes, **condition)
        return LineIntegral(difference, torch.full_like(difference, math.nan))
    ends = x.new_zeros(len(x)), x.new_ones(len(x))
    difference, error, _ = part_integral(model, x, y, t, ends, nodes, condition)
    return LineIntegral(difference, error)


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
    check_model(model)
    check_data(x)
    check_kind("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
    check_count("probes", probes)
    level = t if isinstance(t, Level) else model.level(t, x)
    skew, size = x.new_zeros(len(x)), x.new_zeros(len(x))
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        score = model.predict(leaf, level, **condition).score
        for _ in range(probes):
            u, v = (normal_like(x, generator) for _ in range(2))
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
    Where the score has curl, no energy has it as its gradient: `points` measure by how much, and
    a warning states the number. `consistent` is the pair that agrees: the energy of the line
    integral, with the force that is its gradient.

    Args:
        model: any score model.
        t: the time at which it is frozen.
        anchor: a point of zero energy, shape event; the origin unless given.
        nodes: Gauss-Legendre nodes of the line integral.
        points: where the curl of a score without an energy is measured, shape (n, *event), such
            as samples at this level.

    Attributes:
        curl: median of `curl(...).relative` at the points, 0 for a gradient; None without points.

    >>> from scoregen import EDMSDE, Gaussian
    >>> frozen = ScoreEnergy(Gaussian(EDMSDE(), torch.zeros(1), 3.0), 1.0)
    >>> round(energy_of(frozen, torch.full((1, 1), 2.0)).item(), 6)
    0.5
    """

    def __init__(
        self,
        model: ScoreModel,
        t: float,
        *,
        anchor: Tensor | None = None,
        nodes: int = 16,
        points: Tensor | None = None,
    ):
        super().__init__()
        check_model(model)
        if anchor is not None:
            check_finite("anchor", check_tensor("anchor", anchor))
        self.model, self.sde, self.nodes = model, StaticSDE(), check_count("nodes", nodes)
        self.at = model.level(t, torch.zeros(1))
        if self.at.sigma == 0 and not isinstance(model.sde, StaticSDE):
            raise ValueError(
                f"at t = {t:g} there is no noise, where a score may not exist; freeze the model at "
                f"t >= {max(model.sde.t_min, 1e-3):g}"
            )
        self.register_buffer("anchor", anchor)
        self.anchor: Tensor | None
        self.curl: float | None = None
        if points is not None:
            check_state(points, "points")
            generator = torch.Generator().manual_seed(0)
            found = curl(model, points, self.at, generator=generator)
            self.curl = float(found.relative.median())
            if self.curl > _CURL:
                warnings.warn(
                    f"{self.curl:.1%} of this score's Jacobian is antisymmetric (the median over "
                    f"{len(points)} points), so no energy has it as its gradient, and the energy "
                    "of a line integral depends on its path; MALA and HMC on it are biased. Use "
                    ".consistent() for the energy of the line integral with its own gradient",
                    stacklevel=2,
                )

    def consistent(self) -> PathEnergy:
        """The energy of the line integral from the anchor, with its own gradient as the force."""
        return PathEnergy(self)

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


class PathEnergy(EnergyModel):
    """E(x) = -int_0^1 score(a + u (x - a)) . (x - a) du with score -grad E: one pair that agrees.

    A density for any score, curl or not, on which MALA and HMC are exact; where the score is a
    gradient it is that of the model. Costs `nodes` evaluations and their derivatives per call.

    Args:
        frozen: the score at its level, with its anchor a and its nodes.

    >>> from scoregen import EDMSDE, Gaussian
    >>> frozen = ScoreEnergy(Gaussian(EDMSDE(), torch.zeros(1), 3.0), 1.0)
    >>> round(PathEnergy(frozen).score(torch.full((1, 1), 2.0), 0.0).item(), 5)
    -0.5
    """

    def __init__(self, frozen: ScoreEnergy):
        super().__init__()
        check_kind("frozen", frozen, ScoreEnergy, "energy_from_score(model, t)")
        self.frozen, self.sde = frozen, StaticSDE()

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        return self.frozen.energy(x, t, **condition)

    def check_condition(self, **condition: Any) -> None:
        self.frozen.check_condition(**condition)


def energy_from_score(
    model: ScoreModel,
    t: float,
    *,
    anchor: Tensor | None = None,
    nodes: int = 16,
    points: Tensor | None = None,
) -> ScoreEnergy:
    """The marginal p_t of a score model as a time-free energy model; see `ScoreEnergy`.

    It is an energy only as far as the score is a gradient: give `points`, and it is measured.

    >>> from scoregen import EDMSDE, Gaussian
    >>> frozen = energy_from_score(Gaussian(EDMSDE(), torch.zeros(2), 1.0), 1.0)
    >>> frozen.score(torch.ones(1, 2), 0.0)
    tensor([[-0.5000, -0.5000]])
    """
    return ScoreEnergy(model, t, anchor=anchor, nodes=nodes, points=points)


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
    check_model(model)
    check_data(x)
    if samples is not None:
        check_data(samples, "samples")
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
                f"changes by {ratio:.3g} times the change that the score predicts (1 is right, -1 "
                "a wrong sign); check the sign convention: p is proportional to exp(-E)"
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
