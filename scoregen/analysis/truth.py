"""Truth for data that are not Gaussian: the exact flow by tight integration, and modes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_data, check_kind, check_number, check_same_shape
from ..densities import GaussianMixture
from ..models import ScoreModel
from ..models.base import check_model
from ..noise import SampleNoise
from ..processes import Level
from ..sampling import Sampler

__all__ = ["ModeErrors", "exact_flow", "mode_errors", "strong_error"]


@torch.no_grad()
def exact_flow(
    model: ScoreModel, x: Tensor, t: float, s: float, *, rtol: float = 1e-10, atol: float = 1e-12
) -> Tensor:
    """The probability-flow map from time t to time s, by Dormand-Prince 8(5,3) in the angle.

    With theta = atan(sigma / alpha) and w = x / sqrt(alpha^2 + sigma^2) the ODE of every process is
    dw / dtheta = cos(theta) eps - sin(theta) x0: one path, finite at both ends, whatever alpha and
    sigma do in time.

    Args:
        model: a score model that can be evaluated at every level between t and s.
        x: state at t, shape (batch, *event).
        t: time of x.
        s: time wanted.
        rtol: relative tolerance, positive; the batch shares its steps.
        atol: absolute tolerance on w, positive.

    Returns:
        x at s, float64, shaped like x.

    Raises:
        ValueError: for times outside [0, t_max], tolerances that are not positive and finite, or a
            state that is not finite.
        RuntimeError: if the integration fails, or the model predicts values that are not finite.

    >>> from scoregen import EDMSDE, Gaussian
    >>> model = Gaussian(EDMSDE(), torch.zeros(1).double(), torch.ones(1).double())
    >>> x = torch.ones(1, 1).double()
    >>> bool((exact_flow(model, x, 80.0, 0.0) - model.flow(x, 80.0, 0.0)).abs() < 1e-9)
    True
    """
    check_model(model)
    check_data(x)
    t, s = check_number("t", t), check_number("s", s)
    rtol = check_number("rtol", rtol, 0.0, open_low=True)
    atol = check_number("atol", atol, 0.0, open_low=True)
    first, last = model.sde.level(t), model.sde.level(s)
    ends = [math.atan2(level.sigma, level.alpha) for level in (first, last)]
    low, high = min(ends), max(ends)

    def level(angle: float) -> Level:
        if angle <= low or angle >= high:  # the ends themselves, where lam may be infinite
            return first if abs(angle - ends[0]) <= abs(angle - ends[1]) else last
        return model.sde.level_at(-math.log(math.tan(angle)))

    def slope(angle: float, flat: object) -> object:
        at = level(angle)
        w = torch.as_tensor(flat, dtype=torch.float64).reshape(x.shape)
        p = model.predict(math.hypot(at.alpha, at.sigma) * w, at)
        moved = (math.cos(angle) * p.eps - math.sin(angle) * p.x0).double().reshape(-1)
        if not bool(torch.isfinite(moved).all()):  # the integrator would halve its steps for ever
            raise RuntimeError(
                f"the model predicts values that are not finite at t = {at.t:g}, so the "
                "probability flow cannot be followed there"
            )
        return moved.numpy()

    w = (x.double() / math.hypot(first.alpha, first.sigma)).reshape(-1).numpy()
    if not len(w) or ends[0] == ends[1]:
        return (
            x.double() * math.hypot(last.alpha, last.sigma) / math.hypot(first.alpha, first.sigma)
        )
    from scipy.integrate import solve_ivp  # slow to import, and most programs never need it

    solved = solve_ivp(slope, ends, w, method="DOP853", t_eval=[ends[1]], rtol=rtol, atol=atol)
    if not solved.success:
        raise RuntimeError(f"the probability flow from {t:g} to {s:g} failed: {solved.message}")
    end = torch.from_numpy(solved.y[:, -1].copy()).reshape(x.shape)
    return end * math.hypot(last.alpha, last.sigma)


@torch.no_grad()
def strong_error(
    sampler: Sampler, model: ScoreModel, x: Tensor, *, truth: Tensor | None = None
) -> float:
    """Root mean square, over samples and coordinates, of a sampler's distance to the exact flow.

    Args:
        sampler: with a noise-free solver; with another the distance says nothing.
        model: any score model, such as a mixture.
        x: states at the grid's first time, shape (batch, *event).
        truth: `exact_flow` of x to the grid's last time, if known already; computed otherwise.

    >>> from scoregen import DDIM, EDMSDE, GaussianMixture, Karras
    >>> model = GaussianMixture(EDMSDE(), torch.ones(2), torch.eye(2), torch.full((2,), 0.1))
    >>> x = model.sample(16, 80.0)
    >>> truth = exact_flow(model, x, 80.0, 0.0)
    >>> errors = [strong_error(Sampler(DDIM(), Karras(n)), model, x, truth=truth) for n in (8, 64)]
    >>> errors[1] < errors[0] / 4
    True
    """
    check_kind("sampler", sampler, Sampler, "Sampler(DDIM(), UniformTime(20))")
    levels = sampler.levels(check_model(model).sde)
    if check_data(x).numel() == 0:
        raise ValueError(f"x must hold at least one state, got the shape {tuple(x.shape)}")
    if truth is not None:
        check_same_shape("truth", check_data(truth, "truth"), x)
    else:
        truth = exact_flow(model, x, levels[0].t, levels[-1].t)
    out = sampler.run(model, x, noise=SampleNoise(0))
    return float((out.double() - truth).square().mean().sqrt())


class ModeErrors(NamedTuple):
    """Per mode of a mixture, what a set of samples makes of it; shapes (K,).

    Attributes:
        weights: share of the samples minus the mode's weight.
        means: distance of the mean from the mode's, in its root-mean-square standard deviation.
        covariances: Frobenius norm of the covariance's error, relative to the mode's covariance.

    >>> ModeErrors(torch.zeros(2), torch.zeros(2), torch.zeros(2)).weights.shape
    torch.Size([2])
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor


def mode_errors(samples: Tensor, model: GaussianMixture, t: float = 0.0) -> ModeErrors:
    """Errors of the weights, means and covariances of a mixture's modes, by exact responsibilities.

    With r_k(x) = w_k N_k(x) / p(x): E r_k = w_k, E r_k x = w_k m_k, E r_k (x - m_k)(x - m_k)^T
    = w_k S_k for x ~ p, overlapping modes or not. So every error has mean zero, of order
    1 / sqrt(samples), if and only if the samples have these moments.

    Args:
        samples: shape (batch, *event), at time t.
        model: the mixture.
        t: time at which the samples stand.

    >>> from scoregen import EDMSDE
    >>> model = GaussianMixture(EDMSDE(), torch.ones(2), torch.eye(2), torch.full((2,), 0.1))
    >>> bool((mode_errors(model.sample(10_000), model).weights.abs() < 0.05).all())
    True
    """
    check_data(samples, "samples")
    check_kind("model", model, GaussianMixture, "GaussianMixture(sde, weights, means, covariances)")
    level = model.sde.level(t)
    x = samples.reshape(len(samples), -1).double()
    if len(x) == 0 or samples.shape[1:] != model.event:
        raise ValueError(
            f"samples must have shape (batch, *{model.event}) with batch >= 1, got "
            f"{tuple(samples.shape)}"
        )
    spectra = level.alpha**2 * model.variances.double() + level.sigma**2
    share = model.log_joint(x, level).softmax(-1)
    mass = share.sum(0)
    from_centre = x.unsqueeze(1) - level.alpha * model.means.double()
    shift = torch.einsum("bk,bkd->kd", share, from_centre) / mass.unsqueeze(1)
    centred = from_centre - shift
    spread = torch.einsum("bk,bkd,bke->kde", share, centred, centred) / mass.view(-1, 1, 1)
    truth = torch.diag_embed(spectra)
    if model.vectors is not None:
        truth = model.vectors.double() @ truth @ model.vectors.double().mT
    return ModeErrors(
        mass / len(x) - model.log_weights.double().exp(),
        shift.norm(dim=1) / spectra.mean(1).sqrt(),
        (spread - truth).norm(dim=(1, 2)) / truth.norm(dim=(1, 2)),
    )
