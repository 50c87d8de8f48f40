"""Class-conditional samples: are they of their class, and do they differ among themselves?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_counts
from .digits_features import check_digits, digits_classifier, digits_features
from .estimate import Direction, Estimate, Measured, TwoSample, checked_pair, flat
from .features import apply, check_features

__all__ = ["ClassAccuracy", "Diversity"]


def _labels(labels: int | tuple[int, ...], n: int, device: torch.device) -> Tensor:
    if not isinstance(labels, Sequence):
        return torch.full((n,), int(labels), device=device)
    if len(labels) != n:
        raise ValueError(
            f"labels must be one class for all or one per sample, got {len(labels)} for {n} samples"
        )
    return torch.tensor(labels, device=device)


def _check_labels(labels: int | tuple[int, ...]) -> None:
    if not isinstance(labels, Sequence):
        check_count("labels", labels, 0)
    elif not check_counts("labels", labels, 0):
        raise ValueError("labels must be one class for all or one per sample, got none")


@dataclass(frozen=True)
class ClassAccuracy(TwoSample):
    """Share of class-conditional samples that a classifier assigns to the wanted class.

    ``p = #{i : argmax classifier(x_i) = label_i} / n``

    The standard error is the binomial one at (p n + 1) / (n + 2), so that it is not zero at 0 or
    1. The reference is only checked for its shape.

    Args:
        labels: The wanted class, one for all samples or one per sample.
        classifier: Maps (n, *event) to logits (n, classes); None takes the bundled classifier of
            8x8 digits.

    Raises:
        ValueError: Labels or logits that do not fit the samples.
        TypeError: Integer samples.

    Source: Ravuri and Vinyals (2019), arXiv 1905.10887 (classification as a measure of
    conditional samples).

    >>> x = torch.eye(3)
    >>> print(f"{ClassAccuracy((0, 1, 1), classifier=lambda x: x)(x, x).value:.3f}")
    0.667
    """

    labels: int | tuple[int, ...]
    classifier: Callable[[Tensor], Tensor] | None = None
    direction: ClassVar[Direction] = "higher"
    biased: ClassVar[bool] = False
    name: ClassVar[str] = "class-accuracy"

    def __post_init__(self) -> None:
        _check_labels(self.labels)
        if self.classifier is not None:
            check_callable("classifier", self.classifier, "(n, *event) -> (n, classes)")

    def against(self, reference: Tensor) -> Callable[[Tensor], Measured]:
        """Accuracy on samples (n, *event)."""

        def measure(samples: Tensor) -> Measured:
            checked_pair(samples, reference)
            n = len(samples)
            wanted = _labels(self.labels, n, samples.device)
            if self.classifier is None:
                net = digits_classifier(samples.device)
                logits = apply(net, check_digits(samples).to(torch.float32), "the classifier")
            else:
                logits = apply(self.classifier, samples, "the classifier")
            if logits.ndim != 2 or int(wanted.max()) >= logits.shape[1]:
                raise ValueError(
                    f"the classifier must give ({n}, classes) with more than {int(wanted.max())} "
                    f"classes, got {tuple(logits.shape)}"
                )
            right = logits.argmax(1) == wanted
            smoothed = (int(right.sum()) + 1) / (n + 2)
            stderr = math.sqrt(smoothed * (1 - smoothed) / n)
            return Measured(Estimate(int(right.sum()) / n, stderr), right.to(torch.float64))

        return measure


@dataclass(frozen=True)
class Diversity(TwoSample):
    """Mean distance between the features of two samples of one class, averaged over classes.

    ``D = mean over classes of mean_{i != j in the class} |f(x_i) - f(x_j)|``

    Unbiased; read it beside its value for real data, since noise is diverse too. Standard error
    by the jackknife within each class. The reference is only checked for its shape.

    Args:
        labels: The class of each sample, or one for all.
        features: Maps (n, *event) to (n, ...); None takes :func:`digits_features`.

    Raises:
        ValueError: Labels or features that do not fit the samples, or a class with fewer than three
            samples.
        TypeError: Integer samples.

    Source: mean pairwise feature distance, as in Zhu et al. (2017), arXiv 1711.11586.

    >>> x = torch.tensor([0.0, 1.0, 3.0])
    >>> Diversity(0, features=lambda x: x)(x, x).value
    2.0
    """

    labels: int | tuple[int, ...] = 0
    features: Callable[[Tensor], Tensor] | None = None
    direction: ClassVar[Direction] = "higher"
    biased: ClassVar[bool] = False
    name: ClassVar[str] = "diversity"

    def __post_init__(self) -> None:
        _check_labels(self.labels)
        check_features(self.features)

    def against(self, reference: Tensor) -> Callable[[Tensor], Measured]:
        """Diversity of samples (n, *event)."""

        def measure(samples: Tensor) -> Measured:
            checked_pair(samples, reference)
            labels = _labels(self.labels, len(samples), samples.device)
            return self._measured(samples, labels)

        return measure

    def _measured(self, samples: Tensor, labels: Tensor) -> Measured:
        rows = flat(apply(digits_features if self.features is None else self.features, samples))
        values, variances, influence = [], [], rows.new_zeros(len(rows))
        classes = labels.unique().tolist()
        for k in classes:
            own = rows[labels == k]
            n = len(own)
            if n < 3:
                raise ValueError(f"class {k} must have at least three samples, got {n}")
            sums = torch.cat([torch.cdist(part, own).sum(1) for part in own.split(1024)])
            value = float(sums.sum()) / (n * (n - 1))
            without = (value * n * (n - 1) - 2 * sums) / ((n - 1) * (n - 2))
            values.append(value)
            variances.append((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
            # the mean over all samples of these moves as the mean over classes does
            share = len(rows) / (n * len(classes))
            influence[labels == k] = share * 2 * (sums / (n - 1) - value)
        estimate = Estimate(sum(values) / len(values), math.sqrt(sum(variances)) / len(values))
        return Measured(estimate, influence)
