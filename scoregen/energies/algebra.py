"""What `a * b`, `a / b`, `a ** e` and `a + b` of models are; see `models.operators`."""

from __future__ import annotations

from typing import Any

from .._checks import check_number
from ..densities import Analytic
from ..densities.algebra import exact_product, exact_sum
from ..models import ScoreModel
from ..models.base import check_model
from .composition import Mixture, Negated, Product, Tempered, common_process

__all__ = ["power", "product", "quotient", "total"]

Part = tuple[float, ScoreModel]


def _factors(model: ScoreModel) -> list[Part]:
    """(exponent, model) of every factor; a model that is no product is its own."""
    if isinstance(model, Product) and model.scheduled:
        return [(1.0, model)]
    if isinstance(model, Product | Tempered | Negated):
        level = model.sde.level(model.sde.t_max)  # their exponents are the same at every level
        return [
            (float(weight) * exponent, factor)
            for weight, part, _ in model.parts(level)
            for exponent, factor in _factors(part)
        ]
    return [(1.0, model)]


def _exact(parts: list[Part]) -> list[tuple[float, Analytic]] | None:
    """The parts where all are densities of one shape; None where they are not all densities."""
    events = {model.event for _, model in parts if model.event is not None}
    if len(events) > 1:
        raise ValueError(
            f"models must share the shape of a sample, got {' and '.join(map(str, sorted(events)))}"
        )
    found = [(b, model) for b, model in parts if isinstance(model, Analytic)]
    return found if len(found) == len(parts) else None


def _composed(parts: list[Part]) -> ScoreModel:
    """prod_i p_i^b_i in its exact class, or level by level."""
    sde, densities = common_process([model for _, model in parts]), _exact(parts)
    found = None if densities is None else exact_product(sde, densities)
    if found is not None:
        return found
    if len(parts) == 1 and parts[0][0] > 0:
        return Tempered(parts[0][1], 1 / parts[0][0])
    return Product(*(model for _, model in parts), weights=[b for b, _ in parts])


def product(a: ScoreModel, b: ScoreModel) -> ScoreModel:
    """p_a p_b / Z: a Gaussian or a mixture where it is one, else a `Product` at every level.

    >>> import torch
    >>> from scoregen import VPSDE, Gaussian
    >>> product(Gaussian(VPSDE(), torch.zeros(1), 1.0), Gaussian(VPSDE(), torch.ones(1), 1.0)).mean
    tensor([0.5000], dtype=torch.float64)
    """
    return _composed(_factors(check_model(a)) + _factors(check_model(b)))


def power(model: ScoreModel, exponent: float) -> ScoreModel:
    """p^e / Z; e = 1 / T tempers, a negative e is a factor of a quotient or of guidance.

    >>> import torch
    >>> from scoregen import VPSDE, Gaussian
    >>> power(Gaussian(VPSDE(), torch.zeros(1), 1.0), 0.5).variances
    tensor([2.], dtype=torch.float64)
    """
    e = check_number("the exponent", exponent)
    if e == 0:
        raise ValueError("the exponent must not be 0: p^0 is flat, and no density")
    if e == 1:
        return check_model(model)
    return _composed([(e * b, factor) for b, factor in _factors(check_model(model))])


def quotient(a: ScoreModel, b: ScoreModel) -> ScoreModel:
    """p_a / p_b / Z.

    >>> import torch
    >>> from scoregen import VPSDE, Gaussian
    >>> a, b = (Gaussian(VPSDE(), torch.zeros(1), v) for v in (0.5, 1.0))
    >>> quotient(a, b).variances
    tensor([1.], dtype=torch.float64)
    """
    parts = [(-e, factor) for e, factor in _factors(check_model(b))]
    return _composed(_factors(check_model(a)) + parts)


def _terms(model: ScoreModel) -> list[tuple[float, ScoreModel, float]]:
    """(mass, density, log Z of its exp(-E)) of every term of a sum."""
    if isinstance(model, Analytic):
        return [(model.mass, model, 0.0)]
    if isinstance(model, Mixture):
        parts: list[Any] = list(model.models)
        joint = zip(model.shares.tolist(), model.log_z, parts, strict=True)
        return [(model.mass * share, part, z) for share, z, part in joint]
    raise TypeError(
        f"{type(model).__name__} does not know its normaliser, so its share of a sum is undefined: "
        "add densities such as Gaussian and GaussianMixture, or give Mixture(a, b, weights=..., "
        "log_z=...); mcmc.Superposition samples a mixture of models that have only scores"
    )


def total(a: ScoreModel, b: ScoreModel) -> ScoreModel:
    """(m_a p_a + m_b p_b) / (m_a + m_b), with the masses of `0.3 * p`; 1 unless given.

    >>> import torch
    >>> from scoregen import VPSDE, Gaussian
    >>> a = Gaussian(VPSDE(), torch.zeros(1), 1.0)
    >>> total(total(a, a), a).log_weights.exp()
    tensor([0.3333, 0.3333, 0.3333], dtype=torch.float64)
    """
    terms = _terms(check_model(a)) + _terms(check_model(b))
    sde = common_process([model for _, model, _ in terms])
    densities = _exact([(mass, model) for mass, model, _ in terms])
    found: Any = None if densities is None else exact_sum(sde, densities)
    if found is None:
        masses, models, log_z = zip(*terms, strict=True)
        found = Mixture(*models, weights=masses, log_z=log_z)
    found.mass = sum(mass for mass, _, _ in terms)
    return found
