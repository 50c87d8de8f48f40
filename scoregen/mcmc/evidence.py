"""log Z along the noise levels by annealed importance sampling, in both directions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_data, check_grid, check_kind, check_number
from ..energies import energy_of
from ..grids import Grid
from ..models import ScoreModel
from ..models.base import check_model, evaluating
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver
from ..sampling.resampling import effective, systematic
from .kernel import step_at
from .langevin import Langevin
from .metropolis import MALA

__all__ = [
    "Evidence",
    "annealed_importance",
    "both_directions",
    "reverse_annealed_importance",
]

_FEW = 30.0  # effective estimates below which the spread of the weights is no guide to their tail


class Evidence(NamedTuple):
    """An estimate of log Z at the last level, with its interval.

    Attributes:
        log_z: the estimate.
        low: lower end of the interval.
        high: upper end; inf where the weights do not determine one.
        ess: effective number of chains, (sum w)^2 / sum w^2 for importance weights; the smallest
            on the way where chains are resampled.
        log_weights: log weight (or contribution) of every chain, shape (batch,).
        x: where the chains ended, shape (batch, *event); for importance weights, weighted samples
            of the level at which the run ended.
        certified_low: holds with the stated confidence (of one side) at any effective number.
        certified_high: likewise; inf unless the run started from exact draws of the last level.

    >>> Evidence(0.0, -0.1, 0.1, 10.0, torch.zeros(10), torch.zeros(10, 1)).ess
    10.0
    """

    log_z: float
    low: float
    high: float
    ess: float
    log_weights: Tensor
    x: Tensor
    certified_low: float = -math.inf
    certified_high: float = math.inf


def levels_of(kernel: Solver, grid: Grid, model: ScoreModel, x: Tensor) -> list[Level]:
    check_kernel(kernel)
    check_callable("grid", grid, "(sde) -> times, such as UniformTime(20)")
    check_model(model)
    check_data(x)
    if len(x) < 2:
        raise ValueError(f"an interval needs at least two chains, got {len(x)}")
    sde = model.sde
    return sde.levels(check_grid(grid(sde), sde.t_max, sde.t_min, "fixed"))


def check_kernel(kernel: Solver) -> None:
    if not isinstance(kernel, Solver) or kernel.direction != "fixed":
        raise TypeError(f"the kernel must act at a fixed level, like MALA or HMC, got {kernel!r}")
    if isinstance(kernel, Langevin) and kernel.temperature == 1.0:
        return
    if not kernel.invariant:
        raise ValueError(
            f"{type(kernel).__name__} does not leave each level exactly invariant, and log Z would "
            "be wrong: use MALA, HMC or NUTS at temperature 1 (for a tuned step, "
            "DualAveraging.frozen), or Langevin at temperature 1 in annealed_importance, which "
            f"weighs its own error; got {kernel!r}"
        )


def _interval(logs: Tensor, log_groups: Tensor, confidence: float) -> tuple[float, ...]:
    """(estimate, low, high, certified low) of log E exp(log w) from independent draws of log w.

    Student's t with the degrees of freedom that the kurtosis of the weights leaves to their
    variance, 2 n / (kurtosis - 1) (Satterthwaite 1946): heavy weights widen it. The upper end is
    that of -log(1 - q se / mean), since weights that were not met are missing from the mean. The
    certificate is Markov's inequality for the product of R independent unbiased estimates.
    """
    n, top = len(logs), logs.max()
    w = (logs - top).exp()
    mean = w.mean()
    estimate = float(top + mean.log())
    d2 = (w - mean).square()
    variance = float(d2.mean())
    side = (1 - confidence) / 2
    certified = float(log_groups.mean()) + math.log(side) / len(log_groups)
    if not math.isfinite(estimate):
        return estimate, -math.inf, math.inf, -math.inf
    if float(effective(logs)) < min(_FEW, n / 2):
        return estimate, min(certified, estimate), math.inf, certified
    if variance == 0:
        return estimate, estimate, estimate, certified
    kurtosis = float(d2.square().mean()) / variance**2
    freedom = min(n - 1, max(1.0, 2 * n / max(kurtosis - 1, 1e-9)))
    from scipy.special import stdtrit  # slow to import

    half = -float(stdtrit(freedom, side)) * math.sqrt(variance / (n - 1)) / float(mean)
    if half >= 1:
        return estimate, min(certified, estimate), math.inf, certified
    return estimate, estimate - half, estimate - math.log1p(-half), certified


class _Run(NamedTuple):
    """What a run from level to level left, per chain and per group of chains."""

    log_weights: Tensor
    log_groups: Tensor
    ess: float
    x: Tensor


def _run(
    kernel: Solver,
    levels: Sequence[Level],
    model: ScoreModel,
    x: Tensor,
    noise: Noise,
    repeats: int,
    resample: float,
    groups: int,
) -> _Run:
    """log w = sum_k E(x_k, t_k) - E(x_k, t_{k+1}), whose mean is Z_K / Z_0, in either direction."""
    if len(x) % groups:
        raise ValueError(
            f"{groups} groups of equal size do not divide {len(x)} chains; change either"
        )
    size = len(x) // groups
    logs = x.new_zeros(groups, size, dtype=torch.float64)
    total = x.new_zeros(groups, 1, dtype=torch.float64)
    smallest = math.inf
    first = size * torch.arange(groups, device=x.device).unsqueeze(1)
    unadjusted = MALA(kernel.step_size) if isinstance(kernel, Langevin) else None
    with evaluating(model):
        for k in range(1, len(levels)):
            t, s = levels[k - 1], levels[k]
            change = energy_of(model, x, t) - energy_of(model, x, s)
            logs = logs + change.double().reshape(groups, size)
            if k == len(levels) - 1:
                break
            if resample > 0:
                found = effective(logs)
                smallest = min(smallest, float(found.sum()))
                again = (found < resample * size).unsqueeze(1) | (resample == 1)
                u = torch.special.ndtr(noise(x.new_zeros(len(x)), s, s).double())
                chosen = systematic(logs, u.reshape(groups, size)[:, 0])
                chosen = torch.where(again, chosen, torch.arange(size, device=x.device))
                x = x[(first + chosen).flatten()]
                mean = logs.logsumexp(1, keepdim=True) - math.log(size)
                total, logs = torch.where(again, total + mean, total), logs.where(~again, 0.0)
            state: Any = None
            for _ in range(repeats):
                if unadjusted is None:
                    x, state = kernel.step(model, x, s, s, state, noise)
                else:
                    x, ratio = _unadjusted(unadjusted, model, x, s, noise)
                    logs = logs + ratio.double().reshape(groups, size)
    ess = min(smallest, float(effective(logs).sum() if resample > 0 else effective(logs.flatten())))
    every = total + logs
    return _Run(every.flatten(), every.logsumexp(1) - math.log(size), ess, x)


def _judged(run: _Run, resample: float, confidence: float) -> tuple[float, ...]:
    """The interval, from single chains or, where they were resampled, from their groups."""
    logs = run.log_groups if resample > 0 else run.log_weights
    found = _interval(logs, run.log_groups, confidence)
    ess = min(run.ess, float(effective(logs)) if resample == 0 else run.ess)
    if ess < _FEW or not math.isfinite(found[2]):
        warnings.warn(
            f"the weights are too uneven for an interval (effective number of chains {ess:.3g} of "
            f"{len(run.x)}): only the certificate is left, which holds always and has one side. "
            "Take more levels (adaptive_levels), more moves at each or more chains, resample, or "
            "bound the other side by a run in the other direction",
            stacklevel=3,
        )
    return found


def _check_run(
    noise: Noise, repeats: int, confidence: float, resample: float, groups: int, log_z: float
) -> None:
    check_callable("noise", noise, "(like, t, s) -> Tensor, such as SampleNoise(0)")
    check_number("log_z", log_z)
    check_count("repeats", repeats)
    check_number("confidence", confidence, 0.0, 1.0, open_low=True, open_high=True)
    check_number("resample", resample, 0.0, 1.0)
    check_count("groups", groups, 2 if resample > 0 else 1)


@torch.no_grad()
def annealed_importance(
    kernel: Solver,
    grid: Grid,
    model: ScoreModel,
    x: Tensor,
    *,
    noise: Noise,
    repeats: int = 1,
    resample: float = 0.0,
    groups: int = 10,
    log_z: float = 0.0,
    confidence: float = 0.999,
) -> Evidence:
    """log Z at the end of the grid by annealed importance sampling (Neal 2001, physics/9803008).

    log w = sum_k E(x_k, t_k) - E(x_k, t_{k+1}), with moves of the kernel at each level in between;
    E[w] = Z_K / Z_0 exactly, for every grid and number of moves. With `Langevin` as kernel each
    move adds the log ratio of its backward to its forward density, so that it stays exact (Crooks
    1998; Thin et al. 2021, 2102.05407). With `resample` the chains of a group are resampled
    (systematically) where their weights degenerate, sequential Monte Carlo (Del Moral et al. 2006,
    doi:10.1111/j.1467-9868.2006.00553.x); the mean over a group stays unbiased.

    The interval is Student's, on the chains' weights (on the groups' where they are resampled).
    Where fewer than 30 chains are effective, or the weights are too heavy for it, a warning is
    given and only the certificate remains: log Z >= mean of the groups' log estimates -
    log(1 / alpha) / groups, which holds always (Grosse et al. 2015, 1511.02543), and no upper end.
    No interval from weights can know of a mode that no chain has met; a run in the other direction
    (`reverse_annealed_importance`) can.

    Args:
        kernel: a solver that leaves each level invariant (MALA, HMC, NUTS), or Langevin.
        grid: falling times; `UniformTime(n)` on the StaticSDE of a `GeometricPath`.
        model: a model with energies.
        x: exact samples at the grid's first time, shape (chains, *event).
        noise: where z comes from.
        repeats: moves at each level between the ends.
        resample: share of effective chains in a group below which it is resampled: 0 never, 1 at
            every level.
        groups: independent groups of equal size, rows in order.
        log_z: log Z at the first level.
        confidence: of the interval.

    Raises:
        TypeError: for a model that has only a score.
        ValueError: for a kernel that is not invariant.

    >>> from scoregen import Gaussian, Potential, StaticSDE, UniformTime
    >>> from scoregen.energies import GeometricPath
    >>> from scoregen.noise import SampleNoise
    >>> start = Gaussian(StaticSDE(), torch.zeros(1), 1.0)
    >>> path = GeometricPath(start, Potential(lambda x: 2 * x.square().sum(1)))
    >>> found = annealed_importance(
    ...     MALA(0.2), UniformTime(10), path, start.sample(2000), noise=SampleNoise(0)
    ... )
    >>> found.low < 0.5 * math.log(math.pi / 2) < found.high
    True
    """
    _check_run(noise, repeats, confidence, resample, groups, log_z)
    levels = levels_of(kernel, grid, model, x)
    run = _run(kernel, levels, model, x, noise, repeats, resample, _fitting(groups, x, resample))
    estimate, low, high, certified = (log_z + v for v in _judged(run, resample, confidence))
    return Evidence(estimate, low, high, run.ess, run.log_weights, run.x, certified)


@torch.no_grad()
def reverse_annealed_importance(
    kernel: Solver,
    grid: Grid,
    model: ScoreModel,
    x: Tensor,
    *,
    noise: Noise,
    repeats: int = 1,
    resample: float = 0.0,
    groups: int = 10,
    log_z: float = 0.0,
    confidence: float = 0.999,
) -> Evidence:
    """log Z at the end of the grid, from exact draws there, run back to the grid's first time.

    E[1 / w] = Z_0 / Z_K, so 1 / mean(1 / w) bounds Z_K from above on average, and the certificate
    log Z <= -mean of the groups' log mean(1 / w) + log(1 / alpha) / groups holds always (Grosse et
    al. 2015, 1511.02543). Exact draws exist for simulated data, and for data themselves where
    the model is right.

    Args:
        kernel: as in `annealed_importance`.
        grid: the grid of the forward run; it is run from its end.
        model: a model with energies.
        x: exact samples at the grid's last time, shape (chains, *event).
        noise: where z comes from.
        repeats: moves at each level between the ends.
        resample: as in `annealed_importance`.
        groups: independent groups of equal size, rows in order.
        log_z: log Z at the grid's first level.
        confidence: of the interval.

    Returns:
        Evidence whose `log_weights` are log w of the paths, forwards, and whose x are at the
        grid's first time.

    >>> from scoregen import Gaussian, Potential, StaticSDE, UniformTime
    >>> from scoregen.energies import GeometricPath
    >>> from scoregen.noise import SampleNoise
    >>> start = Gaussian(StaticSDE(), torch.zeros(1), 1.0)
    >>> path = GeometricPath(start, Potential(lambda x: 2 * x.square().sum(1)))
    >>> exact = Gaussian(StaticSDE(), torch.zeros(1), 0.25).sample(2000)
    >>> found = reverse_annealed_importance(
    ...     MALA(0.2), UniformTime(10), path, exact, noise=SampleNoise(0)
    ... )
    >>> found.low < 0.5 * math.log(math.pi / 2) < found.certified_high
    True
    """
    _check_run(noise, repeats, confidence, resample, groups, log_z)
    levels = levels_of(kernel, grid, model, x)[::-1]
    run = _run(kernel, levels, model, x, noise, repeats, resample, _fitting(groups, x, resample))
    estimate, high, low, certified = (log_z - v for v in _judged(run, resample, confidence))
    logs = -run.log_weights
    return Evidence(estimate, low, high, run.ess, logs, run.x, certified_high=certified)


def _fitting(groups: int, x: Tensor, resample: float) -> int:
    """Without resampling groups only serve the certificate: the most that divide the chains."""
    if resample > 0:
        return groups
    return next(g for g in range(min(groups, len(x)), 0, -1) if len(x) % g == 0)


def both_directions(forward: Evidence, backward: Evidence) -> Evidence:
    """One estimate from a forward and a backward run, between their certified ends.

    Bennett's acceptance ratio (1976, doi:10.1016/0021-9991(76)90078-4): z = log Z_K / Z_0 solves
    sum_forward 1 / (1 + r exp(z) / w) = sum_backward 1 / (1 + w exp(-z) / r), r = n_f / n_b. The
    interval is the two certificates, valid at any effective number.

    Args:
        forward: of `annealed_importance`, without resampling.
        backward: of `reverse_annealed_importance`, without resampling, on the same grid.

    >>> forward = Evidence(0.0, -1.0, 1.0, 9.0, torch.zeros(9), torch.zeros(9, 1), -1.0)
    >>> backward = forward._replace(certified_low=-math.inf, certified_high=2.0)
    >>> both_directions(forward, backward)[1:3]
    (-1.0, 2.0)
    """
    check_kind("forward", forward, Evidence, "what annealed_importance returned")
    check_kind("backward", backward, Evidence, "what reverse_annealed_importance returned")
    if not math.isfinite(backward.certified_high) or not math.isfinite(forward.certified_low):
        raise ValueError(
            "give the run of annealed_importance first and that of reverse_annealed_importance "
            "second; each must have ended with finite weights"
        )
    up, down = forward.log_weights.double(), backward.log_weights.double()
    offset = forward.log_z - float(up.logsumexp(0) - math.log(len(up)))  # log Z of the first level
    gap = math.log(len(up) / len(down))
    low, high = float(torch.cat([up, down]).min()), float(torch.cat([up, down]).max())
    low, high = low - abs(gap) - 1, high + abs(gap) + 1
    for _ in range(60):  # the left side falls with z, the right side rises
        z = (low + high) / 2
        left = torch.special.expit(up - z - gap).sum()
        right = torch.special.expit(gap + z - down).sum()
        low, high = (z, high) if float(left) > float(right) else (low, z)
    ess = min(forward.ess, backward.ess)
    bounds = forward.certified_low, backward.certified_high
    return Evidence(z + offset, *bounds, ess, forward.log_weights, forward.x, *bounds)


def _unadjusted(
    proposal: MALA, model: ScoreModel, x: Tensor, s: Level, noise: Noise
) -> tuple[Tensor, Tensor]:
    """A Langevin move that is always taken, and the log ratio that would have judged it."""
    h = step_at(proposal.step_size, s)
    there, ratio, _ = proposal.propose(model, model(x, s), s, h, noise)
    return there.x, ratio
