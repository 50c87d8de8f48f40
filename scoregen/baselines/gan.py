"""Generators trained against a critic: adversarial, conditional, and Wasserstein."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn

from .._checks import check_count, check_counts, check_kind, check_number
from .._rows import against, row_norm
from ..data import Data
from ..models.base import evaluating
from ..training import TrainSettings
from .base import Generator, Normal, check_net, continuous, descend, drawn_by, dtype_of

__all__ = ["GAN", "ConditionalGAN", "WassersteinGAN"]


class Adversarial(Generator):
    """x = G(z) with z normal, and a critic: what the three kinds share."""

    likelihood = "none"
    _why = (
        "its samples fill a surface of the latent's dimension, and nothing is known of their "
        "density; compare it by metrics of its samples"
    )

    def _build(
        self,
        generator: nn.Module,
        critic: nn.Module,
        event: tuple[int, ...],
        latent: int,
        penalty: float,
    ) -> None:
        for name, net in (("the generator", generator), ("the critic", critic)):
            check_kind(name, net, nn.Module, "Perceptron((2,), (2,))")
        self.generator, self.critic = generator, critic
        self.event, self.latent = check_counts("event", event), check_count("latent", latent)
        self.penalty = check_number("penalty", penalty, 0.0)
        label = torch.zeros(2, dtype=torch.long) if self.classes else None
        z = torch.zeros(2, latent, dtype=dtype_of(generator))
        with torch.no_grad():
            x = check_net("the generator", self.generator, (2, *self.event), z, label)
            check_net("the critic", self.critic, (2,), x, label)

    def generated(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """G(z), shape (batch, *event).

        Args:
            z: shape (batch, latent).
            label: classes, shape (batch,), of a conditional one.
        """
        return self.generator(z) if label is None else self.generator(z, label)

    def judged(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The critic's number of every sample, shape (batch,).

        Args:
            x: samples, shape (batch, *event).
            label: classes, shape (batch,), of a conditional one.
        """
        return self.critic(x) if label is None else self.critic(x, label)

    @abstractmethod
    def critic_loss(
        self, real: Tensor, fake: Tensor, u: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """What the critic minimises, one per pair of samples, shape (batch,).

        Args:
            real: data, shape (batch, *event).
            fake: generated, shaped like real.
            u: uniform in [0, 1], shape (batch,).
            label: classes of both, shape (batch,).
        """

    @abstractmethod
    def generator_loss(self, fake: Tensor, label: Tensor | None = None) -> Tensor:
        """What the generator minimises, one per sample, shape (batch,).

        Args:
            fake: generated, shape (batch, *event).
            label: their classes, shape (batch,).
        """

    def latent_energy(self, z: Tensor) -> Tensor:
        """|z|^2 / 2 - critic(G(z)), shape (batch,): `Potential(gan.latent_energy)` is a model of z.

        Where the critic is log p / p_G of the data and the generator, exp(-energy) pushed forward
        by G is the data's law (Che et al. 2020, 2003.06060). MALA samples it.

        Args:
            z: shape (batch, latent).

        Raises:
            TypeError: for a conditional one, whose energy is of one class.
        """
        if self.classes:
            raise TypeError(f"{type(self).__name__} has one latent energy per class, got no class")
        return z.square().sum(1) / 2 - self.judged(self.generated(z))

    def draw(self, count: int, normal: Normal, label: Tensor | None) -> Tensor:
        like = torch.zeros((), dtype=dtype_of(self.generator), device=self.device)
        if self.classes and label is None:
            u = torch.special.ndtr(normal(torch.zeros(count)))
            label = (u * self.classes).long().clamp(max=self.classes - 1).to(like.device)
        return self.generated(normal(like.new_zeros(count, self.latent)), label)

    def fit(
        self,
        data: Data,
        *,
        steps: int,
        batch: int = 128,
        lr: float = 5e-4,
        seed: int = 0,
        critic_steps: int = 1,
        ema_decay: float = 0.995,
        progress: bool = True,
    ) -> Self:
        """Critic and generator in turn by Adam (betas 0.5 and 0.9); ends with an average of both.

        Args:
            data: with labels for a conditional one, without for others.
            steps: updates of the generator.
            batch: samples per update.
            lr: largest learning rate of both; warmed up, then a cosine.
            seed: of the order of the data and of all noise.
            critic_steps: updates of the critic before each of the generator.
            ema_decay: of the average of the weights.
            progress: show a bar, on a terminal.

        Returns:
            Itself.
        """
        self.check_training(data, labels=bool(self.classes))
        settings = TrainSettings(steps, batch, lr, seed, warmup=steps // 20, ema_decay=ema_decay)
        check_count("critic_steps", critic_steps)
        source = torch.Generator().manual_seed(seed)
        normal = drawn_by(source)
        options: dict[str, Any] = {"lr": lr, "betas": (0.5, 0.9)}
        options["fused"] = self.device.type in ("cpu", "cuda")
        for_critic = torch.optim.Adam(self.critic.parameters(), **options)
        for_generator = torch.optim.Adam(self.generator.parameters(), **options)
        batches = data.batches(batch, seed)

        def update(step: int) -> None:
            for _ in range(critic_steps):
                x, label = next(batches)
                x = continuous(x, data, source).to(self.device)
                z = normal(x.new_zeros(len(x), self.latent))
                with torch.no_grad():
                    fake = self.generated(z, label)
                u = torch.rand(len(x), generator=source).to(x)
                descend(for_critic, settings, step, self.critic_loss(x, fake, u, label).mean())
            loss = self.generator_loss(self.generated(z, label), label).mean()
            descend(for_generator, settings, step, loss)

        return self._averaged(update, settings, progress)

    def _slope(self, x: Tensor, label: Tensor | None) -> Tensor:
        """|grad_x critic|, shape (batch,), differentiable in the critic's weights."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.judged(x, label).sum(), x, create_graph=True)
        return row_norm(slope)


class Logistic(Adversarial):
    """The critic's number is a logit, D = sigmoid(logit)."""

    def critic_loss(
        self, real: Tensor, fake: Tensor, u: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """-log D(x) - log(1 - D(G(z))), and penalty / 2 |grad logit(x)|^2 at the data."""
        softplus = nn.functional.softplus
        loss = softplus(-self.judged(real, label)) + softplus(self.judged(fake, label))
        if self.penalty:
            loss = loss + self.penalty / 2 * self._slope(real, label).square()
        return loss

    def generator_loss(self, fake: Tensor, label: Tensor | None = None) -> Tensor:
        """-log D(G(z)): the same fixed point as log(1 - D(G(z))), with a gradient that lasts."""
        return nn.functional.softplus(-self.judged(fake, label))


class GAN(Logistic):
    """min_G max_D E log D(x) + E log(1 - D(G(z))) (Goodfellow et al. 2014, 1406.2661).

    At its optimum the critic's logit is log p / p_G, and the value 2 JSD(p, p_G) - log 4. So a
    critic is a log density ratio: of noised data it corrects the score of a model, see
    `DensityRatio`, and in the latent space it is an energy, see `latent_energy`. The generator is
    trained on -log D(G(z)).

    Args:
        generator: (batch, latent) -> (batch, *event).
        critic: (batch, *event) -> (batch,), a logit.
        event: shape of one sample.
        latent: number of latent coordinates.
        penalty: times half the squared slope of the logit at the data (Mescheder et al. 2018,
            1801.04406), without which training need not converge; 0 for the plain loss.

    Raises:
        ValueError: for networks of other shapes.

    >>> from scoregen.baselines import Perceptron
    >>> with torch.random.fork_rng():
    ...     gan = GAN(Perceptron((2,), (3,)), Perceptron((3,), ()), (3,), 2)
    >>> gan.sample(4, seed=0).shape
    torch.Size([4, 3])
    """

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        event: tuple[int, ...],
        latent: int,
        *,
        penalty: float = 0.1,
    ):
        super().__init__()
        self._build(generator, critic, event, latent, penalty)


class ConditionalGAN(Logistic):
    """A GAN whose generator and critic are given the class (Mirza and Osindero 2014, 1411.1784).

    min_G max_D E log D(x, y) + E log(1 - D(G(z, y), y))

    Args:
        generator: (batch, latent), (batch,) -> (batch, *event).
        critic: (batch, *event), (batch,) -> (batch,), a logit.
        event: shape of one sample.
        latent: number of latent coordinates.
        classes: number of classes.
        penalty: as in `GAN`.

    Raises:
        ValueError: for networks of other shapes.

    >>> from scoregen.baselines import Perceptron
    >>> with torch.random.fork_rng():
    ...     nets = Perceptron((2,), (3,), classes=5), Perceptron((3,), (), classes=5)
    ...     gan = ConditionalGAN(*nets, (3,), 2, 5)
    >>> gan.sample(4, seed=0, condition={"label": 3}).shape
    torch.Size([4, 3])
    """

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        event: tuple[int, ...],
        latent: int,
        classes: int,
        *,
        penalty: float = 0.1,
    ):
        super().__init__()
        self.classes = check_count("classes", classes)
        self._build(generator, critic, event, latent, penalty)


class WassersteinGAN(Adversarial):
    """min_G max_f E f(x) - E f(G(z)) over f of slope at most 1 (Arjovsky et al. 2017, 1701.07875).

    The maximum is the Wasserstein-1 distance (Kantorovich and Rubinstein). The bound on the slope
    becomes penalty (|grad f| - 1)^2 between the data and the samples (Gulrajani et al. 2017,
    1704.00028), under which the optimum overshoots: in one dimension its slope is
    1 + (P - Q) / (2 penalty rho), P and Q the distribution functions of samples and data, rho the
    density of the points between.

    Args:
        generator: (batch, latent) -> (batch, *event).
        critic: (batch, *event) -> (batch,).
        event: shape of one sample.
        latent: number of latent coordinates.
        penalty: times the squared deviation of the slope from 1.

    Raises:
        ValueError: for networks of other shapes.

    >>> from scoregen.baselines import Perceptron
    >>> with torch.random.fork_rng():
    ...     gan = WassersteinGAN(Perceptron((2,), (3,)), Perceptron((3,), ()), (3,), 2)
    >>> gan.distance(torch.zeros(4, 3), torch.ones(4, 3)).dim()
    0
    """

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        event: tuple[int, ...],
        latent: int,
        *,
        penalty: float = 10.0,
    ):
        super().__init__()
        self._build(generator, critic, event, latent, penalty)

    def critic_loss(
        self, real: Tensor, fake: Tensor, u: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """f(G(z)) - f(x) + penalty (|grad f(u x + (1 - u) G(z))| - 1)^2."""
        share = against(u, real)
        between = self._slope(share * real + (1 - share) * fake, label)
        gain = self.judged(fake, label) - self.judged(real, label)
        return gain + self.penalty * (between - 1).square()

    def generator_loss(self, fake: Tensor, label: Tensor | None = None) -> Tensor:
        """-f(G(z))."""
        return -self.judged(fake, label)

    @torch.no_grad()
    def distance(self, real: Tensor, fake: Tensor) -> Tensor:
        """mean f(real) - mean f(fake): at most the Wasserstein-1 distance for a slope at most 1.

        Args:
            real: data, shape (n, *event).
            fake: samples, shape (m, *event).
        """
        with evaluating(self):
            return self.judged(self.checked(real)).mean() - self.judged(self.checked(fake)).mean()
