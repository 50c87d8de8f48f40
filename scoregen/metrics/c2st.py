"""Classifier two-sample test: can a classifier tell samples from data?"""

import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .._checks import check_count, check_number
from .estimate import Direction, Estimate, Measured, TwoSample, checked_batch, checked_pair
from .features import check_features, featured, labelled

__all__ = ["C2ST"]


@dataclass(frozen=True)
class C2ST(TwoSample):
    """Cross-validated accuracy of a classifier of samples against data: 1/2 is perfect.

    ``(1/2) (share of samples recognised + share of data recognised)`` on held-out folds, so that
    unequal numbers leave chance at 1/2. Both sets are scaled by the reference's mean and standard
    deviation. The standard error is the binomial one of the two shares; it leaves out what the
    training of the folds has in common. What it can distinguish grows with n, hence n in the title.

    Args:
        features: Maps a batch (n, *event) to features (n, ...); None takes the data themselves.
        classifier: An estimator of scikit-learn, cloned for every fold; None takes a perceptron
            with two hidden layers of ten times the dimension, at most 200 wide.
        folds: Number of folds.
        seed: Of the folds and of the default classifier.

    Raises:
        ImportError: Without scikit-learn.
        ValueError: Fewer samples or reference points than folds, or samples unfit.
        TypeError: Integer samples.

    Source: Lopez-Paz and Oquab (2017), arXiv 1610.06545; as in simulation-based inference,
    Lueckmann et al. (2021), arXiv 2101.04653.

    >>> from sklearn.linear_model import LogisticRegression
    >>> x = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None]
    >>> C2ST(classifier=LogisticRegression())(x + 9, x).value
    1.0
    """

    features: Callable[[Tensor], Tensor] | None = None
    classifier: Any = None
    folds: int = 5
    seed: int = 0
    direction: ClassVar[Direction] = "lower"
    biased: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_features(self.features)
        check_count("folds", self.folds, 2)
        check_number("seed", check_count("seed", self.seed, 0), high=2**32 - 1)
        if self.classifier is not None and not hasattr(self.classifier, "fit"):
            raise TypeError(
                "classifier must be an estimator of scikit-learn, such as LogisticRegression(), "
                f"got {self.classifier!r}"
            )
        if importlib.util.find_spec("sklearn") is None:
            raise ImportError("C2ST needs scikit-learn: pip install 'scoregen[bench]'")

    @property
    def name(self) -> str:
        """Name to print, with that of the features."""
        return labelled("c2st", self.features)

    def against(self, reference: Tensor) -> Callable[[Tensor], Measured]:
        """The accuracy of telling samples from one reference (m, *event)."""
        y = featured(self.features, checked_batch(reference, "reference"), "reference")
        mean, std = y.mean(0), y.std(0)
        std = torch.where(std > 0, std, torch.ones_like(std))

        def measure(samples: Tensor) -> Measured:
            checked_pair(samples, reference)
            x = featured(self.features, samples, "samples")
            if min(len(x), len(y)) < self.folds:
                raise ValueError(
                    f"{self.folds} folds need as many samples and reference points, got {len(x)} "
                    f"and {len(y)}"
                )
            rows = ((torch.cat([x, y]) - mean) / std).cpu().numpy()
            right = self._recognised(rows, len(x))
            p, q = float(right[: len(x)].mean()), float(right[len(x) :].mean())
            variance = _binomial(p, len(x)) + _binomial(q, len(y))
            return Measured(Estimate((p + q) / 2, math.sqrt(variance) / 2), None)

        return measure

    def _recognised(self, rows: np.ndarray, n: int) -> np.ndarray:
        """Whether each row, held out, was recognised."""
        from sklearn.base import clone
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.model_selection import StratifiedKFold
        from sklearn.neural_network import MLPClassifier

        width = min(200, 10 * rows.shape[1])
        made = self.classifier or MLPClassifier(
            (width, width),
            early_stopping=True,
            n_iter_no_change=50,
            max_iter=1000,
            random_state=self.seed,
        )
        truth = (np.arange(len(rows)) < n).astype(int)
        right = np.zeros(len(rows))
        folds = StratifiedKFold(self.folds, shuffle=True, random_state=self.seed)
        for train, test in folds.split(rows, truth):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                fitted = clone(made).fit(rows[train], truth[train])
            right[test] = fitted.predict(rows[test]) == truth[test]
        return right


def _binomial(p: float, n: int) -> float:
    """Variance of a share, not zero where it is 0 or 1."""
    smoothed = (p * n + 1) / (n + 2)
    return smoothed * (1 - smoothed) / n
