"""Predictor-corrector sampling, and the Langevin step whose size follows the signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .._checks import check_choice, check_count, check_number
from .._rows import against, row_norm
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver
from .ancestral import ReverseDiffusion

__all__ = ["PredictorCorrector", "SNRLangevin"]


@dataclass(frozen=True)
class SNRLangevin(Solver):
    """A Langevin step x + h score + sqrt(2 h) z with h = 2 (snr |z| / |score|)^2 for each sample.

    The corrector of Song et al. (2021, 2011.13456, algorithms 4 and 5) with norms of the sample
    itself, where the paper averages them over the batch; its factor alpha of VP, within 2 % of 1,
    is left out. Near a mode the score vanishes and h would explode in few dimensions, so h is at
    most 2 snr^2 (alpha^2 + sigma^2), its typical value for data N(0, I). h follows x, so the output
    has no Gaussian law, and its bias does not vanish with more moves. A last move to sigma = 0
    returns x0.

    Args:
        snr: the paper's signal-to-noise ratio r.

    >>> SNRLangevin().direction
    'fixed'
    """

    snr: float = 0.16
    direction = "fixed"

    def __post_init__(self) -> None:
        check_number("snr", self.snr, 0.0, open_low=True)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p = model(x, t)
        if s.sigma == 0 < t.sigma:
            return p.x0, None
        z = noise(x, t, s)
        ratio = row_norm(z) / row_norm(p.score)  # 0 / 0 where a sample has no coordinates
        h = 2 * self.snr**2 * against(ratio, x).square().clamp(max=t.alpha**2 + t.sigma**2)
        return x + h * p.score + (2 * h).sqrt() * z, None


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """A move in time and `corrections` moves that stay (Song et al. 2021, 2011.13456, alg. 1).

    "predictor" first is the paper's algorithm: t to s, then corrections at s, none at sigma = 0.
    "corrector" first is its code: corrections at t, then t to s. Corrections start without memory
    and never disturb the predictor's.

    Args:
        predictor: moves from noise to data.
        corrector: stays at a time: Langevin dynamics and its kin.
        corrections: moves of the corrector for each of the predictor.
        first: which of the two comes first.

    >>> PredictorCorrector(corrections=2).nfe
    3
    """

    predictor: Solver = ReverseDiffusion()  # noqa: RUF009 (frozen)
    corrector: Solver = SNRLangevin()
    corrections: int = 1
    first: Literal["predictor", "corrector"] = "predictor"

    def __post_init__(self) -> None:
        check_count("corrections", self.corrections)
        check_choice("first", self.first, ("predictor", "corrector"))
        if not isinstance(self.predictor, Solver) or self.predictor.direction not in (
            "down",
            "both",
        ):
            raise TypeError(
                f"predictor must move from noise to data, such as DDIM(), got {self.predictor}"
            )
        if not isinstance(self.corrector, Solver) or self.corrector.direction != "fixed":
            raise TypeError(
                f"corrector must stay at a time, such as Langevin(0.01), got {self.corrector}"
            )

    @property
    def population(self) -> bool:
        return self.predictor.population or self.corrector.population

    @property
    def nfe(self) -> int | None:
        once, more = self.predictor.nfe, self.corrector.nfe
        return None if once is None or more is None else once + self.corrections * more

    def failure(self, state: Any) -> str | None:
        return self.predictor.failure(state)

    def _corrected(self, model: ScoreModel, x: Tensor, t: Level, noise: Noise) -> Tensor:
        state: Any = None
        for _ in range(self.corrections):
            x, state = self.corrector.step(model, x, t, t, state, noise)
        return x

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if self.first == "corrector":
            x = self._corrected(model, x, t, noise)
            return self.predictor.step(model, x, t, s, state, noise)
        x, state = self.predictor.step(model, x, t, s, state, noise)
        return (self._corrected(model, x, s, noise) if s.sigma > 0 else x), state
