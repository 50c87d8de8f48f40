"""Latent variables z with p(x) = int p(x | z) p(z) dz, and a bound by a trained q(z | x)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._checks import check_count, check_counts, check_entries, check_flag, check_kind
from .._rows import row_sum
from ..latent import AutoEncoder
from ..models.base import evaluating
from .base import Normal, Trained, check_net, check_variance, drawn_by, dtype_of, normals

__all__ = ["VAE", "HierarchicalVAE"]


def log_normal(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(x; mean, exp(log_var)), summed over a sample, shape (batch,)."""
    square = (x - mean).square() * (-log_var).exp()
    return -0.5 * row_sum((square + log_var + math.log(2 * math.pi)).expand_as(x))


class LatentVariables(Trained, AutoEncoder):
    """z_1 .. z_L above x: q(z_1 | x) q(z_2 | z_1) .. upwards, p(z_L) .. p(x | z_1) downwards.

    log p(x) >= E_q log [p(x, z) / q(z | x)], by as many levels as there are (Kingma and Welling
    2014, 1312.6114). Every factor is a Gaussian with diagonal covariance.
    """

    likelihood = "bound"
    _why = "only a lower bound is known, elbo(x) or importance_bound(x)"

    def _build(
        self,
        event: tuple[int, ...],
        sizes: tuple[int, ...],
        encoders: Sequence[nn.Module],
        decoders: Sequence[nn.Module],
        variance: object,
        noisy: bool,
    ) -> None:
        self.event, self.sizes = check_counts("event", event), check_counts("sizes", sizes)
        self.latent = (self.sizes[0],)
        encoders = check_entries("encoders", encoders, "networks")
        decoders = check_entries("decoders", decoders, "networks")
        for name, nets in (("encoder", encoders), ("decoder", decoders)):
            for i, net in enumerate(nets):
                check_kind(f"{name} {i}", net, nn.Module, "Perceptron((2,), (2,))")
        if not len(encoders) == len(decoders) == len(self.sizes):
            raise ValueError(
                f"need one encoder and one decoder for each of {len(self.sizes)} levels, got "
                f"{len(encoders)} and {len(decoders)}"
            )
        check_flag("noisy", noisy)
        self.noisy = noisy
        self.encoders, self.decoders = nn.ModuleList(encoders), nn.ModuleList(decoders)
        dtype = dtype_of(*encoders, *decoders)
        self.log_variance: nn.Parameter | None = None
        shape: tuple[int, ...] = (2, *self.event)
        if variance is not None:
            self.log_variance = nn.Parameter(check_variance(variance, self.event).to(dtype))
        elif self.event:
            shape = (2, 2 * self.event[0], *self.event[1:])
        else:
            raise ValueError("an event () has no axis for a log variance beside the mean: set one")
        below = torch.zeros(2, *self.event, dtype=dtype)
        with torch.no_grad():
            for i, size in enumerate(self.sizes):
                check_net(f"encoder {i} (mean, log variance)", encoders[i], (2, 2 * size), below)
                below = below.new_zeros(2, size)
                what = "mean" if i == 0 and variance is not None else "mean, log variance"
                check_net(f"decoder {i} ({what})", decoders[i], shape, below)
                shape = (2, 2 * size)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z_1 | x), each (batch, size).

        Args:
            x: data, shape (batch, *event).
        """
        mean, log_var = self.encoders[0](self.checked(x)).chunk(2, 1)
        return mean, log_var

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        mean, log_var = self.posterior(x)
        if generator is None:
            return mean
        return mean + (log_var / 2).exp() * drawn_by(generator)(mean)

    def decode(self, z: Tensor) -> Tensor:
        return self._down(0, z)[0]

    def _down(self, i: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the level below number i, given z of level i."""
        out = self.decoders[i](z)
        if i == 0 and self.log_variance is not None:
            return out, self.log_variance
        mean, log_var = out.chunk(2, 1)
        return mean, log_var

    def log_ratio(self, x: Tensor, normal: Normal) -> Tensor:
        """log [p(x, z) / q(z | x)] of one draw of all z from q, in nats, shape (batch,).

        Args:
            x: data, shape (batch, *event).
            normal: source of the draws, one for each level from the data up.
        """
        total, below = torch.zeros(len(x), dtype=x.dtype, device=x.device), x
        for i, encoder in enumerate(self.encoders):
            mean, log_var = encoder(below).chunk(2, 1)
            z = mean + (log_var / 2).exp() * normal(mean)
            total = total - log_normal(z, mean, log_var)
            total = total + log_normal(below, *self._down(i, z))
            below = z
        return total + log_normal(below, torch.zeros_like(below), torch.zeros_like(below))

    def loss(self, x: Tensor, normal: Normal) -> Tensor:
        return -self.log_ratio(x, normal)

    @torch.no_grad()
    def elbo(self, x: Tensor, *, samples: int = 1, seed: int = 0) -> Tensor:
        """E_q log [p(x, z) / q(z | x)] by the mean over draws, shape (batch,), in nats.

        Unbiased, and in the mean at most log p(x).

        Args:
            x: data, shape (batch, *event).
            samples: draws of z per sample.
            seed: of the draws.
        """
        return self._log_ratios(x, samples, seed).mean(0)

    @torch.no_grad()
    def importance_bound(self, x: Tensor, *, samples: int = 8, seed: int = 0) -> Tensor:
        """log (1/K) sum_k p(x, z_k) / q(z_k | x), shape (batch,), in nats.

        In the mean between the ELBO and log p(x), and rising with K (Burda et al. 2016,
        1509.00519).

        Args:
            x: data, shape (batch, *event).
            samples: K.
            seed: of the draws.
        """
        logs = self._log_ratios(x, samples, seed)
        return logs.logsumexp(0) - math.log(len(logs))

    def _log_ratios(self, x: Tensor, samples: int, seed: int) -> Tensor:
        self.checked(x)
        normal = normals(seed)
        with evaluating(self):
            draws = range(check_count("samples", samples))
            return torch.stack([self.log_ratio(x, normal) for _ in draws])

    def draw(self, count: int, normal: Normal, label: Tensor | None) -> Tensor:
        like = torch.zeros((), dtype=dtype_of(self.decoders), device=self.device)
        z = normal(like.new_zeros(count, self.sizes[-1]))
        for i in reversed(range(1, len(self.sizes))):
            mean, log_var = self._down(i, z)
            z = mean + (log_var / 2).exp() * normal(mean)
        x, log_var = self._down(0, z)
        return x + (log_var / 2).exp() * normal(x) if self.noisy else x


class VAE(LatentVariables):
    """A variational autoencoder (Kingma and Welling 2014, 1312.6114).

    log p(x) >= E_q [log p(x | z) + log p(z) - log q(z | x)],   p(z) = N(0, I),
    p(x | z) = N(decoder(z), variance),   q(z | x) = N(mean(x), diag variance(x))

    The posterior of the model's own z is intractable, so a second network, the encoder, is trained
    in its place. With linear networks the optimum is probabilistic PCA. It is the autoencoder of
    latent diffusion, too.

    Args:
        encoder: (batch, *event) -> (batch, 2 latent): mean and log variance.
        decoder: (batch, latent) -> (batch, *event), the mean.
        event: shape of one sample.
        latent: number of latent coordinates.
        variance: of p(x | z) at the start, trained with the rest: a number, or one per coordinate
            as a tensor of shape event. None where it depends on z: then the decoder makes mean and
            log variance, (batch, 2 event[0], ...).
        noisy: samples are draws of p(x | z), the law that the bound is of, rather than its mean.

    Raises:
        ValueError: for networks of other shapes.

    >>> from scoregen.baselines import Perceptron
    >>> with torch.random.fork_rng():
    ...     model = VAE(Perceptron((3,), (4,)), Perceptron((2,), (3,)), (3,), 2)
    >>> model.elbo(torch.zeros(5, 3)).shape, model.sample(4, seed=0).shape
    (torch.Size([5]), torch.Size([4, 3]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        event: tuple[int, ...],
        latent: int,
        *,
        variance: float | Tensor | None = 1.0,
        noisy: bool = False,
    ):
        super().__init__()
        self._build(event, (check_count("latent", latent),), [encoder], [decoder], variance, noisy)


class HierarchicalVAE(LatentVariables):
    """A variational autoencoder of several levels (Sonderby et al. 2016, 1602.02282).

    log p(x) >= E_q log [p(x | z_1) p(z_1 | z_2) .. p(z_L) / q(z_1 | x) q(z_2 | z_1) ..]

    A diffusion chain is one whose encoder is fixed, q(x_t | x_{t-1}), and whose levels have the
    size of the data: then this is its variational bound. As an autoencoder its code is z_1.

    Args:
        encoders: of level i, from the one below: (batch, *event) or (batch, sizes[i - 1]) ->
            (batch, 2 sizes[i]): mean and log variance.
        decoders: of level i, to the one below: (batch, sizes[0]) -> (batch, *event), as in `VAE`;
            the others (batch, sizes[i]) -> (batch, 2 sizes[i - 1]), mean and log variance.
        event: shape of one sample.
        sizes: latent coordinates of every level, from the data up; at least two.
        variance: as in `VAE`.
        noisy: as in `VAE`.

    Raises:
        ValueError: for networks of other shapes, or a single level.

    >>> from scoregen.baselines import Perceptron
    >>> with torch.random.fork_rng():
    ...     model = HierarchicalVAE(
    ...         [Perceptron((3,), (8,)), Perceptron((4,), (4,))],
    ...         [Perceptron((4,), (3,)), Perceptron((2,), (8,))], (3,), (4, 2),
    ...     )
    >>> model.elbo(torch.zeros(5, 3)).shape, model.sample(4, seed=0).shape
    (torch.Size([5]), torch.Size([4, 3]))
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        decoders: Sequence[nn.Module],
        event: tuple[int, ...],
        sizes: tuple[int, ...],
        *,
        variance: float | Tensor | None = 1.0,
        noisy: bool = False,
    ):
        super().__init__()
        sizes = check_counts("sizes", sizes)
        if len(sizes) < 2:
            raise ValueError(f"a hierarchy has at least two levels, got sizes {sizes}: use VAE")
        self._build(event, sizes, encoders, decoders, variance, noisy)

    @property
    def evaluations(self) -> float:
        return float(len(self.sizes))
