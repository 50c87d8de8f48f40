"""log p(x_s | x_t) of one move of a stochastic solver, from its own mean and noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import check_batch, check_kind, check_same_shape
from ..models import ScoreModel
from ..models.base import check_model
from ..noise import SampleNoise
from ..processes import Level
from ..sampling import Solver
from .metropolis import total

__all__ = ["transition_log_prob"]

_LARGEST = 4096  # coordinates of noise that are probed one by one


class _Injected:
    """Draws that are a given flat noise vector per row, cut to the shapes a solver requests."""

    def __init__(self, flat: Tensor | None, batch: int):
        self.flat, self.batch, self.used = flat, batch, 0

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        if len(like) != self.batch:
            raise ValueError(f"a draw must have one row per sample, got shape {tuple(like.shape)}")
        size = like.shape[1:].numel()
        start, self.used = self.used, self.used + size
        if self.flat is None:
            return torch.zeros_like(like)
        return self.flat[:, start : start + size].reshape(like.shape).to(like)


def transition_log_prob(
    solver: Solver, model: ScoreModel, x_t: Tensor, t: Level, s: Level, x_s: Tensor
) -> Tensor:
    """log p(x_s | x_t) of one move of a solver from level t to level s, shape (batch,).

    The move is x_s = m + J z with z ~ N(0, I): m is the move without noise, the columns of J are
    moves with one unit of noise, and the law is N(m, J J'). Whether J is a multiple of the
    identity, or diagonal, is read from two moves with random draws; only a full J costs one move
    per coordinate. Gradients reach the model's parameters through m and J where they are enabled,
    as policy-gradient fine-tuning needs.

    Args:
        solver: one whose move is affine in its noise: ancestral, DDIM with eta > 0,
            Euler-Maruyama, Langevin; a solver that keeps a state starts without one.
        model: a score model.
        x_t: shape (batch, *event).
        t: level of x_t.
        s: level of x_s.
        x_s: shaped like x_t.

    Raises:
        ValueError: where the move is no density: no noise, or not Gaussian given x_t.

    >>> from scoregen import VPSDE, Ancestral, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> t, s = model.sde.level(0.5), model.sde.level(0.4)
    >>> x = torch.zeros(1, 2)
    >>> transition_log_prob(Ancestral("large"), model, x, t, s, x).shape
    torch.Size([1])
    """
    check_kind("solver", solver, Solver, "Ancestral()")
    check_model(model)
    check_kind("t", t, Level, "sde.level(0.5)")
    check_kind("s", s, Level, "sde.level(0.4)")
    check_batch(x_t, "x_t")
    check_same_shape("x_s", check_batch(x_s, "x_s"), x_t)
    if solver.population:
        raise ValueError(
            f"{type(solver).__name__} moves a population, whose rows have no law alone"
        )
    name, batch, d = type(solver).__name__, len(x_t), x_t.shape[1:].numel()

    def move(flat: Tensor | None) -> Tensor:
        noise = _Injected(flat, batch)
        moved = solver.step(model, x_t, t, s, None, noise)[0].reshape(batch, d)
        if noise.used != size:
            raise ValueError(f"the number of draws of {name} depends on the draws; no law follows")
        return moved

    counter = _Injected(None, batch)
    mean = solver.step(model, x_t, t, s, None, counter)[0].reshape(batch, d)
    size = counter.used
    if size == 0:
        raise ValueError(
            f"{name} adds no noise from t = {t.t:g} to {s.t:g}, so x_s given x_t has no density; "
            "use a solver with noise (DDIM(eta=1.0), Ancestral()), and stop above sigma = 0"
        )
    draws = [_draw(k, batch, size, x_t) for k in range(2)]
    pushed = [move(z) - mean for z in draws]
    twice = move(2 * draws[0]) - mean
    _refuse_bent(name, pushed[0], twice)
    if float(pushed[0].detach().abs().max() if batch and d else 1.0) == 0:
        raise ValueError(
            f"{name} adds no noise from t = {t.t:g} to {s.t:g}, so x_s given x_t has no density; "
            "use a solver with noise (DDIM(eta=1.0), Ancestral()), and stop above sigma = 0"
        )
    residual = x_s.reshape(batch, d) - mean
    if size == d and batch:
        ratios = [p / z for p, z in zip(pushed, draws, strict=True)]
        close = 1e3 * torch.finfo(x_t.dtype).eps
        scale = ratios[0].detach().abs().amax(1, keepdim=True)
        # a map that multiplies two random vectors coordinate by coordinate alike is diagonal
        gap = (ratios[0] - ratios[1]).detach().abs()
        if bool((gap <= close * (scale + mean.detach().abs())).all() and (scale > 0).all()):
            sd = ratios[0].abs()
            logs = -(residual / sd).square() / 2 - sd.log() - math.log(2 * math.pi) / 2
            return total(logs)
    if size > _LARGEST:
        raise ValueError(
            f"the noise of {name} is mixed between coordinates, and {size} of them are too many to "
            f"probe one by one (at most {_LARGEST}); no closed form is offered for such a move"
        )
    units = torch.eye(size, dtype=x_t.dtype, device=x_t.device)
    columns = [move(unit.expand(batch, size)) - mean for unit in units]
    jacobian = torch.stack(columns, 2)  # (batch, d, size)
    for z, p in zip(draws, pushed, strict=True):
        _refuse_bent(name, (jacobian @ z.unsqueeze(2)).squeeze(2), 2 * p)
    covariance = jacobian @ jacobian.mT
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool((failed > 0).any()):
        raise ValueError(
            f"the noise of {name} does not reach every coordinate, so x_s given x_t has no density"
        )
    white = torch.linalg.solve_triangular(factor, residual.unsqueeze(2), upper=False).squeeze(2)
    log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
    return -white.square().sum(1) / 2 - log_det - d * math.log(2 * math.pi) / 2


def _draw(k: int, batch: int, size: int, like: Tensor) -> Tensor:
    level = Level(0.0, 1.0, 0.0, math.inf)
    z = SampleNoise(0, draw=k)(like.new_zeros(batch, size), level, level)
    return z + torch.where(z >= 0, 0.5, -0.5)  # away from zero: it is divided by


def _refuse_bent(name: str, once: Tensor, twice: Tensor) -> None:
    """F(2 z) - 2 F(z) + F(0) = 0 for a move that is affine in its draws."""
    bend = (twice - 2 * once).detach().abs()
    allowed = 1e3 * torch.finfo(once.dtype).eps * (1 + once.detach().abs())
    if bool((bend > allowed).any()):
        raise ValueError(
            f"a move of {name} is not Gaussian given x_t: it evaluates the model after adding "
            f"noise (its output bends by {float(bend.max()):.2g}); use a solver that evaluates "
            "before it draws, such as Ancestral(), DDIM(eta=1.0) or EulerMaruyama()"
        )
