"""Diffusion of codes: autoencoders, and score models in their latent space.

Start with `AutoEncoder`, `encoded` and `LatentModel`.
"""

from .autoencoder import AutoEncoder, LinearAutoEncoder, check_autoencoder, encoded
from .model import LatentModel

__all__ = [
    "AutoEncoder",
    "LatentModel",
    "LinearAutoEncoder",
    "check_autoencoder",
    "encoded",
]
