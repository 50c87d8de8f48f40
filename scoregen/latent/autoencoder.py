"""Autoencoders: from data to codes and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .._checks import check_count, check_data, check_finite, check_kind, check_tensor
from .._rows import flat
from ..data import Data
from ..models.base import evaluating

__all__ = ["AutoEncoder", "LinearAutoEncoder", "check_autoencoder", "encoded"]


class AutoEncoder(nn.Module, ABC):
    """A map from data to codes and one back.

    Subclasses set both shapes and write both maps.

    Attributes:
        event: shape of one sample.
        latent: shape of its code.

    >>> class Halved(AutoEncoder):
    ...     event, latent = (2,), (2,)
    ...     def encode(self, x, *, generator=None):
    ...         return x / 2
    ...     def decode(self, z):
    ...         return 2 * z
    >>> Halved().decode(Halved().encode(torch.ones(1, 2)))
    tensor([[1., 1.]])
    """

    event: tuple[int, ...]
    latent: tuple[int, ...]

    @abstractmethod
    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Codes (batch, *latent) of data (batch, *event).

        Args:
            x: data.
            generator: of a draw from q(z | x); its mean without. The q of a deterministic encoder
                is a point, so that its draw and its mean are the same.
        """

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Data (batch, *event) of codes (batch, *latent); the mean of p(x | z) where there is one.

        Args:
            z: codes.
        """


def check_autoencoder(autoencoder: object) -> AutoEncoder:
    """Refuse what does not lead from its event to its latent shape and back.

    Raises:
        TypeError: for anything but an `AutoEncoder`.
        ValueError: where the decoded code of zeros has another shape than the event, or its code
            another one than the latent shape.

    >>> check_autoencoder(LinearAutoEncoder(torch.zeros(3), torch.eye(3)[:2])).latent
    (2,)
    """
    if not isinstance(autoencoder, AutoEncoder):
        raise TypeError(
            "autoencoder must be an AutoEncoder with encode, decode, event and latent, got "
            f"{type(autoencoder).__name__}: derive yours from latent.AutoEncoder"
        )
    like = next(
        (p for p in (*autoencoder.parameters(), *autoencoder.buffers()) if p.is_floating_point()),
        torch.zeros(()),
    )
    code = like.new_zeros((2, *autoencoder.latent))
    name = type(autoencoder).__name__
    with torch.no_grad(), evaluating(autoencoder):
        try:
            x = autoencoder.decode(code)
        except RuntimeError as error:
            raise ValueError(
                f"{name}.decode does not take codes of its latent shape {autoencoder.latent}: "
                f"{error}"
            ) from error
        if not isinstance(x, Tensor) or x.shape != (2, *autoencoder.event):
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{name}.decode must make (batch, *event) = {(2, *autoencoder.event)} of codes "
                f"{tuple(code.shape)}, got {got}"
            )
        z = autoencoder.encode(x)
    if not isinstance(z, Tensor) or z.shape != code.shape:
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(
            f"{name}.encode must make (batch, *latent) = {tuple(code.shape)} of data "
            f"{tuple(x.shape)}, got {got}"
        )
    return autoencoder


@torch.no_grad()
def encoded(autoencoder: AutoEncoder, data: Data, *, seed: int | None = None) -> Data:
    """The codes of data, standardised, with the data's labels: what a latent model is trained on.

    z = (encode(x) - mean) / std per channel of the code; mean and std are the `units` of the
    result, which `LatentModel` undoes (Rombach et al. 2022, 2112.10752, rescale by one number).

    Args:
        autoencoder: encodes in the precision of its weights.
        data: shape (N, *event).
        seed: of a draw from q(z | x) per sample; its mean unless given. Means are narrower than
            the codes that the decoder was trained on.

    Raises:
        ValueError: for data of another event, or a channel of the code that is constant.

    >>> pca = LinearAutoEncoder(torch.zeros(2), torch.eye(2)[:1])
    >>> codes = encoded(pca, Data(torch.tensor([[1.0, 5.0], [3.0, 7.0]])))
    >>> codes.x.flatten().tolist(), codes.units
    ([-1.0, 1.0], Units(mean=(2.0,), std=(1.0,)))
    """
    check_autoencoder(autoencoder)
    check_kind("data", data, Data, "Data(x)")
    if data.event != autoencoder.event:
        raise ValueError(
            f"data must have the autoencoder's event {autoencoder.event}, got {data.event}"
        )
    generator = None
    if seed is not None:
        generator = torch.Generator().manual_seed(check_count("seed", seed, 0))
    with evaluating(autoencoder):
        z = torch.cat([autoencoder.encode(x, generator=generator) for x in data.x.split(4096)])
    codes = Data(z, data.label, name=f"{data.name}/codes", class_names=data.class_names)
    return codes.standardised()


class LinearAutoEncoder(AutoEncoder):
    """z = B (x - m), x = m + B^T z: with orthonormal rows of B a projection.

    `pca` takes the directions of largest variance. For Gaussian data of covariance S the decoded
    codes are N(m, B^T B S B^T B), at the squared Wasserstein distance of the sum of the discarded
    eigenvalues.

    Args:
        mean: m, shape event.
        basis: B, orthonormal rows, shape (k, d) with d coordinates in an event.

    Raises:
        ValueError: for rows that are not orthonormal, or a shape that does not fit.

    >>> pca = LinearAutoEncoder.pca(torch.tensor([[1.0, 0.1], [-1.0, 0.1], [3.0, 0.1]]), 1)
    >>> bool((pca.decode(pca.encode(torch.tensor([[2.0, 0.1]]))) - torch.tensor([2.0, 0.1])).norm()
    ...      < 1e-6)
    True
    """

    def __init__(self, mean: Tensor, basis: Tensor):
        super().__init__()
        check_finite("mean", check_tensor("mean", mean))
        check_finite("basis", check_tensor("basis", basis))
        d = math.prod(mean.shape)
        if basis.dim() != 2 or basis.shape[1] != d or not 0 < len(basis) <= d:
            raise ValueError(
                f"basis must have 1 to {d} rows of {d} numbers, as the mean has, got "
                f"{tuple(basis.shape)}"
            )
        gram = basis.double() @ basis.double().mT
        if not torch.allclose(gram, torch.eye(len(basis), dtype=gram.dtype), atol=1e-5):
            raise ValueError(
                "the rows of basis must be orthonormal, or decode would not undo encode: take "
                "those of torch.linalg.qr(basis.mT).Q.mT"
            )
        self.event, self.latent = tuple(mean.shape), (len(basis),)
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("basis", basis.detach().clone())
        self.mean: Tensor
        self.basis: Tensor

    @classmethod
    def pca(cls, x: Tensor, latent: int) -> LinearAutoEncoder:
        """The `latent` directions of largest variance of x, shape (n, *event).

        Raises:
            ValueError: for more directions than coordinates, or fewer than two samples.
        """
        check_data(x)
        if len(x) < 2:
            raise ValueError(f"directions of variance need at least two samples, got {len(x)}")
        rows = flat(x.double())
        check_count("latent", latent)
        if latent > rows.shape[1]:
            raise ValueError(f"latent must be at most {rows.shape[1]}, got {latent}")
        _, vectors = torch.linalg.eigh(torch.cov(rows.mT).reshape(rows.shape[1], -1))
        basis = vectors.mT.flip(0)[:latent]
        return cls(x.double().mean(0).to(x.dtype), basis.to(x.dtype))

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return flat(x - self.mean) @ self.basis.mT

    def decode(self, z: Tensor) -> Tensor:
        return self.mean + (z @ self.basis).reshape(len(z), *self.event)
