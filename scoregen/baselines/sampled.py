"""A score model with its sampler, as a row beside the other families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._checks import check_callable, check_counts, check_kind, check_number
from ..models import Counted, ScoreModel, check_model
from ..sampling import Sampler

__all__ = ["Sampled"]


class Sampled:
    """A score model or an energy with the sampler it is drawn by: one row of `baselines`.

    In `compare` every sampler is run on every model. Where each model has its own, as a chain of a
    Boltzmann machine or a latent model with its decoder, this puts them into one table.

    Args:
        model: a score model; a condition is passed on to it.
        sampler: of its states.
        event: shape of one state.
        decode: maps states to data; they are data unless given.
        evaluations: per sample, for what `Counted` does not see, such as sweeps of a machine;
            counted on one sample unless given.

    >>> from scoregen import DDIM, VPSDE, Gaussian, UniformTime
    >>> row = Sampled(Gaussian(VPSDE(), torch.zeros(2), 1.0), Sampler(DDIM(), UniformTime(7)), (2,))
    >>> row.evaluations, row.sample(3, seed=0).shape
    (7.0, torch.Size([3, 2]))
    """

    def __init__(
        self,
        model: ScoreModel,
        sampler: Sampler,
        event: tuple[int, ...],
        *,
        decode: Callable[[Tensor], Tensor] | None = None,
        evaluations: float | None = None,
    ):
        self.model = check_model(model)
        check_kind("sampler", sampler, Sampler, "Sampler(DDIM(), UniformTime(20))")
        self.sampler, self.event = sampler, check_counts("event", event, 0)
        if decode is not None:
            check_callable("decode", decode, "(states) -> data")
        self.decode = decode
        if evaluations is None:
            with Counted(model) as counted:
                sampler.sample(model, (1, *self.event))
            evaluations = counted.rows
        self.evaluations = check_number("evaluations", evaluations, 0.0)

    @torch.no_grad()
    def sample(self, n: int, *, seed: int, condition: Mapping[str, Any] | None = None) -> Tensor:
        """Samples of shape (n, *event of the data), a function of the seed and the condition.

        Args:
            n: how many.
            seed: of the noise.
            condition: keyword arguments of the model.
        """
        x = self.sampler.sample(
            self.model, (n, *self.event), seed=seed, condition=dict(condition or {})
        )
        return x if self.decode is None else self.decode(x)
