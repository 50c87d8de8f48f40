"""A score model of codes, and the way from its samples to data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import check_kind, check_numbers
from ..data import Units
from ..models import ScoreModel, Wrapped
from ..models.base import evaluating
from ..sampling import Sampler
from .autoencoder import AutoEncoder, check_autoencoder

__all__ = ["LatentModel"]


class LatentModel(Wrapped):
    """Latent diffusion: a score model of standardised codes, and the autoencoder they are of.

    z = (E(x) - mean) / std,   x = D(mean + std z)

    (Rombach et al. 2022, 2112.10752.) To samplers and guidance it is the score model inside,
    conditions included; `decode` leads to data. In a comparison, metrics and pictures are of data:
    `compare(model, ..., event=model.event, decode=model.decode)`.

    Args:
        model: predicts standardised codes.
        autoencoder: made the codes.
        units: mean and std by which they were standardised, as `encoded` keeps them.

    Raises:
        ValueError, TypeError: for an autoencoder whose maps do not fit its shapes, units of another
            number of channels, or a model of another event.

    >>> from scoregen import DDIM, VPSDE, Gaussian, UniformTime
    >>> from scoregen.latent import LinearAutoEncoder
    >>> pca = LinearAutoEncoder(torch.zeros(3), torch.eye(3)[:2])
    >>> inner = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> model = LatentModel(inner, pca, Units((0.0, 0.0), (3.0, 2.0)))
    >>> model.sample(Sampler(DDIM(), UniformTime(5)), 4).shape
    torch.Size([4, 3])
    """

    def __init__(self, model: ScoreModel, autoencoder: AutoEncoder, units: Units):
        super().__init__(model)
        self.autoencoder = check_autoencoder(autoencoder)
        check_kind("units", units, Units, "encoded(autoencoder, data).units")
        check_numbers("the means of units", units.mean)
        check_numbers("the stds of units", units.std, 0.0, open_low=True)
        channels = autoencoder.latent[0] if autoencoder.latent else 1
        if len(units.mean) != channels or len(units.std) != channels:
            raise ValueError(
                f"units must have one mean and one std for each of the {channels} channels of a "
                f"code, got {len(units.mean)} and {len(units.std)}: those of encoded(...)"
            )
        if model.event not in (None, autoencoder.latent):
            raise ValueError(
                f"the model must be of codes {autoencoder.latent}, got one of events {model.event}"
            )
        self.event, self.units = autoencoder.latent, units

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Standardised codes of data, shape (batch, *latent).

        Args:
            x: data, shape (batch, *event).
            generator: of a draw from q(z | x); its mean without.
        """
        with evaluating(self.autoencoder):
            return self.units.apply(self.autoencoder.encode(x, generator=generator))

    def decode(self, z: Tensor) -> Tensor:
        """Data (batch, *event) of standardised codes (batch, *latent), as samplers make them."""
        with evaluating(self.autoencoder):
            return self.autoencoder.decode(self.units.restore(z))

    @torch.no_grad()
    def sample(self, sampler: Sampler, count: int, **options: Any) -> Tensor:
        """Decoded samples, shape (count, *event of the data).

        Args:
            sampler: of codes.
            count: how many.
            **options: of `Sampler.sample`: seed, condition, chunk and so on.
        """
        check_kind("sampler", sampler, Sampler, "Sampler(DDIM(), UniformTime(20))")
        return self.decode(sampler.sample(self, (count, *self.autoencoder.latent), **options))
