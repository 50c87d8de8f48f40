"""Chains, and what they are worth: acceptance, autocorrelation, effective size, split R-hat.

Draws have the shape (chains, draws, *event); every statistic is per coordinate, shape event.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._checks import (
    DivergenceError,
    check_callable,
    check_count,
    check_data,
    check_flag,
    check_kind,
    check_state,
)
from ..energies import EnergyPrediction
from ..models import Counted, ScoreModel
from ..models.base import check_model, evaluating
from ..noise import Noise, SampleNoise, TorchNoise
from ..processes import Level, StaticSDE
from ..sampling import Sampler
from .kernel import Kernel

__all__ = [
    "ChainReport",
    "Chains",
    "autocorrelation",
    "autocorrelation_time",
    "chain_report",
    "ess",
    "rank_normalised",
    "run_chains",
    "split_rhat",
]


def _flat(draws: Tensor) -> Tensor:
    """(chains, draws, coordinates) in float64."""
    check_state(draws, "draws")
    if draws.dim() < 2 or draws.shape[1] < 4 or draws.numel() == 0:
        shape = tuple(draws.shape)
        raise ValueError(f"draws must be (chains, draws, *event) with 4 draws or more, got {shape}")
    return draws.reshape(*draws.shape[:2], -1).double()


def _split(x: Tensor) -> Tensor:
    """Halves of every chain as chains of their own, so that drift within a chain shows."""
    half = x.shape[1] // 2
    return torch.cat([x[:, :half], x[:, -half:]])


def _autocovariance(x: Tensor) -> Tensor:
    """Biased autocovariance of each chain at every lag, by FFT."""
    n = x.shape[1]
    centred = x - x.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=1)
    return torch.fft.irfft(spectrum.abs().square(), n=2 * n, dim=1)[:, :n] / n


def autocorrelation(draws: Tensor) -> Tensor:
    """Autocorrelation at lags 0, 1, ..., pooled over chains: shape (draws, *event).

    rho_k = 1 - (W - mean autocovariance at k) / V, with W the variance within chains and V the
    pooled variance, so that chains that disagree do not look independent (Vehtari et al. 2021,
    1903.08008, eq. 10).

    Args:
        draws: shape (chains, draws, *event).

    >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    >>> round(autocorrelation(draws)[0].item(), 6)
    1.0
    """
    return _pooled(_flat(draws)).reshape(draws.shape[1], *draws.shape[2:])


def _pooled(x: Tensor) -> Tensor:
    chains, n, _ = x.shape
    covariance = _autocovariance(x).mean(0)
    within = covariance[0] * n / (n - 1)
    pooled = covariance[0] + (x.mean(1).var(0) if chains > 1 else 0)
    rho = 1 - (within - covariance) / pooled
    rho[0] = torch.where(pooled > 0, 1.0, rho[0])
    return rho


def ess(draws: Tensor) -> Tensor:
    """Effective sample size for the mean, shape event.

    Chains are split in halves; N / tau with tau = -1 + 2 sum of the pairs rho_2k + rho_2k+1, made
    monotone and cut at the first negative pair (Geyer 1992; Vehtari et al. 2021, 1903.08008). For
    the bulk of a heavy-tailed law use `ess(rank_normalised(draws))`. A chain that never moved
    gives nan.

    Args:
        draws: shape (chains, draws, *event).

    >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    >>> 3000 < ess(draws).item() < 5000
    True
    """
    x = _split(_flat(draws))
    count, n = x.shape[0] * x.shape[1], x.shape[1]
    rho = _pooled(x)
    pairs = rho[: n - n % 2].reshape(-1, 2, rho.shape[1]).sum(1)
    last = max((n - 3) // 2, 0)  # the last pair that is looked at, as there are n lags
    pairs = pairs[: last + 1]
    alive = (pairs > 0).long().cumprod(0)
    alive[0] = 1
    cut = alive.sum(0).clamp(max=last)  # pairs before the cut count twice, the one after it by half
    keep = torch.arange(len(pairs)).unsqueeze(1) < cut
    monotone = pairs.cummin(0).values
    after = rho.gather(0, (2 * cut).unsqueeze(0)).squeeze(0).clamp(min=0)
    tau = -1 + 2 * (monotone * keep).sum(0) + after
    tau = tau.clamp(min=1 / math.log10(count))
    return (count / tau).reshape(draws.shape[2:])


def autocorrelation_time(draws: Tensor) -> Tensor:
    """Draws worth one independent draw, N / ess, shape event; (1 + r) / (1 - r) for AR(1).

    >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    >>> 0.8 < autocorrelation_time(draws).item() < 1.3
    True
    """
    size = ess(draws)
    return draws.shape[0] * (draws.shape[1] // 2 * 2) / size


def split_rhat(draws: Tensor) -> Tensor:
    """Split R-hat: root of pooled over within-chain variance of half chains, shape event.

    1 when chains agree; above 1.01 they do not yet (Gelman and Rubin 1992; Vehtari et al. 2021,
    1903.08008, who take the larger of R-hat of `rank_normalised(draws)` and of the folded draws).

    >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    >>> abs(split_rhat(draws).item() - 1) < 0.01
    True
    """
    x = _split(_flat(draws))
    n = x.shape[1]
    within = x.var(1).mean(0)
    between = x.mean(1).var(0)
    return ((n - 1) / n + between / within).sqrt().reshape(draws.shape[2:])


def rank_normalised(draws: Tensor) -> Tensor:
    """Normal quantiles of the ranks over all chains, shaped like draws, float64.

    Phi^-1((rank - 3/8) / (N + 1/4)) (Blom 1958; Vehtari et al. 2021, 1903.08008).

    >>> rank_normalised(torch.tensor([[1.0, 5.0, 2.0, 100.0]])).abs().max().item() < 1.1
    True
    """
    x = _flat(draws)
    from scipy.stats import rankdata  # slow to import

    ranks = torch.as_tensor(rankdata(x.reshape(-1, x.shape[2]).cpu().numpy(), axis=0))
    scores = torch.special.ndtri((ranks - 0.375) / (len(ranks) + 0.25))
    return scores.to(draws.device).reshape(draws.shape)


class Chains(NamedTuple):
    """What `run_chains` kept.

    Attributes:
        draws: shape (chains, draws, *event).
        acceptance: mean acceptance probability per chain, or None for solvers without one.
        divergent: divergent moves per chain, or None.
        step_size: the last step used, a float or one per chain, or None.
        evaluations: evaluations of the model per chain after the warmup.
        moves: moves per chain after the warmup.

    >>> Chains(torch.zeros(1, 4), None, None, None, 4.0, 4)
    Chains(1 chains of 4 draws of shape (), moves=4, evaluations=4)
    """

    draws: Tensor
    acceptance: Tensor | None
    divergent: Tensor | None
    step_size: Any
    evaluations: float
    moves: int

    def __repr__(self) -> str:
        chains, count, *event = self.draws.shape
        parts = [f"{chains} chains of {count} draws of shape {tuple(event)}"]
        if self.acceptance is not None:
            parts.append(f"acceptance={float(self.acceptance.double().mean()):.3g}")
        if self.divergent is not None:
            parts.append(f"divergent={int(self.divergent.sum())}")
        parts += [f"moves={self.moves}", f"evaluations={self.evaluations:g}"]
        return f"Chains({', '.join(parts)})"


@torch.no_grad()
def run_chains(
    sampler: Sampler,
    model: ScoreModel,
    x: Tensor,
    *,
    seed: int | torch.Generator | None = None,
    noise: Noise | None = None,
    warmup: int = 0,
    thin: int = 1,
    progress: bool = False,
) -> Chains:
    """Run one chain per row and keep its draws.

    Args:
        sampler: an MCMC solver on a grid that stays, such as `Constant(t, warmup + moves)`.
        model: a score model.
        x: one start per chain, shape (chains, *event); spread them wider than the target.
        seed: an integer, or a torch.Generator where speed matters more; 0 unless given.
        noise: where z comes from, in place of a seed.
        warmup: moves that are not kept.
        thin: keep every thin-th draw.
        progress: show a bar.

    Raises:
        DivergenceError: if a chain left the finite numbers, or ended where its energy is nan.

    >>> from scoregen import MALA, Constant, Potential
    >>> model = Potential(lambda x: x.square().sum(1) / 2)
    >>> sampler = Sampler(MALA(1.0), Constant(0.0, 600))
    >>> chains = run_chains(sampler, model, torch.zeros(8, 1), seed=0, warmup=100)
    >>> chains.draws.shape, chains.evaluations
    (torch.Size([8, 500, 1]), 500.0)
    """
    check_count("warmup", warmup, 0)
    check_count("thin", thin)
    check_flag("progress", progress)
    check_kind("sampler", sampler, Sampler, "Sampler(MALA(0.1), Constant(0.0, 500))")
    check_model(model)
    check_data(x)
    noise, solver = _source(seed, noise), sampler.solver
    if solver.direction != "fixed":
        raise TypeError(f"chains need an MCMC kernel, such as MALA(0.1), got {solver!r}")
    kept, times = [], []
    accepted = divergent = step_size = None
    started = moves = 0
    with evaluating(model), Counted(model) as count:
        steps = sampler.iterate(model, x, noise=noise)
        if progress:
            total = len(sampler.levels(model.sde))
            steps = iter(tqdm(steps, total=total, desc=type(solver).__name__, leave=False))
        last = x
        for index, level, after, state in steps:
            last = after
            if index <= warmup:
                started = count.rows
                continue
            moves += 1
            report = solver.report(state) if isinstance(solver, Kernel) else None
            if report is not None:
                acceptance, lost, step_size = report
                accepted = acceptance if accepted is None else accepted + acceptance
                divergent = lost.long() if divergent is None else divergent + lost.long()
            if moves % thin == 0:
                kept.append(after)
                times.append((index, level.t))
    if not kept:
        raise ValueError(f"no draw is left after {warmup} moves of warmup; take a longer grid")
    draws = torch.stack(kept, 1)
    finite = torch.isfinite(draws.reshape(*draws.shape[:2], -1)).all(2)
    if not bool(finite.all()):
        first = int((~finite).any(0).nonzero()[0])
        rows = (~finite[:, first]).nonzero().flatten().tolist()
        raise DivergenceError(*times[first], rows, draws[:, first - 1] if first else x)
    off = _off_support(model, last, level)
    if off:
        raise DivergenceError(index, level.t, off, last)
    rate = None if accepted is None else accepted / moves
    evaluations = (count.rows - started) / max(len(x), 1)
    return Chains(draws, rate, divergent, step_size, evaluations, moves)


def _source(seed: int | torch.Generator | None, noise: Noise | None) -> Noise:
    """The noise of a run: the caller's own, or one made from a seed."""
    if noise is not None:
        if seed is not None:
            raise ValueError("give a seed or a noise source, not both")
        check_callable("noise", noise, "(like, t, s) -> Tensor, such as SampleNoise(0)")
        return noise
    if isinstance(seed, torch.Generator):
        return TorchNoise(seed)
    # draw 0 of a seed is the start that a sampler makes from it
    return SampleNoise(0 if seed is None else seed, draw=1)


def _off_support(model: ScoreModel, x: Tensor, level: Level) -> list[int]:
    """Rows whose energy is nan at the end: no later move was there to notice."""
    p = model.predict(x, level) if level.sigma > 0 or isinstance(model.sde, StaticSDE) else None
    if not isinstance(p, EnergyPrediction):
        return []
    rows: list[int] = p.energy.isnan().nonzero().flatten().tolist()
    return rows


class ChainReport(NamedTuple):
    """The worst coordinate of a run, and what looks wrong with it.

    Attributes:
        rhat: largest split R-hat.
        ess: smallest effective size of all chains together.
        acceptance: mean over chains, nan without one.
        divergent: divergent moves in all.
        ess_per_evaluation: smallest effective size per evaluation of the model.
        warnings: sentences; empty if nothing was seen.

    >>> ChainReport(1.0, 100.0, 0.6, 0, 0.1, ()).warnings
    ()
    """

    rhat: float
    ess: float
    acceptance: float
    divergent: int
    ess_per_evaluation: float
    warnings: tuple[str, ...]


def chain_report(chains: Chains) -> ChainReport:
    """Judge a run: R-hat, effective size, acceptance, divergence, and warnings in words.

    Warned about: divergent moves; chains that (almost) never or always accept over 100 moves; a
    state that grew a hundredfold (a step beyond stability); R-hat above 1.01; few effective draws.

    >>> still = Chains(torch.zeros(2, 100, 1), torch.zeros(2), torch.zeros(2), 1.0, 100.0, 100)
    >>> "never accepted" in " ".join(chain_report(still).warnings)
    True
    """
    check_kind("chains", chains, Chains, "what run_chains returned")
    draws, warnings = chains.draws, []
    rhat, size = float(split_rhat(draws).max()), float(ess(draws).min())
    lost = 0 if chains.divergent is None else int(chains.divergent.sum())
    rate = math.nan
    if lost:
        warnings.append(f"{lost} moves diverged: take smaller steps")
    if chains.acceptance is not None:
        rate = float(chains.acceptance.mean())
        stuck = int((chains.acceptance < 1e-3).sum())
        free = int((chains.acceptance > 0.999).sum())
        if chains.moves >= 100 and stuck:
            warnings.append(f"{stuck} chains (almost) never accepted: take smaller steps")
        if chains.moves >= 100 and free:
            warnings.append(f"{free} chains (almost) always accepted: take larger steps")
    tenth = max(1, draws.shape[1] // 10)
    sizes = draws.reshape(*draws.shape[:2], -1).abs().amax(2)
    grown = int((sizes[:, -tenth:].amax(1) > 100 * sizes[:, :tenth].amax(1).clamp(min=1e-12)).sum())
    if grown and not (chains.acceptance is not None and lost == 0):
        text = "grew a hundredfold: an unadjusted step beyond 2 / (largest curvature) is unstable"
        warnings.append(f"{grown} chains {text}; take smaller steps")
    if not rhat <= 1.01:
        warnings.append(f"split R-hat is {rhat:.3g}, above 1.01: run longer, or mix better")
    if not size >= 100:
        warnings.append(f"only {size:.3g} effective draws in the worst coordinate")
    total = chains.evaluations * len(draws)
    return ChainReport(rhat, size, rate, lost, size / total if total else 0.0, tuple(warnings))
