"""Densities fitted in closed form or by EM: their score is exact at every noise level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from .._checks import check_choice, check_count, check_counts, check_number
from .._rows import flat
from ..data import Data
from ..densities import Gaussian, GaussianMixture
from ..processes import SDE, Level, StaticSDE
from .base import Generator, Normal, continuous, needs

__all__ = ["MixtureFit", "NaiveBayes"]


class Components(Generator):
    """A weighted sum of Gaussians: what EM and naive Bayes leave, and what they share."""

    likelihood = "exact"
    weights: Tensor
    means: Tensor
    covariances: Tensor

    def _hold(self, components: int, shape: tuple[int, ...]) -> None:
        """Empty buffers for the fitted numbers, so that a state_dict can be read back."""
        d = math.prod(self.event)
        nan = math.nan
        self.register_buffer("weights", torch.full((components,), nan, dtype=torch.float64))
        self.register_buffer("means", torch.full((components, d), nan, dtype=torch.float64))
        self.register_buffer("covariances", torch.full(shape, nan, dtype=torch.float64))

    def _fitted(self, *found: np.ndarray) -> Self:
        for buffer, value in zip((self.weights, self.means, self.covariances), found, strict=True):
            buffer.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        return self

    def _check_fitted(self) -> None:
        if not bool(torch.isfinite(self.weights).all()):
            raise ValueError(f"{type(self).__name__} has no numbers yet: call fit(data) first")

    def density(self, sde: SDE) -> GaussianMixture:
        """The fitted mixture on a process: a score model that is exact at every level.

        Args:
            sde: the process.

        Raises:
            ValueError: before `fit`.
        """
        self._check_fitted()
        means = self.means.reshape(-1, *self.event)
        return GaussianMixture(sde, self.weights, means, self.covariances)

    @property
    def evaluations(self) -> float:
        return 0.0

    def log_prob(self, x: Tensor) -> Tensor:
        return self.density(StaticSDE()).log_prob(self.checked(x))

    def draw(self, count: int, normal: Normal, label: Tensor | None) -> Tensor:
        self._check_fitted()
        if label is None:
            # a uniform by way of the normal, so that one source of draws serves everything
            u = torch.special.ndtr(normal(torch.zeros(count, dtype=torch.float64)))
            total = self.weights.cpu().cumsum(0)
            label = torch.searchsorted(total / total[-1], u).clamp(max=len(total) - 1)
        z = normal(torch.zeros(count, self.means.shape[1], dtype=torch.float64))
        c = self.covariances.cpu()
        if c.dim() == 3:
            z = torch.einsum("bij,bj->bi", torch.linalg.cholesky(c)[label.cpu()], z)
        else:
            z = z * c.reshape(len(c), -1)[label.cpu()].sqrt()
        x = self.means.cpu()[label.cpu()] + z
        return x.reshape(count, *self.event).to(self.device, torch.float32)


class MixtureFit(Components):
    """sum_k w_k N(m_k, S_k) fitted by EM, which scikit-learn does.

    `density(sde)` is the same mixture as a score model, exact at every noise level: in two
    dimensions the strongest baseline that there is (Dempster, Laird and Rubin 1977).

    Args:
        event: shape of one sample.
        components: K.
        covariance: "full", "diag" or "spherical".

    >>> data = Data(torch.tensor([[0.0], [0.2], [5.0], [5.2]]))
    >>> fitted = MixtureFit((1,), 2, "diag").fit(data)
    >>> [round(m, 3) for m in sorted(fitted.means.flatten().tolist())]
    [0.1, 5.1]
    """

    def __init__(
        self,
        event: tuple[int, ...],
        components: int,
        covariance: Literal["full", "diag", "spherical"] = "full",
    ):
        super().__init__()
        check_choice("covariance", covariance, ("full", "diag", "spherical"))
        self.event = check_counts("event", event)
        self.components, self.covariance = check_count("components", components), covariance
        d = math.prod(self.event)
        shape = {"full": (d, d), "diag": (d,), "spherical": ()}[covariance]
        self._hold(components, (components, *shape))

    def fit(self, data: Data, *, seed: int = 0, floor: float = 1e-6, starts: int = 1) -> Self:
        """EM from k-means, until the likelihood rises by less than 1e-3 a sample.

        Data on levels are dequantised once, so that the density is one of continuous data.

        Args:
            data: without labels.
            seed: of the starts and the dequantisation.
            floor: added to every variance.
            starts: how many starts, of which the best is kept.

        Raises:
            ValueError: for fewer samples than components.
        """
        self.check_training(data, labels=False)
        if len(data) < self.components:
            raise ValueError(
                f"EM needs at least one sample for each of {self.components} components, got "
                f"{len(data)}: fit fewer components"
            )
        mixture = needs("sklearn.mixture", "scikit-learn", "MixtureFit")
        generator = torch.Generator().manual_seed(check_count("seed", seed, 0))
        x = flat(continuous(data.x, data, generator).double())
        found = mixture.GaussianMixture(
            self.components,
            covariance_type=self.covariance,
            reg_covar=check_number("floor", floor, 0.0),
            n_init=check_count("starts", starts),
            max_iter=500,
            random_state=seed,
        ).fit(x.numpy())
        return self._fitted(found.weights_, found.means_, found.covariances_)


class NaiveBayes(Components):
    """p(c) prod_i N(x_i; m_ci, v_ci): the Bayesian network in which coordinates know the class.

    One diagonal Gaussian per class, which scikit-learn's `GaussianNB` fits. Noised to any level
    it stays of that form, so that the classifier at every level, and with it guidance, is exact:
    grad log p(c | x_t) = s_c(x_t) - s(x_t).

    Args:
        event: shape of one sample.
        classes: number of classes.

    >>> data = Data(torch.tensor([[0.0], [2.0], [8.0], [10.0]]), torch.tensor([0, 0, 1, 1]))
    >>> model = NaiveBayes((1,), 2).fit(data)
    >>> model.means.flatten().tolist(), model.sample(2, seed=0, condition={"label": 1}).shape
    ([1.0, 9.0], torch.Size([2, 1]))
    """

    def __init__(self, event: tuple[int, ...], classes: int):
        super().__init__()
        self.event, self.classes = check_counts("event", event), check_count("classes", classes)
        self._hold(classes, (classes, math.prod(self.event)))

    def fit(self, data: Data, *, seed: int = 0, floor: float = 1e-6) -> Self:
        """Shares, means and variances of the classes.

        Args:
            data: with labels; each class must occur.
            seed: of the dequantisation of data on levels.
            floor: added to every variance, as a share of the largest.
        """
        self.check_training(data, labels=True)
        naive = needs("sklearn.naive_bayes", "scikit-learn", "NaiveBayes")
        label = data.label if data.label is not None else torch.zeros(0)
        missing = sorted(set(range(self.classes)) - set(label.tolist()))
        if missing:
            raise ValueError(f"every class needs samples, and {missing} have none")
        generator = torch.Generator().manual_seed(check_count("seed", seed, 0))
        x = flat(continuous(data.x, data, generator).double())
        smoothing = check_number("floor", floor, 0.0)
        found = naive.GaussianNB(var_smoothing=smoothing).fit(x.numpy(), label.numpy())
        return self._fitted(found.class_prior_, found.theta_, found.var_)

    def given(self, label: int, sde: SDE) -> Gaussian:
        """The density of one class on a process.

        Args:
            label: the class.
            sde: the process.
        """
        self._check_label(label)
        mean = self.means[label].reshape(self.event)
        return Gaussian(sde, mean, self.covariances[label].reshape(self.event))

    def classifier(self, label: int, sde: SDE) -> Callable[[Tensor, Level], Tensor]:
        """(x, level) -> log p(label | x_t), shape (batch,): exact, for `guidance.Classifier`.

        Args:
            label: the class.
            sde: the process.
        """
        self._check_label(label)
        whole = self.density(sde)
        return lambda x, t: whole.log_joint(x, t).log_softmax(-1)[:, label].to(x.dtype)

    def _check_label(self, label: int) -> None:
        self._check_fitted()
        if not 0 <= check_count("label", label, 0) < self.classes:
            raise ValueError(f"label must lie in 0 .. {self.classes - 1}, got {label}")
