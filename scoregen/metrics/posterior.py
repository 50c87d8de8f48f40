"""Coverage of posterior regions, where the true posterior is a known Gaussian mixture."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .._checks import check_count, check_number
from .estimate import Estimate, Measured, checked_pair, flat
from .modes import _Modes, folded

__all__ = ["PosteriorCoverage"]

_LEVELS = tuple(i / 20 for i in range(1, 20))


@dataclass(frozen=True)
class PosteriorCoverage(_Modes):
    """How far the shares of samples in the true posterior's credible regions are from their levels.

    ``mean over c of |#{i : x_i in R_c} / n - c|``, c = 0.05, 0.10, ... 0.95, with R_c the region of
    highest density that holds c of the posterior

    An overconfident sampler puts more than c into R_c, a too broad one less; `shares` gives each
    of them. A mode lost among equal ones is not seen: read it beside :class:`ModeWeights`. The
    posterior is a mixture where the prior is one and the measurement linear and Gaussian. R_c is
    found from `draws` samples of it, so c itself is known to some 1 / (2 sqrt(draws)). The
    reference is only checked for its shape. The standard error is the delta method's, less what
    folding at zero takes away. Positive for perfect samples, of order 1 / sqrt(n), hence n in the
    title.

    Args:
        weights: One positive number per mode, summing to 1.
        means: One row of d numbers per mode.
        covariances: One d x d table per mode, positive definite. :meth:`of` takes tensors.
        draws: From the posterior, to find its regions.
        seed: Of these draws (Philox).

    Raises:
        ValueError: Tables that disagree, or samples unfit for them.
        TypeError: Integer samples.

    Source: expected coverage of highest-density regions, Hermans et al. (2022), arXiv 2110.06581.

    >>> metric = PosteriorCoverage.of(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1))
    >>> x = torch.zeros(50, 1)  # all in the middle: each region holds all of them
    >>> print(f"{metric(x, x).value:.2f}")
    0.50
    """

    draws: int = 65_536
    seed: int = 0
    name: ClassVar[str] = "posterior-coverage"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("draws", self.draws, 1000)
        check_number("seed", check_count("seed", self.seed, 0), high=2.0**128, open_high=True)

    def against(self, reference: Tensor) -> Callable[[Tensor], Measured]:
        """The coverage error of samples; the reference is only checked for its shape."""
        known = self._log_density(self._truth()).sort().values

        def measure(samples: Tensor) -> Measured:
            checked_pair(samples, reference)
            inside = self._inside(samples, known)
            n = len(inside)
            levels = torch.tensor(_LEVELS, dtype=torch.float64, device=inside.device)
            gap = inside.mean(0) - levels
            spread = inside.var(0) / n + levels * (1 - levels) / self.draws
            influence = inside @ (gap.sign() * folded(gap**2, spread)) / len(levels)
            stderr = math.sqrt(float(influence.var()) / n)
            return Measured(Estimate(float(gap.abs().mean()), stderr), influence)

        return measure

    def shares(self, samples: Tensor) -> dict[float, float]:
        """The share of samples in the region of each level."""
        known = self._log_density(self._truth()).sort().values
        found = self._inside(checked_pair(samples, samples)[0], known).mean(0)
        return dict(zip(_LEVELS, found.tolist(), strict=True))

    def _inside(self, samples: Tensor, known: Tensor) -> Tensor:
        """Whether each sample lies in the region of each level, (n, levels)."""
        # the mass at higher density: uniform in [0, 1] for samples of the posterior
        logs = self._log_density(flat(samples))
        above = 1 - torch.searchsorted(known.to(logs.device), logs).double() / len(known)
        levels = torch.tensor(_LEVELS, dtype=torch.float64, device=logs.device)
        return (above[:, None] <= levels).double()

    def _truth(self) -> Tensor:
        """Draws from the posterior, (draws, d)."""
        rng = np.random.Generator(np.random.Philox(key=self.seed))
        modes = rng.choice(
            len(self.weights), self.draws, p=np.array(self.weights) / sum(self.weights)
        )
        z = torch.from_numpy(rng.standard_normal((self.draws, len(self.means[0]))))
        lower = torch.linalg.cholesky(torch.tensor(self.covariances, dtype=torch.float64))
        k = torch.from_numpy(modes)
        means = torch.tensor(self.means, dtype=torch.float64)
        return means[k] + (lower[k] @ z[..., None])[..., 0]

    def _log_density(self, x: Tensor) -> Tensor:
        return self._logs(x)[0].logsumexp(1)
